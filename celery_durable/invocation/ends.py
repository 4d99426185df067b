"""How an attempt ends is one value. One function decides it from facts, and the room ``ending`` carries it out.

The table in docs/design.md shows for each end what the journal, the result backend and Celery are told. This module
imports neither Celery nor Redis.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

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


class EndedBy(Enum):
    """The exception that has ended a body, by what it means to Celery."""

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
    """What the task retry policy says about a failed attempt."""

    delay: float | None
    """Seconds until the next attempt; None: no attempt is left."""
    failures: int
    """How many attempts have failed by now."""
    limit: int | None
    """How many attempts may fail; None: any number."""
    counts: dict[str, str]
    """Fields of the journal, if another attempt follows."""
    pauses: bool = False
    """If no attempt is left, somebody is to decide how the run goes on."""


def _nothing_left() -> Interrupt | None:
    return None


class Facts(NamedTuple):
    """What is known when a body has ended by an exception."""

    why: BaseException
    """The interrupt of the attempt; else what ``self.retry()`` has raised; else what the body has raised."""
    ended_by: EndedBy = EndedBy.FAILURE
    is_direct: bool = False
    """The task was called as a function."""
    is_eager: bool = False
    is_open: bool = True
    """The run was opened."""
    is_its_own: bool = True
    """If *why* is an overrun: this attempt took too long, and not one that has called this task as a function."""
    is_time_limit: bool = False
    """The exception is Celery's soft time limit."""
    hit_by_time_limit: bool = False
    """The soft time limit was raised, even if the code that got it has failed by another error."""
    refuse_arguments: Callable[[BaseException], Interrupt] | None = None
    """Turns an error of the arguments into a stall; given if another build has begun the run."""
    has_entered: bool = True
    """The arguments fitted, and the function has begun."""
    left_over: Callable[[], Interrupt | None] = _nothing_left
    """The interrupt, if the journal has steps that the code did not reach."""
    exhausted: BaseException | None = None
    """The error that ``self.retry()`` has raised because ``max_retries`` was reached."""
    retry_due: float | None = None
    """When the retry of ``self.retry(throw=False)`` is due, by the monotonic clock (s); None: none was sent."""
    policy: Callable[[BaseException], PolicyAnswer] | None = None
    """The policy of a ``@durable_task``; None: Celery's rules hold."""
    is_autoretried: Callable[[BaseException], bool] = lambda _error: False
    """Whether Celery's ``autoretry_for`` names an error."""
    stall_left: float = 0.0
    """Seconds for which the run may still wait for a worker whose code fits."""


# -- how it ends -------------------------------------------------------------------------------------------------------


class Succeeded(NamedTuple):
    """The body has returned: the run has succeeded."""

    value: Any


class ValueUntilRetry(NamedTuple):
    """The body has returned after ``self.retry(throw=False)``: its value stands until the retry has run."""

    value: Any
    due: float


class Failed(NamedTuple):
    """The run has failed."""

    error: BaseException
    exhausted: PolicyAnswer | None = None
    """The answer of the task retry policy, if it allows no further attempt."""


class Cancelled(NamedTuple):
    """The run was cancelled, and ``TaskCancelled`` has left its body."""

    error: BaseException


class Retried(NamedTuple):
    """Another attempt follows after a delay."""

    error: BaseException
    delay: float
    answer: PolicyAnswer | None = None
    """The answer of the task retry policy; None: a step asks for the retry."""


class Asleep(NamedTuple):
    """The run sleeps; the journal keeps the wait."""

    sleep: Sleep


class Paused(NamedTuple):
    """No attempt is left, and the run waits until somebody retries or cancels it."""

    error: BaseException
    exhausted: PolicyAnswer


class Stalled(NamedTuple):
    """The run waits for a worker whose code fits its journal."""

    stall: Stall
    left: float
    """Seconds for which it may still wait."""


class AskedToRetry(NamedTuple):
    """User code has used ``self.retry()``: the retry is sent, or kept by the journal."""

    raised: BaseException


class RetrySent(NamedTuple):
    """The body has failed after ``self.retry(throw=False)``: the retry was sent already."""

    error: BaseException
    due: float


class Ignored(NamedTuple):
    """User code raised ``Ignore``: the run is over, and nothing is stored."""

    raised: BaseException


class Requeued(NamedTuple):
    """User code raised ``Reject(requeue=True)``: the broker delivers the message again."""

    raised: BaseException


class LeftToAutoretry(NamedTuple):
    """Celery's autoretry decides: it gets the error of the body."""

    error: BaseException


class NotBegun(NamedTuple):
    """The message begins no attempt: :mod:`redelivery` answers it."""

    refusal: OpenResult


class TakenOver(NamedTuple):
    """Another attempt has the run, or it was revoked."""

    by: Interrupt


class JournalUnavailable(NamedTuple):
    """The journal does not answer: Celery retries the whole attempt."""

    error: DurableError


class ProcessEnds(NamedTuple):
    """The process or the coroutine has to end: another process goes on at once."""

    error: BaseException
    orderly: bool


class Reraised(NamedTuple):
    """The exception is no end of this run: it is raised as it is."""

    error: BaseException


End = (
    Succeeded | ValueUntilRetry
    | Failed | Cancelled | Retried | Asleep | Paused | Stalled | AskedToRetry | RetrySent | Ignored | Requeued
    | LeftToAutoretry | NotBegun | TakenOver | JournalUnavailable | ProcessEnds | Reraised
)  # fmt: skip


# -- the decision ------------------------------------------------------------------------------------------------------


def reason_of(raised: BaseException, interrupted_by: BaseException | None) -> BaseException:
    """The reason for *raised*: if the library has cancelled an async body, the overrun for which it did so."""
    error = leading(raised)
    return interrupted_by if isinstance(error, CancelledError) and isinstance(interrupted_by, Overrun) else error


def decide_success(value: Any, retry_due: float | None) -> End:
    """How the attempt ends if its body has returned *value*, and nothing speaks against that.

    *retry_due* is the fact of :class:`Facts`. A task without steps comes here, too, so this asks for no more facts.
    """
    return Succeeded(value) if retry_due is None else ValueUntilRetry(value, retry_due)


def decide(facts: Facts) -> End:
    """How the attempt ends if its body has ended by an exception."""
    if isinstance(facts.why, Interrupt):
        return _by_interrupt(facts, facts.why)
    if facts.ended_by is EndedBy.FAILURE:
        return _failed_attempt(facts, facts.why)
    return _by_celerys_exception(facts, facts.why)


def _by_interrupt(facts: Facts, why: Interrupt) -> End:  # noqa: PLR0911  a row per interrupt
    match why:
        case NotNow():
            return NotBegun(why.refusal)
        case RetryStep():
            return Retried(located(why.error, why), why.delay)
        case Overrun() if not facts.is_its_own:
            return Reraised(why)
        case Sleep():
            return Asleep(why)
        case Stall() if facts.stall_left > 0:
            return Stalled(why, facts.stall_left)
        case FailAttempt() | Overrun():
            return _failed_attempt(facts, located(why.error, why))
        case EndRun() | Stall():
            return _over(facts, located(why.error, why))
        case JournalLost():
            return JournalUnavailable(why.error)
    assert isinstance(why, Fenced)  # noqa: S101
    return TakenOver(why)


def _by_celerys_exception(facts: Facts, raised: BaseException) -> End:
    """The end after one of Celery's own exceptions, or after one that ends the process."""
    if facts.ended_by in (EndedBy.SHUTDOWN, EndedBy.EXIT):
        return ProcessEnds(raised, orderly=facts.ended_by is EndedBy.SHUTDOWN)
    if facts.is_direct:
        return Reraised(raised)
    match facts.ended_by:
        case EndedBy.IGNORE:
            return Ignored(raised)
        case EndedBy.REQUEUE:
            return Requeued(raised)
        case EndedBy.REJECT:
            return _over(facts, raised)
    return AskedToRetry(raised)


def _failed_attempt(facts: Facts, error: BaseException) -> End:  # noqa: PLR0911  a row per case
    """The end after an exception of the body, or of a step without retry options."""
    if facts.is_direct:
        return Reraised(error)
    if not facts.is_open:
        late = JournalUnavailableError("a time limit was reached before the journal was open")
        return JournalUnavailable(late) if facts.is_time_limit else Reraised(error)
    if facts.policy is not None and not (facts.has_entered or facts.hit_by_time_limit):
        return _misfit(facts, as_readable_elsewhere(error))
    if isinstance(error, TerminalError) and (left := facts.left_over()) is not None:
        return decide(facts._replace(why=left))
    if _is_final(error) or error is facts.exhausted:
        return _over(facts, error)
    if facts.policy is not None:
        return _as_policy_says(facts, error, facts.policy(error))
    if facts.is_autoretried(error):
        return LeftToAutoretry(error)
    return _over(facts, error) if facts.retry_due is None else RetrySent(error, facts.retry_due)


def _as_policy_says(facts: Facts, error: BaseException, answer: PolicyAnswer) -> End:
    if answer.delay is not None:
        return Retried(error, answer.delay, answer)
    # The caller of an eager run gets its end at once.
    return Paused(error, answer) if answer.pauses and not facts.is_eager else _over(facts, error, answer)


def _misfit(facts: Facts, misfit: BaseException) -> End:
    """The end if the arguments did not fit. If another build has begun the run, a worker may have its code."""
    if facts.refuse_arguments is None:
        return _over(facts, misfit)
    return decide(facts._replace(why=facts.refuse_arguments(misfit)))


def _is_final(error: BaseException) -> bool:
    """Whether no retry could help."""
    return isinstance(error, DurableError) and not isinstance(error, (RetryableError, DurableTimeoutError))


def _over(facts: Facts, error: BaseException, exhausted: PolicyAnswer | None = None) -> End:
    return over(error, exhausted, is_direct=facts.is_direct, is_eager=facts.is_eager)


def over(error: BaseException, exhausted: PolicyAnswer | None = None, *, is_direct: bool, is_eager: bool) -> End:
    """The end of a run that does not go on after this error."""
    error = portable(error)
    if is_direct:
        return Reraised(error)
    # Nobody can cancel an eager run. So its own code has raised the error.
    return Cancelled(error) if isinstance(error, TaskCancelled) and not is_eager else Failed(error, exhausted)


def as_readable_elsewhere(error: BaseException) -> BaseException:
    """An error of the arguments, in a form that a caller in another process can read."""
    if type(error).__name__ != "ValidationError":
        return error
    refused = TerminalError(str(error), 400)
    refused.error_type = "ValidationError"
    refused.__cause__ = error
    return refused
