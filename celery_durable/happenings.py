"""What happens to runs and to their steps, and who is told of it: signals, events, metrics and traces are observers.

An observer is a function. It registers itself once in each process, or before the process forks:

    def count(happening: str, run: Run, step: StepRecord | None) -> None: ...

    happenings.observe(count, {Happening.STEP_SUCCEEDED})

It is told after the journal has recorded what has happened, once, in the process that has done it. If that process dies
in between, nobody is told. A replay is told of to nobody. Nor is a run that its caller executes: in eager mode, or a
task that is called as a function.

An observer is called in the thread that has met the happening. For steps of an ``async def`` task that is the thread of
the event loop, so an observer must not block. It is never interrupted by a timeout of the library.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .records import Run, StepRecord

    Observer = Callable[[str, Run, StepRecord | None], None]

logger = logging.getLogger("celery_durable")


class Happening:
    """What may happen. The record of the run says its new state."""

    RUN_STARTED = "run_started"
    """The first attempt of a run has begun."""
    RUN_RESUMED = "run_resumed"
    """A later attempt has begun: after a wait, a retry, the death of a process, or a Retry of the failed run."""
    RUN_SUSPENDED = "run_suspended"
    """It waits, and only its journal keeps this wait: a sleep, a pause, or a retry too far away for the broker."""
    RUN_STALLED = "run_stalled"
    """An attempt has ended because the journal does not fit its code."""
    RUN_SUCCEEDED = "run_succeeded"
    RUN_FAILED = "run_failed"
    RUN_PARKED = "run_parked"
    """It has failed because too many attempts in a row died (RecoveryLimitExceeded). ``RUN_FAILED`` follows."""
    RUN_CANCELLED = "run_cancelled"
    """Somebody has cancelled it, or has revoked its task."""
    ATTEMPT_FENCED = "attempt_fenced"
    """An attempt has found that another one has its run, or that the run has ended elsewhere."""
    STEP_SUCCEEDED = "step_succeeded"
    STEP_FAILED = "step_failed"
    """It has failed for good, and each replay will raise this failure."""

    # Only who measures needs these. They have no signals and no events.
    RUN_RECOVERED = "run_recovered"
    """A later attempt has begun because the process of the one before was lost. ``RUN_RESUMED`` follows."""
    ATTEMPT_ENDED = "attempt_ended"
    """An attempt has left its run, which waits, or has ended. The record says how many steps it has replayed."""
    ATTEMPT_INACTIVE = "attempt_inactive"
    """An attempt has made no progress for its ``inactivity_timeout``."""
    STEP_RETRIED = "step_retried"
    """An execution has failed, and this attempt executes the step again."""


ALL = frozenset(value for name, value in vars(Happening).items() if name.isupper())

observers: dict[str, tuple[Observer, ...]] = {}
"""A happening → who is told of it. It is looked up where something happens: if nobody is told, no record is made."""
_changing = threading.Lock()


def observe(observer: Observer, of: Collection[str] = ALL) -> None:
    """Tell *observer* of these happenings from now on. To say so twice changes nothing."""
    global observers  # noqa: PLW0603  it is replaced, so that others may look something up meanwhile
    with _changing:
        told = {happening: observers.get(happening, ()) for happening in of}
        new = {happening: (*others, observer) for happening, others in told.items() if observer not in others}
        observers = observers | new


def forget(observer: Observer) -> None:
    """Tell *observer* of nothing any more."""
    global observers  # noqa: PLW0603
    with _changing:
        left = {name: tuple(one for one in told if one != observer) for name, told in observers.items()}
        observers = {name: told for name, told in left.items() if told}


def tell(
    happening: str, run: Run, step: StepRecord | None = None, *, limits: tuple[type[BaseException], ...] = ()
) -> None:
    """Tell its observers. If one fails, this is logged, and nothing changes.

    *limits*: errors that are no failure of an observer, such as Celery's soft time limit. The first is raised when all
    have been told.
    """
    limit: BaseException | None = None
    for observer in observers.get(happening, ()):
        try:
            observer(happening, run, step)
        except limits as met:
            limit = limit or met
        except Exception:
            logger.exception("task %s: an observer of %s has failed", run.id, happening)
    if limit is not None:
        raise limit
