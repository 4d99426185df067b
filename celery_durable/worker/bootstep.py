"""A step of Celery's worker start-up: recovery begins with the worker, and ends with it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from celery import bootsteps, signals

from celery_durable.exceptions import ConfigurationError
from celery_durable.redis.lease import give_all_back
from celery_durable.task.of_app import durable_tasks

from . import control  # noqa: F401  registers the command
from .recovery import RecoveryThread


class RecoveryStep(bootsteps.StartStopStep):
    """Recovery starts with the worker, if the app has durable tasks."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._thread: RecoveryThread | None = None

    def include_if(self, parent: Any) -> bool:
        return bool(durable_tasks(parent.app))

    def create(self, parent: Any) -> None:
        # The start-up check logs what is wrong with the configuration.
        with suppress(ConfigurationError):
            # It is made here, and not in its thread, so that its locks and connections exist when the pool forks.
            self._thread = RecoveryThread(parent.app, parent)

    def start(self, parent: Any) -> None:  # noqa: ARG002
        if self._thread is not None:
            signals.worker_shutting_down.connect(self._end, weak=False)
            self._thread.start()

    def _end(self, **_: Any) -> None:
        if self._thread is not None:
            self._thread.stop()

    def stop(self, parent: Any) -> None:  # noqa: ARG002
        if self._thread is not None:
            self._thread.stop()
            self._thread.join()

    terminate = stop


@signals.worker_shutdown.connect(weak=False, dispatch_uid="celery_durable")
def _give_back(**_: Any) -> None:
    """Give back the leases of attempts that still run in this process (threads, greenlets): they end with it.

    So other workers go on with their runs at once.
    """
    give_all_back()
