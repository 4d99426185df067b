"""How an attempt ends: one value, decided by one function from facts. :mod:`completion` carries it out.

The table in docs/design.md shows each end with what the journal, the result backend and Celery are told.
Imports neither Celery nor Redis.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from celery_durable.drivers.pulse import Overrun
from celery_durable.exceptions import (
    DurableError,
    DurableTimeoutError,
    JournalUnavailableError,
    RetryableError,
    TaskCancelled,
    TerminalError,
)
from celery_durable.interrupts import (
    EndRun,
    FailAttempt,
    Fenced,
    Interrupt,
    JournalLost,
    NotNow,
    RetryStep,
    Sleep,
    Stall,
)
from celery_durable.journal.port import OpenResult
from celery_durable.values.failure import leading, located, portable

# -- what is known -----------------------------------------------------------------------------------------------------


class Kind(Enum):
    """What kind of exception has ended a body."""

    FAILURE = "failure"
    RETRY = "retry"
    """``self.retry()``, or a ``Retry`` that the body raised."""
    IGNORE = "ignore"
    REJECT = "reject"
    REQUEUE = "requeue"
    """``Reject(requeue=True)``"""
    SHUTDOWN = "shutdown"
    """The worker ends the process."""
    EXIT = "exit"
    """The task itself ends the process, or its own coroutine."""


class PolicyAnswer(NamedTuple):
    """What the task retry policy says of a failed attempt."""

    delay: float | None
    """Seconds until the next attempt; None: there is none."""
    failures: int
    """How many attempts have failed by now."""
    most: int | None
    counts: dict[str, str]
    """What the journal is to know of that, if there is another attempt."""


def _nothing_left() -> Interrupt | None:
    return None


class Facts(NamedTuple):
    """What is known when a body has ended by an exception."""

    why: BaseException
    """The attempt's own interrupt; else what ``self.retry()`` raised; else what the body raised."""
    kind: Kind = Kind.FAILURE
    is_direct: bool = False
    """The task was called as a function."""
    is_eager: bool = False
    is_open: bool = True
    """The run was opened."""
    is_its_own: bool = True
    """Of an overrun: it is one of this attempt, and not of a step that called this task as a function."""
    is_time_limit: bool = False
    """It is Celery's soft time limit."""
    hit_by_time_limit: bool = False
    """That struck: also where the code that it struck failed by another error."""
    refuse_arguments: Callable[[BaseException], Interrupt] | None = None
    """Given where the arguments did not fit, and another build has begun the run."""
    has_entered: bool = True
    """The arguments fitted, and the function was entered."""
    left_over: Callable[[], Interrupt | None] = _nothing_left
    """What steps mean that the journal has, and the code did not reach."""
    spent: BaseException | None = None
    """What ``self.retry()`` raised because its limit is spent."""
    retry_due: float | None = None
    """When the retry is due that ``self.retry(throw=False)`` has sent."""
    policy: Callable[[BaseException], PolicyAnswer] | None = None
    """Of ``@durable_task``; None: Celery's rules hold."""
    is_autoretried: Callable[[BaseException], bool] = lambda _error: False
    """Whether Celery's ``autoretry_for`` names an error."""
    stall_left: float = 0.0
    """Seconds for which a run that fits no code may still wait."""


# -- how it ends -------------------------------------------------------------------------------------------------------


class Failed(NamedTuple):
    """The run has failed."""

    error: BaseException
    spent: PolicyAnswer | None = None
    """Given where the task retry policy has no further attempt."""


class Cancelled(NamedTuple):
    """The run was cancelled, and its code has ended by that."""

    error: BaseException


class Retried(NamedTuple):
    """Another attempt follows after a delay."""

    error: BaseException
    delay: float
    answer: PolicyAnswer | None = None
    """That of the task retry policy; None: a step asks for the retry."""


class Asleep(NamedTuple):
    """The run sleeps; the journal keeps the wait."""

    sleep: Sleep


class Stalled(NamedTuple):
    """The run waits for a worker whose code fits its journal."""

    stall: Stall
    left: float


class AskedToRetry(NamedTuple):
    """User code has used ``self.retry()``: the retry is sent, or kept by the journal."""

    said: BaseException


class RetrySent(NamedTuple):
    """The body has failed after ``self.retry(throw=False)``: the retry is on its way."""

    error: BaseException
    due: float


class Ignored(NamedTuple):
    """User code raised ``Ignore``: the run is over, and nothing is stored."""

    said: BaseException


class Requeued(NamedTuple):
    """User code raised ``Reject(requeue=True)``: the broker brings the message again."""

    said: BaseException


class LeftToAutoretry(NamedTuple):
    """Celery's autoretry, which is around the body, decides."""

    error: BaseException


class NotBegun(NamedTuple):
    """The message begins no attempt."""

    refusal: OpenResult


class TakenOver(NamedTuple):
    """Another attempt has the run, or it was revoked."""

    by: Interrupt


class JournalAway(NamedTuple):
    """The journal cannot be reached: Celery is to try the whole attempt again."""

    error: DurableError


class ProcessEnds(NamedTuple):
    """The process, or the coroutine, is told to end: another process goes on at once."""

    error: BaseException
    orderly: bool


class Passed(NamedTuple):
    """It is nothing of this run: it is raised as it is."""

    error: BaseException


End = (
    Failed | Cancelled | Retried | Asleep | Stalled | AskedToRetry | RetrySent | Ignored | Requeued | LeftToAutoretry
    | NotBegun | TakenOver | JournalAway | ProcessEnds | Passed
)  # fmt: skip


# -- the decision ------------------------------------------------------------------------------------------------------


def reason_of(raised: BaseException, interrupted_by: BaseException | None) -> BaseException:
    """Why a body has raised this: of an async one that we cancelled, what that was for."""
    error = leading(raised)
    return interrupted_by if isinstance(error, CancelledError) and isinstance(interrupted_by, Overrun) else error


def decide(facts: Facts) -> End:
    """How the attempt ends."""
    if isinstance(facts.why, Interrupt):
        return _by_interrupt(facts, facts.why)
    if facts.kind is Kind.FAILURE:
        return _failed_attempt(facts, facts.why)
    return _by_word(facts, facts.why)


def _by_interrupt(facts: Facts, why: Interrupt) -> End:  # noqa: PLR0911  a row per interrupt
    match why:
        case NotNow():
            return NotBegun(why.refusal)
        case RetryStep():
            return Retried(located(why.error, why), why.delay)
        case Overrun() if not facts.is_its_own:
            return Passed(why)
        case Sleep():
            return Asleep(why)
        case Stall() if facts.stall_left > 0:
            return Stalled(why, facts.stall_left)
        case FailAttempt() | Overrun():
            return _failed_attempt(facts, located(why.error, why))
        case EndRun() | Stall():
            return _over(facts, located(why.error, why))
        case JournalLost():
            return JournalAway(why.error)
    assert isinstance(why, Fenced)  # noqa: S101
    return TakenOver(why)


def _by_word(facts: Facts, said: BaseException) -> End:
    """User code used Celery's own means, or the process ends."""
    if facts.kind in (Kind.SHUTDOWN, Kind.EXIT):
        return ProcessEnds(said, orderly=facts.kind is Kind.SHUTDOWN)
    if facts.is_direct:
        return Passed(said)
    match facts.kind:
        case Kind.IGNORE:
            return Ignored(said)
        case Kind.REQUEUE:
            return Requeued(said)
        case Kind.REJECT:
            return _over(facts, said)
    return AskedToRetry(said)


def _failed_attempt(facts: Facts, error: BaseException) -> End:  # noqa: PLR0911  a row per case
    """An exception of the body, or of a step without retry options."""
    if facts.is_direct:
        return Passed(error)
    if not facts.is_open:
        late = JournalUnavailableError("a time limit struck before the journal was open")
        return JournalAway(late) if facts.is_time_limit else Passed(error)
    if facts.policy is not None and not (facts.has_entered or facts.hit_by_time_limit):
        return _misfit(facts, as_read_elsewhere(error))
    if isinstance(error, TerminalError) and (left := facts.left_over()) is not None:
        return decide(facts._replace(why=left))
    if _is_final(error) or error is facts.spent:
        return _over(facts, error)
    if facts.policy is not None:
        answer = facts.policy(error)
        return _over(facts, error, answer) if answer.delay is None else Retried(error, answer.delay, answer)
    if facts.is_autoretried(error):
        return LeftToAutoretry(error)
    return _over(facts, error) if facts.retry_due is None else RetrySent(error, facts.retry_due)


def _misfit(facts: Facts, misfit: BaseException) -> End:
    """The arguments did not fit: those of another build may, whose code a worker has somewhere."""
    if facts.refuse_arguments is None:
        return _over(facts, misfit)
    return decide(facts._replace(why=facts.refuse_arguments(misfit)))


def _is_final(error: BaseException) -> bool:
    """Whether no retry could change it."""
    return isinstance(error, DurableError) and not isinstance(error, (RetryableError, DurableTimeoutError))


def _over(facts: Facts, error: BaseException, spent: PolicyAnswer | None = None) -> End:
    return over(error, spent, is_direct=facts.is_direct, is_eager=facts.is_eager)


def over(error: BaseException, spent: PolicyAnswer | None = None, *, is_direct: bool, is_eager: bool) -> End:
    """The end of a run that does not go on after this error."""
    error = portable(error)
    if is_direct:
        return Passed(error)
    # Nobody cancels an eager run: its code has raised that itself.
    return Cancelled(error) if isinstance(error, TaskCancelled) and not is_eager else Failed(error, spent)


def as_read_elsewhere(error: BaseException) -> BaseException:
    """Arguments that do not fit the task, as an error that a caller in another process can read."""
    if type(error).__name__ != "ValidationError":
        return error
    refused = TerminalError(str(error), 400)
    refused.error_type = "ValidationError"
    refused.__cause__ = error
    return refused
