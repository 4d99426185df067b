"""Celery's request in the main process of a worker: it knows the journal.

A lost process, a hard time limit, a revocation and an expiry are no longer decided by Celery alone: for a run that has
begun, the journal is asked or told.
"""

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
from celery_durable.delivery import backend, outcome
from celery_durable.delivery.announcement import Announcement, started_fields
from celery_durable.delivery.message import ARGUMENTS, HEADER, RECEIVED, SEED, SERIALIZER, seed_from_headers
from celery_durable.exceptions import ConfigurationError
from celery_durable.journal.layout import Status
from celery_durable.redis.replies import ReleaseResult
from celery_durable.redis.runs import StoredRuns
from celery_durable.seams.kombu import serializer_of
from celery_durable.seams.requests import OpenRequest, request_class

from . import news

T = TypeVar("T")

logger = logging.getLogger("celery_durable")

_LOST = (WorkerLostError, SystemExit, KeyboardInterrupt)
"""Errors by which Celery means that the process of the task was lost."""


class DurableRequest(OpenRequest):
    """A request of a durable task, in the main process of the worker."""

    _has_succeeded = False
    """The process was lost after the run had succeeded and its outcome was delivered."""
    _ended_by_revoke = False
    """The run had begun, and its revocation has ended it."""
    _end_before = ""
    """Celery's state of the run, if its revocation came after its end."""

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        # The process of the pool may begin much later. The monotonic clock is the same for all processes of a machine.
        # The properties travel there unseen: `celery inspect` shows delivery_info, and headers go into other messages.
        request = self.request_dict
        # The arguments travel there in any case. For the body, Celery reads them from the message once more.
        arguments = request["args"], request["kwargs"]
        ours = {RECEIVED: time.monotonic(), ARGUMENTS: arguments, SERIALIZER: serializer_of(message.content_type)}
        if seed := seed_from_headers(request, self.id, self.replaced_task_nesting):
            ours[SEED] = seed
        request.pop(SEED, None)
        request["properties"] = {**request["properties"], **ours}

    # -- the process of the task is gone

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """If the worker has failed, and not the task, a run that has begun does not fail: its journal decides.

        For example, the process was lost, or Celery could not reach its result backend after the task.
        """
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if return_ok or not self._is_workers_failure(error):
            super().on_failure(exc_info, send_failed_event, return_ok)
            if isinstance(error, Announcement):
                error.publish(self)
            return None
        released = self._release_run()
        if released is None and self.task.auto_retry and self.task.acks_late:  # type: ignore[attr-defined]
            # The journal does not answer here. The next worker may reach it.
            task_ready(self)
            return self.reject(requeue=True)
        self._has_succeeded = released is ReleaseResult.SUCCEEDED
        # If the run had ended before, this message may have been sent to reopen it when its process died.
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
        """What Celery looks for: a stored success. If results are ignored, only the journal knows of it."""
        return super().stored_success() or (self._has_succeeded and {"result": None})

    def _is_workers_failure(self, error: BaseException) -> bool:
        # If somebody stopped the task, or it says itself how it ends, that decides.
        stops = (Terminated, TimeLimitExceeded, MemoryError, TaskPredicate)
        return not self.was_stopped and not isinstance(error, stops)

    def _release_run(self) -> ReleaseResult | None:
        """Give back the lease of the lost process. Returns what the run is now; None: the journal does not answer."""
        pid: Any = self.worker_pid
        if pid is None:
            return ReleaseResult.NO_RUN
        return self._ask_journal(
            lambda runs: runs.release(self.id, owner_name(pid)),
            "the journal could not be told that its process is lost",
        )

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A hard time limit ends the run: FAILURE, journal kept. If another process has taken it over, it goes on."""
        pid: Any = self.worker_pid
        if not soft and self._is_taken_over(pid):
            # Celery must not say that it has failed.
            backend.suppressed_run.set(self.id)
        super().on_timeout(soft, timeout)
        if not soft:
            self._terminate_run(Status.FAILED, TimeLimitExceeded(timeout), pid)

    def _is_taken_over(self, pid: int | None) -> bool:
        """Whether another process than *pid* has the run: this one has not renewed its lease."""
        if pid is None:
            return False
        asked = self._ask_journal(
            lambda runs: runs.facts(self.id, "status", "owner"), "it is not known who has the run"
        )
        status, owner = asked or ("", "")
        return status in Status.LIVE and owner != owner_name(pid)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """A cold shutdown, or a lost connection to the broker, stops the task. Some pools cannot stop a task."""
        try:
            super().cancel(pool, signal, emit_retry)
        except NotImplementedError:
            logger.warning("task %s: its pool cannot stop it; it runs to its end", self.id)

    def announce_cancelled(self, *, emit_retry: bool) -> None:
        # A durable run goes on, and that is no retry. The journal is not asked: this would wait, and gevent forbids it.
        super().announce_cancelled(emit_retry=emit_retry and not self.task.auto_retry)  # type: ignore[attr-defined]

    # -- revoked, expired

    def announce_revoked(self, reason: str, *, terminated: bool, signum: Any, expired: bool) -> None:
        ended = self._terminate_run(Status.REVOKED, TaskRevokedError(reason))
        self._ended_by_revoke = bool(ended)
        status, delivered, fence = self._earlier_end() if ended is False else ("", "", "")
        if delivered and status in (Status.SUCCEEDED, Status.FAILED):
            self._keep_state(backend.STATES_OF_ENDED[status])
        super().announce_revoked(reason, terminated=terminated, signum=signum, expired=expired)
        if status == Status.REVOKED and not delivered:
            self._deliver_revocation(fence)

    def _earlier_end(self) -> tuple[str, ...]:
        """The status of a run that has ended before, whether its caller knows that, and the fence; else empty texts."""
        known = self._ask_journal(
            lambda runs: runs.facts(self.id, "status", "delivered", "fence"), "it is not known how it has ended"
        )
        return known or ("", "", "")

    def _keep_state(self, state: str) -> None:
        """Celery throws this message away: a Retry, or a copy. Its caller and monitors keep the state of the run."""
        self._end_before = state
        backend.suppressed_run.set(self.id)
        logger.warning(
            "task %s: somebody has revoked its id, so its message is thrown away; it stays %s. To do its work again, "
            "restart it: celery -A <app> durable restart %s", self.id, state, self.id,
        )  # fmt: skip

    def _deliver_revocation(self, fence: str) -> None:
        """The worker that has ended the run by a revocation was lost before it could tell anybody. That is done now."""
        keep = self.task.durable_settings.failure_retention  # type: ignore[attr-defined]
        self._ask_journal(
            lambda runs: runs.deliver(self.id, fence, keep),
            "its journal could not be told that its revocation is known",
        )

    def maybe_expire(self) -> Literal[True] | None:
        """``expires`` holds until the first attempt begins."""
        expires: datetime | None = self.expires
        expired = expires is not None and datetime.now(expires.tzinfo) > expires
        if expired and self._ask_journal(
            lambda runs: runs.is_known(self.id), "the journal could not say whether it began before it expired"
        ):
            return None
        return super().maybe_expire()

    # -- what monitors are told

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  Celery's name for it
        """Send Celery's event. Where monitors would keep the state of before, the event says the new state itself."""
        header = self.request_dict.get(HEADER)
        if type == "task-started" and (header is not None or self.task.auto_retry):  # type: ignore[attr-defined]
            # If the message then begins no attempt, another event sets the state back.
            fields = started_fields(header or {}) | fields
        elif type == "task-revoked" and self._ended_by_revoke:
            fields = {"state": states.REVOKED, **fields}
        elif type == "task-revoked" and self._end_before:
            fields = {"state": self._end_before, **fields}
        super().send_event(type, **fields)

    # -- the journal

    def _terminate_run(self, status: str, error: BaseException, pid: int | None = None) -> bool | None:
        """End the run. Returns whether this has ended it; None if the journal does not answer.

        With *pid*, only if that process has the run.
        """

        def end(runs: StoredRuns) -> bool:
            keep = self.task.durable_settings.failure_retention  # type: ignore[attr-defined]
            owner = "" if pid is None else owner_name(pid)
            return runs.terminate(self.id, status, keep, outcome.encode_error(error), owner=owner)

        ended = self._ask_journal(end, "its end could not be recorded")
        if ended:
            news.ended(self.app, self.id, status)
        return ended

    def _ask_journal(self, question: Callable[[StoredRuns], T], otherwise: str) -> T | None:
        try:
            return question(store_of(self.app).runs)
        except ConfigurationError:
            pass  # without a Redis the task has no journal
        except Exception as error:
            logger.error("task %s: %s: %r", self.id, otherwise, error)
        return None


def durable_request_class(named: Any) -> Any:
    """The request class for a durable task: made from the class that the task names, Celery's or the user's."""
    kind = request_class(named)
    if issubclass(kind, DurableRequest):
        return kind
    # Ours comes first: the user's class must not hear of a failure that is none of the run.
    return DurableRequest if kind is Request else type(kind.__name__, (DurableRequest, kind), {})
