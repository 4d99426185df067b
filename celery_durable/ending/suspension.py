"""The ends after which a run goes on later: a retry, a sleep, a stall, a pause, a journal that does not answer.

The journal gives the lease back: after that the run may go on elsewhere, and end. So the state that others see is
stored in the same act, or before it if Celery's results are not in the journal's Redis.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from random import SystemRandom
from typing import Any, Protocol

from celery import states
from celery.exceptions import Ignore, Retry

from celery_durable.app.store import store_of
from celery_durable.config.redaction import Redaction
from celery_durable.delivery import backend, message, outcome
from celery_durable.delivery.announcement import Announcement
from celery_durable.exceptions import DurableError
from celery_durable.interrupts import Fenced, text_of_time
from celery_durable.invocation import eager_journals
from celery_durable.invocation.ends import Asleep, JournalUnavailable, Paused, Retried, Stalled
from celery_durable.invocation.invocation import Invocation
from celery_durable.invocation.session import RunSession
from celery_durable.journal.layout import Status, Wait
from celery_durable.journal.port import NO_RESULT, Result
from celery_durable.steps.attempt import Attempt
from celery_durable.values.failure import portable, shown

from .retry_plan import Carrier, plan

logger = logging.getLogger("celery_durable")

JOURNAL_LOST_DELAY = 5.0
"""Seconds until Celery retries an attempt that could not reach its journal."""

_STALL_PAUSE, _LONGEST_STALL_PAUSE = 1.0, 30.0
"""Seconds until a stalled run is sent again, at most. The pause doubles from the first value to the second."""
_NEVER = timedelta(days=365_000).total_seconds()
"""Seconds until a paused run is due. A worker of an older version knows no pause, and waits for that time."""
_MISFIT = ("position", "found", "found_build", "expected_build", "expected")


# -- waits that the journal keeps --------------------------------------------------------------------------------------


def suspend_for_sleep(invocation: Invocation, end: Asleep) -> BaseException:
    """Suspend the run until its sleep is over. Only the journal keeps this wait."""
    sleep, (_, attempt) = end.sleep, _opened(invocation)
    wait = max(0.0, (sleep.until - attempt.now()) / 1000)
    # Celery logs only that this attempt was ignored.
    logger.info("task %s: sleeps at %r until %s", invocation.request.id, sleep.name, sleep.until_text)
    return _wait(invocation, wait, Wait.SLEEP, {"until": sleep.until_text})


def stall_left(session: RunSession, attempt: Attempt) -> float:
    """Seconds for which the run may still stall: after that it fails."""
    now = attempt.now()
    return session.settings.stall_timeout - (now - _stalled_since(attempt, now)) / 1000


def _stalled_since(attempt: Attempt, now: int) -> int:
    # The caller reads the clock once: of a run that stalls for the first time, no time has passed.
    return int(attempt.state.stalled.get("since", now))


def suspend_stalled(invocation: Invocation, end: Stalled) -> BaseException:
    """Suspend the run for a moment: another worker may have code that fits its journal."""
    _, attempt = _opened(invocation)
    misfit, left = end.stall.misfit, end.left
    now = attempt.now()
    since, times = _stalled_since(attempt, now), int(attempt.state.stalled.get("times", 0))
    pause = min(_STALL_PAUSE * 2.0 ** min(times, 16), _LONGEST_STALL_PAUSE)
    # The delay is no whole number of seconds. Workers ask Redis for messages once a second, each at its own moment:
    # with whole seconds, the same worker would get the run again and again.
    delay = min(pause * SystemRandom().uniform(0.5, 1.0), left)
    logger.log(
        logging.INFO if times else logging.WARNING,
        "task %s: at %s the journal has %s, recorded by build %s; this worker's build %s asks for %s. It is sent again "
        "in %.3g s, for a worker whose code fits, and fails if none comes within %.0f s",
        invocation.request.id, *(misfit[fact] for fact in _MISFIT), delay, left,
    )  # fmt: skip
    fails_at = now + round(left * 1000)
    info = {**misfit, "since": text_of_time(since), "fails_at": text_of_time(fails_at)}
    fields = {"stalled": json.dumps({"since": since, "times": times + 1, "fails_at": fails_at, **misfit})}
    # If somebody has cancelled the run, this worker cannot tell its code. The run stalls all the same.
    known = attempt.pulse.journal.cancel_requested
    return _wait(invocation, delay, Wait.STALL, info, fields, though_cancelled=known)


def suspend_paused(invocation: Invocation, end: Paused) -> BaseException:
    """Suspend the run until somebody retries or cancels it. The next attempt has fresh budgets."""
    request, (_, attempt) = invocation.request, _opened(invocation)
    is_expected = isinstance(end.error, invocation.task.throws)
    # Celery logs only that this attempt was ignored.
    logger.log(
        logging.INFO if is_expected else logging.ERROR,
        "task %s: attempt %d failed, and no retry is left: it is paused until somebody retries or cancels it: %s",
        request.id, end.exhausted.failures, shown(end.error), exc_info=None if is_expected else end.error,
    )  # fmt: skip
    error = str(attempt.redaction.shown("error", shown(end.error)))
    info = {"error": error, "since": text_of_time(attempt.now())}
    fields = {"paused": outcome.encode_error(end.error), "failures": "0", **message.resume_afresh()}
    return _wait(invocation, _NEVER, Wait.PAUSE, info, fields)


def _wait(
    invocation: Invocation,
    delay: float,
    waits: str,
    info: dict[str, str],
    fields: Mapping[str, str] | None = None,
    *,
    though_cancelled: bool = False,
) -> BaseException:
    (session, _), state = _opened(invocation), backend.state_of(waits)
    announcement = Announcement.of_wait(state, info, delay)
    told = {**message.resume_as_is(invocation.request), **(fields or {})}
    suspend = partial(session.suspend, delay, told, waits=waits, though_cancelled=though_cancelled)
    _suspend_and_show(invocation, backend.Interim(state, info), suspend)
    return announcement


def show_again(task: Any, request: Any, waits: str) -> None:
    """Celery has stored STARTED for a message that begins no attempt: store again what the run waits for."""
    try:
        fields = store_of(task.app).runs.load(request.id)
    except DurableError as error:
        logger.warning("task %s: its state is STARTED, though the run waits: %s", request.id, error)
        return
    if waits == Wait.STALL:
        info = json.loads(fields.get(b"stalled") or b"{}")
    elif waits == Wait.PAUSE:
        redaction = Redaction(task.durable_attempt_settings.redact, task.name)
        info = {"error": redaction.error(json.loads(fields.get(b"paused") or b"{}").get("error"))}
    else:
        info = {"until": text_of_time(int(fields.get(b"due") or 0))}
    backend.store_interim(task, request, backend.Interim(backend.state_of(waits), info))
    _correct_shown(task, request)  # it may have ended in the meantime


# -- retries -----------------------------------------------------------------------------------------------------------


def suspend_for_retry(invocation: Invocation, end: Retried) -> BaseException:
    """Suspend the run until its next attempt. Returns the exception by which Celery shows it as RETRY."""
    session, _ = _opened(invocation)
    by_policy = end.answer is not None
    planned = plan(invocation, end.delay, "the task retry policy" if by_policy else "the retry options of a step")
    if end.answer is not None:
        logger.warning(
            "task %s: attempt %d of %s failed: %s; next try in %g s",
            invocation.request.id, end.answer.failures, end.answer.limit or "any number", shown(end.error),
            planned.delay,
        )  # fmt: skip
    counts = end.answer.counts if end.answer is not None else {}
    fields = {**counts, **message.resume_of_retry(invocation.request, by_policy=by_policy)}
    suspend_and_show_retry(invocation, end.error, partial(session.suspend, planned.delay, fields, slack=planned.slack))
    planned.log(invocation.request.id)
    if planned.carrier is Carrier.JOURNAL:
        return _shown_as_retry(end.error, planned.delay)
    return _publish(invocation, end.error, planned.delay, by_policy=by_policy)


def suspend_and_show_retry(invocation: Invocation, error: BaseException | None, suspend: Suspend) -> None:
    """Suspend the run, and store RETRY with this *error*."""
    if invocation.eager:
        suspend()
    else:
        _suspend_and_show(invocation, backend.Interim.of_retry(error), suspend)


def await_retry(invocation: Invocation, due: float, result: Result = NO_RESULT) -> bool:
    """Suspend the run until the retry arrives that user code has sent before the body ended.

    *due* is the time of the retry, by the monotonic clock (s). The rest is as in :meth:`RunSession.suspend`.
    """
    session = invocation.session
    assert session is not None  # noqa: S101
    wait = max(0.0, due - time.monotonic())
    # If the retry is due already, its message may have come while this attempt was live, and was ignored then. So a
    # worker must send it again at once.
    slack = session.settings.lease if wait else 0.0
    return session.suspend(wait, invocation.retry.changes, slack, result)


def retry_without_journal(invocation: Invocation, end: JournalUnavailable) -> BaseException:
    """Leave the journal as it is, and let Celery retry the attempt."""
    session, request, attempt = invocation.session, invocation.request, invocation.attempt
    assert session is not None  # noqa: S101
    session.close_attempt()
    logger.error("task %s: %s; the task is retried in %g s", request.id, end.error, JOURNAL_LOST_DELAY)
    if attempt is None:
        # No attempt has begun. The next message asks for the same as this one: to begin the run, or to reopen it.
        ours = session.delivery is not None and session.delivery.fresh
        repeated = message.header_of_repeat(request, fresh=ours, by_redis=session.journal.by_redis)
    else:
        # If another attempt may have ended the run, its state must not be replaced.
        ours, repeated = not attempt.pulse.journal.lease_in_doubt, None
    if ours and not invocation.eager:
        backend.store_interim(invocation.task, request, backend.Interim.of_retry(end.error))
    retry = _publish(invocation, end.error, JOURNAL_LOST_DELAY, repeated=repeated)
    return retry if ours or not isinstance(retry, Retry) else Ignore("the journal is lost, and perhaps the run")


def _publish(
    invocation: Invocation,
    error: BaseException,
    delay: float,
    *,
    by_policy: bool = False,
    repeated: dict[str, Any] | None = None,
) -> BaseException:
    """Send the message that brings the run back. Returns the exception that Celery gets."""
    task, request, session = invocation.task, invocation.request, invocation.session
    assert session is not None  # noqa: S101
    invocation.restore_arguments()
    signature = message.retry_signature(task, request, delay, by_policy=by_policy, repeated=repeated)
    if not invocation.eager:
        try:
            message.check_encodable(task, signature)
        except Exception as unencodable:
            return fail_unsendable_retry(invocation, unencodable)
        message.publish(task, request, signature, is_in_journal=session.is_suspended)
    return _shown_as_retry(error, delay, is_eager=invocation.eager, sig=signature)


def fail_unsendable_retry(invocation: Invocation, error: BaseException) -> BaseException:
    """End the run as failed: the journal knows of a retry, but its message can never be sent."""
    assert invocation.session is not None  # noqa: S101
    error = portable(error)
    invocation.session.follow_with(Status.FAILED, outcome.encode_error(error))
    eager_journals.forget(invocation)
    return error


def _shown_as_retry(error: BaseException, delay: float, **options: Any) -> BaseException:
    retry: BaseException = Retry(exc=error, when=delay, **options)  # type: ignore[arg-type]
    retry.__cause__ = error
    return retry


# -- what others see of it ---------------------------------------------------------------------------------------------


class Suspend(Protocol):
    """Suspends a run, and stores the result with it. False: nothing is done."""

    def __call__(self, *, result: Result = NO_RESULT) -> bool: ...


def _suspend_and_show(invocation: Invocation, interim: backend.Interim, suspend: Suspend) -> None:
    request = invocation.request
    session, _ = _opened(invocation)
    result = None if session.store is None else session.store.interim_of(invocation.task, request, interim)
    if result is not None and suspend(result=result):
        backend.mark_stored(request, interim)
    else:
        _show_then_suspend(invocation, interim, suspend)


def _show_then_suspend(invocation: Invocation, interim: backend.Interim, suspend: Suspend) -> None:
    """Let Celery store the state, in a result backend that looks at no fence."""
    session, attempt = _opened(invocation)
    # A caller waits for a sleeper for as long as the state says so. What is shown of a retry is corrected by the retry.
    if interim.state != states.RETRY or attempt.pulse.is_out_of_touch:
        session.prove_lease()
    backend.store_interim(invocation.task, invocation.request, interim)
    try:
        suspend()
    except Fenced:
        # Somebody has ended the run in the meantime. The state that was stored just now must be corrected.
        _correct_shown(invocation.task, invocation.request)
        raise


def _correct_shown(task: Any, request: Any) -> None:
    try:
        fields = store_of(task.app).runs.load(request.id)
    except DurableError as error:
        logger.error("task %s: it is not known whether the run is over, or waits: %s", request.id, error)
        return
    ended = outcome.read(fields, task.durable_attempt_settings.accept)
    if ended.delivered:
        backend.restore_outcome(task, request, ended)


def _opened(invocation: Invocation) -> tuple[RunSession, Attempt]:
    session, attempt = invocation.session, invocation.attempt
    assert session is not None and attempt is not None  # noqa: S101, PT018
    return session, attempt
