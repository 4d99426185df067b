"""Runs that somebody has revoked while no message of theirs was about, which would have ended them."""

from __future__ import annotations

import logging
from typing import Any

from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state

from . import outcome
from .call import Call
from .forks import undisturbed
from .redis_journal import new_fence
from .store import store_of

logger = logging.getLogger("celery_durable")


class Revocations:
    """What this worker was told to revoke, as far as runs of an app are concerned."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._store = store_of(app)
        self._accept = frozenset(app.conf.accept_content)
        self._told: set[str] = set()
        self._ended: set[str] = set()
        self._fence = new_fence()
        """By which a run is known again that was ended here, and of which that could not be said everywhere."""

    def carry_out(self) -> None:
        """End the runs that were revoked by the last time: a request that is being terminated comes first."""
        for task_id in self._told - self._ended:
            try:
                with undisturbed:
                    self._end(task_id)
            except Exception:
                logger.exception("task %s: was revoked, which could not be said everywhere; tried again", task_id)
            else:
                self._ended.add(task_id)
        self._told = set(worker_state.revoked)
        self._ended &= self._told

    def _end(self, task_id: str) -> None:
        runs, keep = self._store.runs, self._store.settings.failure_retention
        error = outcome.of_error(TaskRevokedError("revoked"))
        if not runs.condemn(task_id, "revoked", keep, error, fence=self._fence):
            return
        logger.info("task %s: revoked while no message of it was about", task_id)
        options = Call.load(runs.load(task_id)[b"call"], self._accept).options
        request = Context({**options, "id": task_id, "group": options.get("group_id")})
        stored = not options.get("ignore_result")
        self._app.backend.mark_as_revoked(task_id, "revoked", request=request, store_result=stored)
