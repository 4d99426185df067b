"""What the result backend is told of a run beside what Celery itself tells it."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from celery import states

from celery_durable.journal.layout import Status
from celery_durable.seams.celery import ignores_result

if TYPE_CHECKING:
    from .outcome import Outcome

logger = logging.getLogger("celery_durable")

SUSPENDED = "SUSPENDED"
"""State of a run that sleeps: ``ctx.sleep``; callers of ``.get()`` keep waiting."""
STALLED = "STALLED"
"""State of a run that waits for a worker whose code fits its journal; callers of ``.get()`` keep waiting."""
WAITS = (SUSPENDED, STALLED)
"""In these states a run is kept by its journal alone."""

begun: ContextVar[str | None] = ContextVar("celery_durable_begun", default=None)
"""The run that this thread has opened last."""
suppressed: ContextVar[str | None] = ContextVar("celery_durable_suppressed", default=None)
"""The run of which the result backend is to hear no more from Celery."""
announced: ContextVar[str | None] = ContextVar("celery_durable_announced", default=None)
"""The run whose retry the result backend knows of, before Celery says so."""

ENDED = {Status.SUCCEEDED: states.SUCCESS, Status.FAILED: states.FAILURE, Status.REVOKED: states.REVOKED}
"""The state of a run that has ended, by what its journal says."""


def forget_last() -> None:
    """Another run begins in this thread."""
    suppressed.set(None)
    announced.set(None)


def waits(task: Any, request: Any, state: str, info: dict[str, Any]) -> None:
    """The run waits, and holds no worker. Nothing depends on that being known."""
    try:
        _store(task, request, info, state)
    except Exception as error:
        logger.warning("task %s: its state %s could not be stored: %r", request.id, state, error)


def retried(task: Any, request: Any, error: BaseException | None) -> None:
    """The run is tried again for this *error*; Celery's own word would come late. Nothing depends on it being known."""
    announced.set(request.id)
    traceback = None if error is None else "".join(format_exception(error))
    try:
        _store(task, request, error, states.RETRY, traceback=traceback)
    except Exception as failed:
        logger.warning("task %s: its state %s could not be stored: %r", request.id, states.RETRY, failed)


def revoked(task: Any, request: Any, error: BaseException) -> bool:
    """The run was cancelled; a chord that waits for it is told. Whether that worked."""
    try:
        _store(task, request, error, states.REVOKED)
        if request.chord:
            task.backend.on_chord_part_return(request, states.REVOKED, error)
    except Exception:
        logger.exception("task %s: its cancellation could not be delivered, and will be again", request.id)
        return False
    return True


class SuppressingBackend:
    """The result backend, while the journal knows better than Celery what becomes of a run.

    That it is done, when the journal has stored its result. That it has failed, when Celery itself has: it could not
    store what it was told to, say, and would store that as the outcome. That it is retried, when that was said before.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def mark_as_done(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
        if suppressed.get() != task_id:
            return self._backend.mark_as_done(task_id, *args, **kwargs)
        suppressed.set(None)
        return None

    def mark_as_failure(self, task_id: str, exc: BaseException, *args: Any, **kwargs: Any) -> Any:
        if suppressed.get() != task_id:
            return self._backend.mark_as_failure(task_id, exc, *args, **kwargs)
        suppressed.set(None)
        logger.warning(
            "task %s: Celery gave up this attempt (%r); the run goes on, or ends, as its journal says", task_id, exc
        )
        return None

    def mark_as_retry(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
        if announced.get() != task_id:
            return self._backend.mark_as_retry(task_id, *args, **kwargs)
        announced.set(None)
        return None


def restore_outcome(task: Any, request: Any, ended: Outcome) -> None:
    """The recorded outcome, once more; nothing else hangs on that, and nothing depends on it."""
    if ended.status in ENDED:
        result = ended.value if ended.error is None else ended.error
        try:
            _store(task, request, result, ENDED[ended.status], traceback=ended.traceback or None)
        except Exception as error:
            logger.warning("task %s: its outcome could not be stored once more: %r", request.id, error)


def is_wanted(task: Any, request: Any, state: str) -> bool:
    """Whether a result is to be stored with this state."""
    if not ignores_result(task, request):
        return True
    return state in states.EXCEPTION_STATES and bool(task.store_errors_even_if_ignored)


def _store(task: Any, request: Any, result: Any, state: str, **facts: Any) -> None:
    if is_wanted(task, request, state):
        task.backend.store_result(request.id, result, state, request=request, **facts)
