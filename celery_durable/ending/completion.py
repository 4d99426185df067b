"""The end of an attempt is carried out here, as :func:`ends.decide` has decided it.

The journal, the result backend and Celery are told, and the run is given back. A table says who does that for each end:
this module, :mod:`.suspension`, :mod:`.redelivery` or :mod:`.success`. The exceptions that are raised are for Celery.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, WorkerShutdown, WorkerTerminate

from celery_durable.delivery import backend, message, outcome
from celery_durable.delivery.announcement import Announcement
from celery_durable.drivers.pulse import Overrun
from celery_durable.interrupts import Fenced, Interrupt, JournalLost
from celery_durable.invocation import eager_journals, ends
from celery_durable.invocation.ends import (
    AskedToRetry,
    Asleep,
    Cancelled,
    End,
    EndedBy,
    Facts,
    Failed,
    Ignored,
    JournalUnavailable,
    LeftToAutoretry,
    NotBegun,
    Paused,
    PolicyAnswer,
    ProcessEnds,
    Requeued,
    Reraised,
    Retried,
    RetrySent,
    Stalled,
    Succeeded,
    TakenOver,
    ValueUntilRetry,
    decide,
    decide_success,
)
from celery_durable.invocation.invocation import Invocation
from celery_durable.invocation.session import RunSession
from celery_durable.journal.layout import REPLACED, Status
from celery_durable.seams.celery import EXIT_BY_SIGTERM, says_replaced
from celery_durable.steps.attempt import Attempt
from celery_durable.steps.failures import NOT_A_FAILURE
from celery_durable.values.failure import shown

from .redelivery import ReturnValue, reject_delivery
from .success import record_success
from .suspension import (
    await_retry,
    retry_without_journal,
    stall_left,
    suspend_and_show_retry,
    suspend_for_retry,
    suspend_for_sleep,
    suspend_paused,
    suspend_stalled,
)

logger = logging.getLogger("celery_durable")


def complete_with_value(invocation: Invocation, value: Any) -> Any:
    """End an attempt whose body has returned *value*. Returns the value of the task.

    Raises:
        BaseException: what ends the attempt in place of the value. It is for :func:`complete`.
    """
    attempt, retry = invocation.attempt, invocation.retry
    interrupt = invocation.interrupt
    if interrupt is not None:
        # User code has swallowed the interrupt in a bare ``except``. The value that it returned does not count.
        raise interrupt
    if retry.raised is not None:
        raise retry.raised
    if invocation.direct or attempt is None:
        return value
    attempt.check_all_awaited()
    if retry.due is None:
        attempt.check_nothing_left()
    if invocation.task.auto_retry and hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    carry_out(invocation, decide_success(value, retry.due))
    return value


def complete(invocation: Invocation, error: BaseException) -> Any:
    """End an attempt whose body has ended by *error*. Returns the value of the task, or raises what Celery handles."""
    try:
        told = _decide_and_carry_out(invocation, error)
    except BaseException as met:
        told = met
    if isinstance(told, ReturnValue):
        return told.value
    if not isinstance(invocation.end, LeftToAutoretry):
        invocation.raised = told
    # The traceback begins where the error was raised. The lines of this module say nothing about it.
    level = told.__traceback__
    while level is not None and level.tb_frame.f_globals is globals():
        level = level.tb_next
    try:
        raise told.with_traceback(level or told.__traceback__)
    finally:
        del told, error  # they refer to this frame, and the frame to them: see Runner


def _decide_and_carry_out(invocation: Invocation, error: BaseException) -> BaseException | ReturnValue:
    try:
        # The attempt's own interrupt counts, even if user code has swallowed it.
        return carry_out(invocation, decide(facts_of(invocation, error, invocation.interrupt)))
    except Interrupt as met:
        # While the end was carried out, a fence, a lost journal, or a step that was not reached has stopped it.
        late = met
    try:
        return carry_out(invocation, decide(facts_of(invocation, late, late)))
    except (Fenced, JournalLost) as again:
        # Neither the journal nor the broker accepts the end. The next attempt goes on from what they have.
        _session(invocation).close_attempt()
        logger.error("task %s: its end cannot be recorded, another attempt goes on: %s", invocation.request.id, again)
        end = Reject(str(again), requeue=True) if invocation.task.acks_late else Ignore(str(again))
        end.__cause__ = again
        return end


def carry_out(invocation: Invocation, end: End) -> BaseException | ReturnValue:
    """Tell the journal and the result backend. Returns what Celery gets: an exception, or the value of the task."""
    invocation.end = end
    carried_out: BaseException | ReturnValue = _CARRY_OUT[type(end)](invocation, end)
    return carried_out


def _session(invocation: Invocation) -> RunSession:
    assert invocation.session is not None  # noqa: S101  without a session, nothing here is called
    return invocation.session


# -- what is known -----------------------------------------------------------------------------------------------------


def facts_of(invocation: Invocation, error: BaseException, interrupt: Interrupt | None) -> Facts:
    """The facts by which :func:`ends.decide` decides."""
    attempt, task = invocation.attempt, invocation.task
    interrupted_by = attempt.pulse.interrupted_by if attempt is not None else None
    why = interrupt or invocation.retry.raised or ends.reason_of(error, interrupted_by)
    facts = Facts(
        why,
        _ended_by(why),
        is_direct=invocation.direct,
        is_eager=invocation.eager,
        is_open=attempt is not None,
        is_its_own=not isinstance(why, Overrun) or (attempt is not None and why.pulse is attempt.pulse),
        is_time_limit=isinstance(why, SoftTimeLimitExceeded),
        hit_by_time_limit=_is_hit_by_time_limit(why),
        has_entered=invocation.arguments.have_fitted,
        exhausted=invocation.retry.exhausted,
        retry_due=invocation.retry.due,
        is_autoretried=partial(_is_autoretried, task),
    )
    if attempt is None:
        return facts
    return facts._replace(
        refuse_arguments=attempt.refuse_arguments if attempt.outbox.names_build else None,
        left_over=partial(_left_over, attempt),
        policy=partial(_policy, invocation, attempt) if task.auto_retry else None,
        stall_left=stall_left(_session(invocation), attempt),
    )


def _ended_by(error: BaseException) -> EndedBy:
    match error:
        case Retry():
            return EndedBy.RETRY
        case Ignore():
            return EndedBy.IGNORE
        case Reject():
            return EndedBy.REQUEUE if error.requeue else EndedBy.REJECT  # type: ignore[attr-defined]
        case _ if isinstance(error, NOT_A_FAILURE):
            return EndedBy.SHUTDOWN if _is_shutdown(error) else EndedBy.EXIT
    return EndedBy.FAILURE


def _is_shutdown(error: BaseException) -> bool:
    """Whether the worker ends the process. The alternative is that the task itself does."""
    by_signal = isinstance(error, SystemExit) and error.code == EXIT_BY_SIGTERM
    return by_signal or isinstance(error, (WorkerShutdown, WorkerTerminate))


def _is_hit_by_time_limit(error: BaseException) -> bool:
    return isinstance(error, SoftTimeLimitExceeded) or isinstance(error.__context__, SoftTimeLimitExceeded)


def _is_autoretried(task: Any, error: BaseException) -> bool:
    return isinstance(error, tuple(getattr(task, "autoretry_for", None) or ()))


def _left_over(attempt: Attempt) -> Interrupt | None:
    try:
        attempt.check_nothing_left()
    except Interrupt as interrupt:
        return interrupt
    return None


def _policy(invocation: Invocation, attempt: Attempt, error: BaseException) -> PolicyAnswer:
    """What the task retry policy says about this *error*."""
    rules = invocation.task.retry_rules
    failures = attempt.state.failures_now()
    if not rules.resets_on_progress:
        # The limit is Celery's max_retries: it counts all retries except those of steps.
        failures += message.own_retries(invocation.request)
    since = attempt.state.failing_since(failures)
    delay = rules.next(failures, (attempt.now() - since) / 1000, error)
    counts = {"failures": str(attempt.state.failures_now()), "failing_since": str(since)}
    # If somebody has cancelled the run, and its code did not get to know it, nobody has to be asked once more.
    pauses = delay is None and rules.pauses_after(error) and not attempt.pulse.cancel_requested
    return PolicyAnswer(delay, failures, rules.backoff.max_attempts, counts, pauses)


# -- the run is over ---------------------------------------------------------------------------------------------------


def _record_failure(invocation: Invocation, end: Failed) -> BaseException:
    if end.exhausted is not None:
        # Celery logs the error itself. This line says only why it is final.
        level = logging.INFO if isinstance(end.error, invocation.task.throws) else logging.WARNING
        logger.log(
            level, "task %s: attempt %d failed for good: %s",
            invocation.request.id, end.exhausted.failures, shown(end.error),
        )  # fmt: skip
    _session(invocation).finish(Status.FAILED, outcome.encode_error(end.error))
    eager_journals.forget(invocation)
    return end.error


def _record_cancellation(invocation: Invocation, end: Cancelled) -> BaseException:
    session, request = _session(invocation), invocation.request
    session.finish(Status.REVOKED, outcome.encode_error(end.error))
    logger.info("task %s: cancelled", request.id)
    if backend.store_revoked(invocation.task, request, end.error):
        return Announcement.of_cancellation(end.error)
    session.outcome.mark_failed()
    return Ignore("the run was cancelled, but this could not be delivered")


def _record_ignored(invocation: Invocation, end: Ignored) -> BaseException:
    session = _session(invocation)
    if session.attempt is not None and says_replaced(end.raised):
        session.attempt.outbox.staged[REPLACED] = "1"
    session.finish(Status.IGNORED, None)
    return end.raised


# -- the run goes on ---------------------------------------------------------------------------------------------------


def _requeue(invocation: Invocation, end: Requeued) -> BaseException:
    # The message goes back to the broker, and the broker delivers it again.
    session = _session(invocation)
    session.suspend(0.0, message.resume_as_is(invocation.request), slack=session.settings.lease)
    return end.raised


def _suspend_until_users_retry(invocation: Invocation, end: AskedToRetry) -> BaseException:
    said: Any = end.raised
    due = invocation.retry.due
    if due is None:
        due = time.monotonic() + message.seconds_until(invocation.task, said.when)
    # If the run could not be opened, Celery alone tells of the retry.
    if invocation.attempt is not None and not _session(invocation).has_ended:
        suspend_and_show_retry(invocation, said.exc, partial(await_retry, invocation, due))
    return end.raised


def _await_sent_retry(invocation: Invocation, end: RetrySent) -> BaseException:
    await_retry(invocation, end.due)
    return end.error


def _let_value_stand(invocation: Invocation, end: ValueUntilRetry) -> ReturnValue:
    await_retry(invocation, end.due)
    return ReturnValue(end.value)


def _give_run_up(invocation: Invocation, end: ProcessEnds) -> BaseException:
    _session(invocation).give_up(orderly=end.orderly)
    return end.error


def _leave_run(invocation: Invocation, end: TakenOver) -> BaseException:
    logger.warning(
        "task %s: another attempt has taken over, or the run was revoked; this attempt ends", invocation.request.id
    )
    _session(invocation).close_attempt()
    ignored = Ignore("another attempt has taken over")
    ignored.__cause__ = end.by
    return ignored


def _answer_delivery(invocation: Invocation, end: NotBegun) -> BaseException | ReturnValue:
    session = _session(invocation)
    fresh = session.delivery is not None and session.delivery.fresh
    return reject_delivery(end.refusal, invocation.task, invocation.request, session, fresh=fresh)


def _raise_as_is(_invocation: Invocation, end: Reraised | LeftToAutoretry) -> BaseException:
    return end.error


_CARRY_OUT: dict[type, Callable[[Invocation, Any], BaseException | ReturnValue]] = {
    Succeeded: record_success,
    ValueUntilRetry: _let_value_stand,
    Failed: _record_failure,
    Cancelled: _record_cancellation,
    Ignored: _record_ignored,
    Retried: suspend_for_retry,
    Asleep: suspend_for_sleep,
    Paused: suspend_paused,
    Stalled: suspend_stalled,
    JournalUnavailable: retry_without_journal,
    Requeued: _requeue,
    AskedToRetry: _suspend_until_users_retry,
    RetrySent: _await_sent_retry,
    ProcessEnds: _give_run_up,
    TakenOver: _leave_run,
    NotBegun: _answer_delivery,
    LeftToAutoretry: _raise_as_is,
    Reraised: _raise_as_is,
}
