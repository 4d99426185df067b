"""Carries the end of an attempt out: tells the journal, the result backend and Celery, and lets the run go.

The one place that does. What it raises is Celery's to handle. A good end is :mod:`execution`'s own.
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
    Facts,
    Failed,
    Ignored,
    JournalAway,
    Kind,
    LeftToAutoretry,
    NotBegun,
    Passed,
    PolicyAnswer,
    ProcessEnds,
    Requeued,
    Retried,
    RetrySent,
    Stalled,
    TakenOver,
    decide,
)
from celery_durable.invocation.invocation import Invocation
from celery_durable.invocation.session import RunSession
from celery_durable.journal.layout import Status
from celery_durable.seams.celery import EXIT_BY_SIGTERM
from celery_durable.steps.attempt import Attempt
from celery_durable.steps.failures import NOT_A_FAILURE
from celery_durable.values.failure import shown

from .redelivery import Value, reject_delivery
from .suspension import asleep, await_retry, journal_away, retried, stall_left, stalled, suspend_as_retried

logger = logging.getLogger("celery_durable")


def complete(invocation: Invocation, error: BaseException, interrupt: Interrupt | None = None) -> Any:
    """Turn what ended a body into what Celery is to do: the value of the task, or an exception.

    *interrupt*: by which the attempt has ended, even if user code has swallowed it.
    """
    try:
        told = _carried_out(invocation, error, interrupt)
    except BaseException as met:
        told = met
    if isinstance(told, Value):
        return told.value
    if not isinstance(invocation.end, LeftToAutoretry):
        invocation.raised = told
    # Where it was raised, if it was not here; how we came to pass it on says nothing.
    place = told.__traceback__
    while place is not None and place.tb_frame.f_globals is globals():
        place = place.tb_next
    raise told.with_traceback(place or told.__traceback__)


def _carried_out(invocation: Invocation, error: BaseException, interrupt: Interrupt | None) -> BaseException | Value:
    try:
        return carry_out(invocation, decide(facts_of(invocation, error, interrupt)))
    except Interrupt as met:
        # The end itself met a fence, a lost journal, or steps that were left over.
        late = met
    try:
        return carry_out(invocation, decide(facts_of(invocation, late, late)))
    except (Fenced, JournalLost) as again:
        # Neither the journal nor the broker takes a word of it: whoever comes next goes on from what they have.
        _session(invocation).close_attempt()
        logger.error("task %s: its end cannot be recorded, another attempt goes on: %s", invocation.request.id, again)
        end = Reject(str(again), requeue=True) if invocation.task.acks_late else Ignore(str(again))
        end.__cause__ = again
        return end


def carry_out(invocation: Invocation, end: End) -> BaseException | Value:
    """Tell the journal, the result backend and Celery; what Celery is to be given."""
    invocation.end = end
    carried_out: BaseException | Value = _CARRY_OUT[type(end)](invocation, end)
    return carried_out


def _session(invocation: Invocation) -> RunSession:
    assert invocation.session is not None  # noqa: S101  of a body that has not used its context nothing is ours
    return invocation.session


# -- what is known -----------------------------------------------------------------------------------------------------


def facts_of(invocation: Invocation, error: BaseException, interrupt: Interrupt | None) -> Facts:
    """What :func:`ends.decide` decides by."""
    attempt, task = invocation.attempt, invocation.task
    interrupted_by = attempt.pulse.interrupted_by if attempt is not None else None
    why = interrupt or invocation.retry.raised or ends.reason_of(error, interrupted_by)
    facts = Facts(
        why,
        _kind(why),
        is_direct=invocation.direct,
        is_eager=invocation.eager,
        is_open=attempt is not None,
        is_time_limit=isinstance(why, SoftTimeLimitExceeded),
        hit_by_time_limit=_is_hit_by_time_limit(why),
        has_entered=invocation.entered,
        spent=invocation.retry.exhausted,
        retry_due=invocation.retry.due,
        is_autoretried=partial(_is_autoretried, task),
    )
    if attempt is None:
        return facts
    return facts._replace(
        is_its_own=not isinstance(why, Overrun) or why.pulse is attempt.pulse,
        refuse_arguments=attempt.refuse_arguments if attempt.outbox.names_build else None,
        left_over=partial(_left_over, attempt),
        policy=partial(_policy, invocation, attempt) if task.auto_retry else None,
        stall_left=stall_left(_session(invocation), attempt),
    )


def _kind(error: BaseException) -> Kind:
    match error:
        case Retry():
            return Kind.RETRY
        case Ignore():
            return Kind.IGNORE
        case Reject():
            return Kind.REQUEUE if error.requeue else Kind.REJECT  # type: ignore[attr-defined]
        case _ if isinstance(error, NOT_A_FAILURE):
            return Kind.SHUTDOWN if _is_shutdown(error) else Kind.EXIT
    return Kind.FAILURE


def _is_shutdown(error: BaseException) -> bool:
    """Whether the worker ends the process, and not the task itself."""
    by_signal = isinstance(error, SystemExit) and error.code == EXIT_BY_SIGTERM
    return by_signal or isinstance(error, (WorkerShutdown, WorkerTerminate))


def _is_hit_by_time_limit(error: BaseException) -> bool:
    return isinstance(error, SoftTimeLimitExceeded) or isinstance(error.__context__, SoftTimeLimitExceeded)


def _is_autoretried(task: Any, error: BaseException) -> bool:
    return isinstance(error, tuple(getattr(task, "autoretry_for", None) or ()))


def _left_over(attempt: Attempt) -> Interrupt | None:
    try:
        attempt.replay.check_nothing_left()
    except Interrupt as interrupt:
        return interrupt
    return None


def _policy(invocation: Invocation, attempt: Attempt, error: BaseException) -> PolicyAnswer:
    """What the task retry policy says."""
    rules = invocation.task.retry_rules
    failures = attempt.state.failures_now()
    if not rules.resets_on_progress:
        # Celery's max_retries: all retries but those of steps share it.
        failures += message.own_retries(invocation.request)
    since = attempt.state.failing_since(failures)
    delay = rules.next(failures, (attempt.now() - since) / 1000, error)
    counts = {"failures": str(attempt.state.failures_now()), "failing_since": str(since)}
    return PolicyAnswer(delay, failures, rules.backoff.max_attempts, counts)


# -- the run is over ---------------------------------------------------------------------------------------------------


def _failed(invocation: Invocation, end: Failed) -> BaseException:
    if end.spent is not None:
        # Celery logs the error itself, as one; here is only why it is final.
        level = logging.INFO if isinstance(end.error, invocation.task.throws) else logging.WARNING
        logger.log(
            level, "task %s: attempt %d failed for good: %s",
            invocation.request.id, end.spent.failures, shown(end.error),
        )  # fmt: skip
    _session(invocation).finish(Status.FAILED, outcome.encode_error(end.error))
    eager_journals.forget(invocation)
    return end.error


def _cancelled(invocation: Invocation, end: Cancelled) -> BaseException:
    session, request = _session(invocation), invocation.request
    session.finish(Status.REVOKED, outcome.encode_error(end.error))
    logger.info("task %s: cancelled", request.id)
    if backend.store_revoked(invocation.task, request, end.error):
        return Announcement.of_cancellation(end.error)
    session.outcome.failed()
    return Ignore("the run was cancelled, which could not be delivered")


def _ignored(invocation: Invocation, end: Ignored) -> BaseException:
    _session(invocation).finish(Status.IGNORED, None)
    return end.said


# -- the run goes on ---------------------------------------------------------------------------------------------------


def _requeued(invocation: Invocation, end: Requeued) -> BaseException:
    # The message goes back to the broker, which brings it again.
    session = _session(invocation)
    session.suspend(0.0, message.resume_as_is(invocation.request), slack=session.settings.lease)
    return end.said


def _asked_to_retry(invocation: Invocation, end: AskedToRetry) -> BaseException:
    said: Any = end.said
    due = invocation.retry.due
    if due is None:
        due = time.monotonic() + message.seconds_until(invocation.task, said.when)
    if not _session(invocation).has_ended:
        suspend_as_retried(invocation, said.exc, partial(await_retry, invocation, due))
    return end.said


def _retry_sent(invocation: Invocation, end: RetrySent) -> BaseException:
    await_retry(invocation, end.due)
    return end.error


def _process_ends(invocation: Invocation, end: ProcessEnds) -> BaseException:
    _session(invocation).give_up(orderly=end.orderly)
    return end.error


def _taken_over(invocation: Invocation, end: TakenOver) -> BaseException:
    logger.warning(
        "task %s: another attempt has taken over, or the run was revoked; this attempt ends", invocation.request.id
    )
    _session(invocation).close_attempt()
    ignored = Ignore("another attempt has taken over")
    ignored.__cause__ = end.by
    return ignored


def _not_begun(invocation: Invocation, end: NotBegun) -> BaseException | Value:
    fresh = invocation.delivery is not None and invocation.delivery.fresh
    return reject_delivery(end.refusal, invocation.task, invocation.request, _session(invocation), fresh=fresh)


def _as_it_is(_invocation: Invocation, end: Passed | LeftToAutoretry) -> BaseException:
    return end.error


_CARRY_OUT: dict[type, Callable[[Invocation, Any], BaseException | Value]] = {
    Failed: _failed,
    Cancelled: _cancelled,
    Ignored: _ignored,
    Retried: retried,
    Asleep: asleep,
    Stalled: stalled,
    JournalAway: journal_away,
    Requeued: _requeued,
    AskedToRetry: _asked_to_retry,
    RetrySent: _retry_sent,
    ProcessEnds: _process_ends,
    TakenOver: _taken_over,
    NotBegun: _not_begun,
    LeftToAutoretry: _as_it_is,
    Passed: _as_it_is,
}
