"""The worker's side of a delivery: what its main process and the journal tell each other when a task ends badly."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, TypeVar

from billiard.exceptions import Terminated
from celery import states
from celery.exceptions import TaskPredicate, TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celery.worker.request import Request
from celery.worker.state import task_ready

from celery_durable.app.owner import owner_name
from celery_durable.app.store import store_of
from celery_durable.delivery import outcome
from celery_durable.delivery.announcement import Announcement, started_fields
from celery_durable.delivery.message import ARGUMENTS, HEADER, RECEIVED, SEED, SERIALIZER, seed_from_headers
from celery_durable.exceptions import ConfigurationError
from celery_durable.journal.layout import Status
from celery_durable.redis.replies import ReleaseResult
from celery_durable.redis.runs import Runs
from celery_durable.seams.kombu import serializer_of
from celery_durable.seams.requests import OpenRequest, request_class

T = TypeVar("T")

logger = logging.getLogger("celery_durable")

_LOST = (WorkerLostError, SystemExit, KeyboardInterrupt)
"""What Celery takes for the loss of a process."""


class DurableRequest(OpenRequest):
    """Runs in the worker's main process."""

    _is_done = False
    """The process was lost when the run had succeeded, and all was delivered."""
    _is_revoked = False
    """The run, which had begun, is ended by its revocation."""

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        # A process of the pool may get to it much later; on one machine this clock is the same for all. Of what travels
        # there this is looked at least: delivery_info is shown by `celery inspect`, and headers are sent on.
        request = self.request_dict
        # The arguments travel there anyway, and Celery reads the message again for those that the body is given.
        arguments = request["args"], request["kwargs"]
        ours = {RECEIVED: time.monotonic(), ARGUMENTS: arguments, SERIALIZER: serializer_of(message.content_type)}
        if seed := seed_from_headers(request, self.id, self.replaced_task_nesting):
            ours[SEED] = seed
        request.pop(SEED, None)
        request["properties"] = {**request["properties"], **ours}

    # -- the process of the task is gone

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """What befell the worker, not the task, is no failure of a run that has begun: the journal says how it goes on.

        A lost child, or Celery itself in what follows a task: its result backend was away, say.
        """
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if return_ok or not self._befell_the_worker(error):
            super().on_failure(exc_info, send_failed_event, return_ok)
            if isinstance(error, Announcement):
                error.publish(self)
            return None
        released = self._given_back()
        if released is None and self.task.auto_retry and self.task.acks_late:  # type: ignore[attr-defined]
            # The journal is away: the next worker may find it.
            task_ready(self)
            return self.reject(requeue=True)
        self._is_done = released is ReleaseResult.SUCCEEDED
        # A message may have been about to reopen a run that is over, when its process died.
        over = released in (ReleaseResult.ENDED, ReleaseResult.SUCCEEDED) and isinstance(error, _LOST)
        if released in (None, ReleaseResult.NO_RUN) or over:
            return super().on_failure(exc_info, send_failed_event, return_ok)
        logger.warning(
            "task %s: Celery gave up this attempt (%r); the run goes on, or ends, as its journal says", self.id, error
        )
        task_ready(self)
        if self.task.acks_late:
            self.acknowledge()
        return None

    def stored_success(self) -> Any:
        """Celery looks for a result, and there is none where results are ignored."""
        return super().stored_success() or (self._is_done and {"result": None})

    def _befell_the_worker(self, error: BaseException) -> bool:
        # Whoever stopped the task has said what becomes of it.
        stops = (Terminated, TimeLimitExceeded, MemoryError, TaskPredicate)
        return not self.was_stopped and not isinstance(error, stops)

    def _given_back(self) -> ReleaseResult | None:
        """Give back what the process held of the run. None: the journal does not answer."""
        pid: Any = self.worker_pid
        if pid is None:
            return ReleaseResult.NO_RUN
        return self._ask(lambda runs: runs.release(self.id, owner_name(pid)), "its lost process is not journaled")

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A hard time limit ends the run: FAILURE, journal kept."""
        super().on_timeout(soft, timeout)
        if not soft:
            # An attempt that was given up before has no say any more.
            pid: Any = self.worker_pid
            self._terminate_run(Status.FAILED, TimeLimitExceeded(timeout), pid)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """A cold shutdown, or a lost connection to the broker, stops the task; not every pool can."""
        try:
            super().cancel(pool, signal, emit_retry)
        except NotImplementedError:
            logger.warning("task %s: its pool cannot stop it, it ends by itself", self.id)

    def announce_cancelled(self, *, emit_retry: bool) -> None:
        # A durable run goes on: that is no retry. (To ask the journal is to wait, which gevent forbids here.)
        super().announce_cancelled(emit_retry=emit_retry and not self.task.auto_retry)  # type: ignore[attr-defined]

    # -- revoked, expired

    def announce_revoked(self, reason: str, *, terminated: bool, signum: Any, expired: bool) -> None:
        self._is_revoked = bool(self._terminate_run(Status.REVOKED, TaskRevokedError(reason)))
        super().announce_revoked(reason, terminated=terminated, signum=signum, expired=expired)

    def maybe_expire(self) -> Literal[True] | None:
        """Expiry is honoured until the first attempt begins."""
        expires: datetime | None = self.expires
        expired = expires is not None and datetime.now(expires.tzinfo) > expires
        if expired and self._ask(lambda runs: runs.is_known(self.id), "it may have begun before it expired"):
            return None
        return super().maybe_expire()

    # -- what monitors are told

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  Celery's name for it
        """Tell what Celery tells, and which state that is where monitors would keep the one of before."""
        header = self.request_dict.get(HEADER)
        if type == "task-started" and (header is not None or self.task.auto_retry):  # type: ignore[attr-defined]
            # Whatever it finds the run in: if it does not begin, it says so in turn.
            fields = started_fields(header or {}) | fields
        elif type == "task-revoked" and self._is_revoked:
            fields = {"state": states.REVOKED, **fields}
        super().send_event(type, **fields)

    # -- the journal

    def _terminate_run(self, status: str, error: BaseException, pid: int | None = None) -> bool | None:
        """End the run; whether that has ended it, None if it is not known."""

        def end(runs: Runs) -> bool:
            keep = self.task.durable_settings.failure_retention  # type: ignore[attr-defined]
            owner = "" if pid is None else owner_name(pid)
            return runs.terminate(self.id, status, keep, outcome.encode_error(error), owner=owner)

        return self._ask(end, "its end could not be journaled")

    def _ask(self, question: Callable[[Runs], T], otherwise: str) -> T | None:
        try:
            return question(store_of(self.app).runs)
        except ConfigurationError:
            pass  # no journal, so none of this task
        except Exception as error:
            logger.error("task %s: %s: %r", self.id, otherwise, error)
        return None


def made_durable(named: Any) -> Any:
    """The request class that a task names, Celery's or one of the user's, made durable."""
    kind = request_class(named)
    if issubclass(kind, DurableRequest):
        return kind
    # Ours first: what is no failure of the run is none that theirs is told of.
    return DurableRequest if kind is Request else type(kind.__name__, (DurableRequest, kind), {})
