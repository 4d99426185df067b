"""The worker's side of a delivery: what it must tell the journal when a task's process is killed."""

from __future__ import annotations

import logging

from celery.exceptions import TimeLimitExceeded
from celery.worker.request import Request

from . import outcome
from .exceptions import ConfigurationError
from .store import store_of

logger = logging.getLogger("celery_durable")


class DurableRequest(Request):
    """Runs in the worker's main process."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A hard time limit ends the run: FAILURE, journal kept."""
        super().on_timeout(soft, timeout)
        if not soft:
            keep = self.task.durable_settings.failure_retention  # type: ignore[attr-defined]
            try:
                store_of(self.app).condemn(self.id, keep, outcome.of_error(TimeLimitExceeded(timeout)))
            except ConfigurationError:
                pass  # no journal, so none of this task
            except Exception as error:
                logger.error("task %s: its hard time limit could not be journaled: %r", self.id, error)
