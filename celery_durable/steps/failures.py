"""What the failure of a step leads to: another execution, another attempt, or a failure that is recorded for good."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any, NoReturn

from celery_durable import happenings
from celery_durable.drivers.driver import Driver
from celery_durable.drivers.pulse import Overrun
from celery_durable.exceptions import RetriesExhausted, RetryableError, TaskCancelled, TerminalError
from celery_durable.happenings import Happening
from celery_durable.interrupts import FailAttempt, Interrupt, RetryStep
from celery_durable.journal.entries import Entry, open_entry
from celery_durable.journal.layout import Cancellation, Kind, State
from celery_durable.values.codec import NotEncodable
from celery_durable.values.failure import describe, failure_of, leading, shown, text_of, traceback_of

from .attempt import Attempt
from .record import acknowledged, send
from .step import Step

logger = logging.getLogger("celery_durable")

# These ask the process, or this coroutine, to stop. They say nothing about the step.
NOT_A_FAILURE: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit, GeneratorExit, Interrupt)
try:
    from greenlet import GreenletExit  # type: ignore[import-untyped, unused-ignore]

    NOT_A_FAILURE = (*NOT_A_FAILURE, GreenletExit)
except ImportError:
    pass


def meaning(step: Step, raised: BaseException) -> BaseException:
    """The error behind the exception that has ended the action."""
    pulse = step.pulse
    if pulse.closed and pulse.interrupt is not None:
        return pulse.interrupt
    cause = leading(raised)
    if isinstance(raised, asyncio.CancelledError) and pulse.interrupted_by is not None:
        cause = pulse.interrupted_by
    if isinstance(cause, Overrun) and cause.pulse is pulse:
        # The traceback says at which line the time was over.
        return cause.error.with_traceback(raised.__traceback__)
    return cause


def is_failure(step: Step, error: BaseException, driver: Driver) -> bool:
    """Whether the action has failed by this error. Other errors say what becomes of the task, or end the process."""
    return not (isinstance(error, (*NOT_A_FAILURE, *step.pulse.info.control_flow)) or driver.is_cancelled(error))


async def fail(step: Step, error: BaseException, driver: Driver) -> float:
    """Returns the seconds to wait inside this attempt before the next execution. Raises in every other case."""
    attempt, options = step.attempt, step.options
    step.check_violation()
    if attempt.info.direct:
        raise error
    if isinstance(error, TerminalError):
        await _give_up(step, error, driver)
    if isinstance(error, options.non_retryable):
        await _give_up(step, TerminalError(error), driver)
    facts: dict[str, Any] = {"error": describe(error, with_args=False)}
    if options.backoff is None:
        attempt.outbox.stage(step.position, open_entry(step.name, State.RETRYING, step.executions, **facts))
        logger.warning("%s failed (execution %d): %s", step.where, step.executions, shown(error))
        step.unfinished = True
        raise step.pulse.stop(FailAttempt(step.name, error)) from error
    if step.first is None:
        step.first = attempt.now()
    elapsed = (attempt.now() - step.first) / 1000
    delay = options.backoff.next(step.executions, elapsed, error)
    if delay is None:
        await _give_up(step, _exhausted(step, error, elapsed), driver)
        raise AssertionError  # pragma: no cover  _give_up always raises
    logger.warning(
        "%s failed (execution %d of %s): %s; next try in %g s",
        step.where, step.executions, options.backoff.max_attempts or "any number", shown(error), delay,
    )  # fmt: skip
    attempt.outbox.stage(
        step.position, open_entry(step.name, State.RETRYING, step.executions, first=step.first, **facts)
    )
    if delay > attempt.settings.inline_retry_limit:
        step.unfinished = True
        raise step.pulse.stop(RetryStep(step.name, error, delay)) from error
    return 0.0 if attempt.info.eager else delay


async def count_the_dead(step: Step, entry: Entry, driver: Driver) -> None:
    """Count an execution that has died with its process. If it was the last one, the step has failed."""
    backoff = step.options.backoff
    if entry.state != State.STARTED or backoff is None or step.pulse.cancel_requested:
        return
    now = step.attempt.now()
    elapsed = (now - (entry.first or now)) / 1000
    spent = backoff.max_attempts is not None and entry.executions >= backoff.max_attempts
    late = backoff.max_duration is not None and elapsed > backoff.max_duration
    if spent or late:
        died = ProcessDied(f"the worker process died during execution {entry.executions}")
        await _give_up(step, _exhausted(step, died, elapsed), driver)


async def _give_up(step: Step, error: TerminalError, driver: Driver) -> None:
    """Record a terminal failure, then raise it as every replay will."""
    try:
        described = describe(error)
    except NotEncodable as reason:
        raise step.refuse(
            f"its {type(error).__name__}, whose arguments are to be plain data, cannot be recorded: {reason}"
        ) from error
    attempt = step.attempt
    at = attempt.now()
    facts = {"at": at, "begun": attempt.replay.begun(step.position), "error": described}
    send(step, open_entry(step.name, State.FAILED, step.executions, **facts), driver)
    late = await acknowledged(step, driver)
    logger.warning("%s failed for good (execution %d): %s", step.where, step.executions, error)
    if Happening.STEP_FAILED in happenings.observers:
        step.tell(Happening.STEP_FAILED, step.shown(State.FAILED, at, error=attempt.redaction.error(described)))
    if late is not None:
        raise late
    raise failure_of(described).with_traceback(error.__traceback__) from error.__cause__


def _exhausted(step: Step, error: BaseException, elapsed: float) -> RetriesExhausted:
    times = "once" if step.executions == 1 else f"{step.executions} times"
    exhausted = RetriesExhausted(
        f"step {step.name!r} failed {times} within {elapsed:.3g} s; "
        f"the last error was {type(error).__name__}: {text_of(error)}",
        error.status_code if isinstance(error, RetryableError) else 500,
        None,
        step.executions,
        timedelta(seconds=elapsed),
        type(error).__qualname__,
        text_of(error),
        traceback_of(error),
    )
    exhausted.__cause__ = error
    return exhausted


class ProcessDied(Exception):
    """Stands for an execution whose process died."""


async def cancel(
    attempt: Attempt,
    position: str,
    driver: Driver,
    name: str,
    executions: int = 0,
    *,
    kind: str = Kind.STEP,
    **facts: Any,
) -> NoReturn:
    """Raise ``TaskCancelled`` instead of executing an operation. The error is recorded in its entry, once in a run."""
    error = TaskCancelled(f"the run was cancelled before {name!r}")
    entry = open_entry(name, State.CANCELLED, executions, kind, at=attempt.now(), error=describe(error), **facts)
    attempt.pulse.cancellation_told = True
    attempt.outbox.staged["cancel"] = Cancellation.RAISED
    attempt.outbox.record(position, entry)
    await driver.flush()
    logger.info("task %s: cancelled at %r", attempt.info.task_id, name)
    raise error
