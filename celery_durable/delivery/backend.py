"""What the library itself stores in the result backend, and what it keeps Celery from storing there."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from traceback import format_exception
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import states

from celery_durable.journal.layout import Status, Wait
from celery_durable.seams.celery import ignores_result

if TYPE_CHECKING:
    from .outcome import Outcome

logger = logging.getLogger("celery_durable")

SUSPENDED = "SUSPENDED"
"""State of a run that sleeps (``ctx.sleep``). Callers of ``.get()`` keep waiting."""
STALLED = "STALLED"
"""State of a run that waits for a worker whose code fits its journal. Callers of ``.get()`` keep waiting."""
PAUSED = "PAUSED"
"""State of a run that waits until somebody retries or cancels it. Callers of ``.get()`` keep waiting."""
WAITING_STATES = (SUSPENDED, STALLED, PAUSED)
"""States of a run that has no message at the broker: only its journal brings it back."""

opened_run: ContextVar[str | None] = ContextVar("celery_durable_begun", default=None)
"""The task id of the run that this thread opened last."""
suppressed_run: ContextVar[str | None] = ContextVar("celery_durable_suppressed", default=None)
"""The task id of a run. The result backend ignores the next outcome that Celery stores for it."""
stored_retry: ContextVar[str | None] = ContextVar("celery_durable_announced", default=None)
"""The task id of a run. The library has stored RETRY for it, so Celery need not store that again."""

STATES_OF_ENDED = {Status.SUCCEEDED: states.SUCCESS, Status.FAILED: states.FAILURE, Status.REVOKED: states.REVOKED}
"""Status in the journal → Celery's state, of a run that has ended."""
STATE_OF_HEADING = {
    Status.RUNNING: states.STARTED,
    Wait.RETRY: states.RETRY,
    Wait.SLEEP: SUSPENDED,
    Wait.STALL: STALLED,
    Wait.PAUSE: PAUSED,
    Status.SUSPENDED: SUSPENDED,
    **STATES_OF_ENDED,
    Status.IGNORED: states.IGNORED,
}
"""Where a run is in the index → its state."""
WAITS_FOR = {
    Wait.RETRY: "its next attempt",
    Wait.SLEEP: "the end of a sleep",
    Wait.STALL: "code that fits",
    Wait.PAUSE: "somebody to retry it or to cancel it, as no retry is left",
}
"""What a suspended run waits for → how that is told."""


def state_of(heading: str) -> str:
    """The state of a run that stands under this heading; the heading itself if only a newer version knows it."""
    return STATE_OF_HEADING.get(heading, heading)


def forget_previous_run() -> None:
    """Another run begins in this thread: what was noted for the previous one does not hold for it."""
    if suppressed_run.get() is not None:  # to look is faster than to set it
        suppressed_run.set(None)
    if stored_retry.get() is not None:
        stored_retry.set(None)


class Interim(NamedTuple):
    """What the result backend shows of a run that goes on later."""

    state: str
    result: Any = None
    """The error of RETRY; facts of a wait."""
    traceback: str | None = None

    @classmethod
    def of_retry(cls, error: BaseException | None) -> Interim:
        """RETRY, and the *error* that is its reason."""
        return cls(states.RETRY, error, None if error is None else "".join(format_exception(error)))


def store_interim(task: Any, request: Any, shown: Interim) -> None:
    """Store it. If this fails, it is logged: nothing depends on it."""
    mark_stored(request, shown)
    try:
        _store(task, request, shown.result, shown.state, traceback=shown.traceback)
    except Exception as failed:
        logger.warning("task %s: its state %s could not be stored: %r", request.id, shown.state, failed)


def mark_stored(request: Any, shown: Interim) -> None:
    """Keep Celery from storing RETRY once more: when it does, the journal has given the run away already."""
    if shown.state == states.RETRY:
        stored_retry.set(request.id)


def store_revoked(task: Any, request: Any, error: BaseException) -> bool:
    """Store that the run was cancelled, and tell a chord that waits for it. Returns whether both succeeded."""
    try:
        _store(task, request, error, states.REVOKED)
        if request.chord:
            task.backend.on_chord_part_return(request, states.REVOKED, error)
    except Exception:
        logger.exception("task %s: its cancellation could not be delivered; a worker tries again", request.id)
        return False
    return True


class SuppressingBackend:
    """The result backend without four calls of Celery's, for which the journal knows better what becomes of the run.

    - ``mark_as_done`` does nothing if the journal has written the result together with the outcome.
    - ``mark_as_failure`` does nothing if Celery itself has failed, and not the task. For example, Celery could not
      store the result, and would now store this error as the outcome.
    - ``mark_as_revoked`` does nothing if a message is thrown away whose run had ended before.
    - ``mark_as_retry`` does nothing if the library has stored RETRY before.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def mark_as_done(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
        if suppressed_run.get() != task_id:
            return self._backend.mark_as_done(task_id, *args, **kwargs)
        suppressed_run.set(None)
        return None

    def mark_as_failure(self, task_id: str, exc: BaseException, *args: Any, **kwargs: Any) -> Any:
        if suppressed_run.get() != task_id:
            return self._backend.mark_as_failure(task_id, exc, *args, **kwargs)
        suppressed_run.set(None)
        logger.warning(
            "task %s: Celery gave up this attempt (%r); the run goes on, or ends, as its journal says", task_id, exc
        )
        return None

    def mark_as_revoked(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
        if suppressed_run.get() != task_id:
            return self._backend.mark_as_revoked(task_id, *args, **kwargs)
        suppressed_run.set(None)
        return None

    def mark_as_retry(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
        if stored_retry.get() != task_id:
            return self._backend.mark_as_retry(task_id, *args, **kwargs)
        stored_retry.set(None)
        return None


def restore_outcome(task: Any, request: Any, ended: Outcome) -> None:
    """Store the recorded outcome once more; send no callback. If this fails, it is logged: nothing depends on it."""
    if ended.status in STATES_OF_ENDED:
        result = ended.value if ended.error is None else ended.error
        try:
            _store(task, request, result, STATES_OF_ENDED[ended.status], traceback=ended.traceback or None)
        except Exception as error:
            logger.warning("task %s: its outcome could not be stored once more: %r", request.id, error)


def stores_result(task: Any, request: Any, state: str) -> bool:
    """Whether Celery stores a result with this state, for this task and message."""
    if not ignores_result(task, request):
        return True
    return state in states.EXCEPTION_STATES and bool(task.store_errors_even_if_ignored)


def _store(task: Any, request: Any, result: Any, state: str, **facts: Any) -> None:
    if stores_result(task, request, state):
        task.backend.store_result(request.id, result, state, request=request, **facts)
