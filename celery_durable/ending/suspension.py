"""The ends by which a run goes on later: a retry, a sleep, a stall, a journal that is away.

In this order: what others are told, then the journal. Once the lease is given back the run may go on, and end, before
this process says a word.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from random import SystemRandom
from typing import Any, TypeVar

from celery.exceptions import Ignore, Retry

from celery_durable.delivery import backend, message, outcome
from celery_durable.delivery.announcement import Announcement
from celery_durable.exceptions import DurableError
from celery_durable.interrupts import Fenced, text_of_time
from celery_durable.invocation import eager_journals
from celery_durable.invocation.ends import Asleep, JournalAway, Retried, Stalled
from celery_durable.invocation.invocation import Invocation
from celery_durable.invocation.session import RunSession
from celery_durable.journal.layout import Status
from celery_durable.steps.attempt import Attempt
from celery_durable.values.failure import portable, shown

from .retry_plan import Carrier, plan

T = TypeVar("T")

logger = logging.getLogger("celery_durable")

JOURNAL_LOST_DELAY = 5.0
"""Seconds until Celery tries an attempt again that could not reach its journal."""

_STALL_PAUSE, _LONGEST_STALL_PAUSE = 1.0, 30.0
"""Seconds until a run is sent again that does not fit a worker's code, at most: doubling, in a rolling deploy."""
_MISFIT = ("position", "found", "found_build", "expected_build", "expected")


# -- waits of the journal's --------------------------------------------------------------------------------------------


def asleep(invocation: Invocation, end: Asleep) -> BaseException:
    """Suspend the run until it is to wake up; the journal alone keeps that wait."""
    sleep, (_, attempt) = end.sleep, _parts(invocation)
    wait = max(0.0, (sleep.until - attempt.now()) / 1000)
    # Celery logs of this attempt that it was ignored, and no more.
    logger.info("task %s: sleeps at %r until %s", invocation.request.id, sleep.name, sleep.until_text)
    return _wait(invocation, wait, backend.SUSPENDED, {"until": sleep.until_text})


def stall_left(session: RunSession, attempt: Attempt) -> float:
    """Seconds for which the run may still wait for a worker whose code fits."""
    return session.settings.stall_timeout - (attempt.now() - _stalled_since(attempt)) / 1000


def _stalled_since(attempt: Attempt) -> int:
    return int(attempt.state.stalled.get("since", attempt.now()))


def stalled(invocation: Invocation, end: Stalled) -> BaseException:
    """Suspend the run until a worker looks at it whose code may fit."""
    _, attempt = _parts(invocation)
    misfit, left = end.stall.misfit, end.left
    since, times = _stalled_since(attempt), int(attempt.state.stalled.get("times", 0))
    pause = min(_STALL_PAUSE * 2.0 ** min(times, 16), _LONGEST_STALL_PAUSE)
    # Not whole seconds: workers ask Redis for messages once a second, each at its own moment, and the same one would
    # get the run again and again.
    delay = min(pause * SystemRandom().uniform(0.5, 1.0), left)
    logger.log(
        logging.INFO if times else logging.WARNING,
        "task %s: at %s the journal has %s, recorded by build %s; this worker's build %s asks for %s. It is sent again "
        "in %.3g s, for a worker whose code fits, and fails if none comes within %.0f s",
        invocation.request.id, *(misfit[fact] for fact in _MISFIT), delay, left,
    )  # fmt: skip
    fails_at = text_of_time(attempt.now() + round(left * 1000))
    info = {**misfit, "since": text_of_time(since), "fails_at": fails_at}
    fields = {"stalled": json.dumps({"since": since, "times": times + 1, **misfit})}
    # Where the run is to be cancelled its code cannot be told here. Who does not want to wait revokes it.
    known = attempt.pulse.journal.cancel_requested
    return _wait(invocation, delay, backend.STALLED, info, fields, though_cancelled=known)


def _wait(
    invocation: Invocation,
    delay: float,
    state: str,
    info: dict[str, str],
    fields: Mapping[str, str] | None = None,
    *,
    though_cancelled: bool = False,
) -> BaseException:
    session, _ = _parts(invocation)
    session.prove_lease()
    said = Announcement.of_wait(state, info, delay)
    told = {**message.resume_as_is(invocation.request), **(fields or {})}
    _say_and_suspend(
        invocation,
        partial(backend.store_wait, invocation.task, invocation.request, state, info),
        partial(session.suspend, delay, told, though_cancelled=though_cancelled),
    )
    return said


# -- retries -----------------------------------------------------------------------------------------------------------


def retried(invocation: Invocation, end: Retried) -> BaseException:
    """Suspend the run until its next attempt; the exception that shows it as RETRY."""
    session, _ = _parts(invocation)
    by_policy = end.answer is not None
    planned = plan(invocation, end.delay, "the task retry policy" if by_policy else "the retry options of a step")
    if end.answer is not None:
        logger.warning(
            "task %s: attempt %d of %s failed: %s; next try in %g s",
            invocation.request.id, end.answer.failures, end.answer.most or "any number", shown(end.error),
            planned.delay,
        )  # fmt: skip
    counts = end.answer.counts if end.answer is not None else {}
    fields = {**counts, **message.resume_of_retry(invocation.request, by_policy=by_policy)}
    suspend = partial(session.suspend, planned.delay, fields, slack=planned.slack)
    suspend_as_retried(invocation, end.error, suspend)
    planned.log(invocation.request.id)
    if planned.carrier is Carrier.JOURNAL:
        return _shown_as_retry(end.error, planned.delay)
    return _publish(invocation, end.error, planned.delay, by_policy=by_policy)


def suspend_as_retried(invocation: Invocation, error: BaseException | None, suspend: Callable[[], T]) -> T:
    """Give the run back until its retry for this *error*."""
    if invocation.eager:
        return suspend()
    session, attempt = invocation.session, invocation.attempt
    if session is not None and attempt is not None and attempt.pulse.is_out_of_touch:
        session.prove_lease()
    say = partial(backend.store_retry, invocation.task, invocation.request, error)
    return _say_and_suspend(invocation, say, suspend)


def await_retry(invocation: Invocation, due: float) -> None:
    """Suspend the run until the retry comes that was sent before the end of the body."""
    session = invocation.session
    assert session is not None  # noqa: S101
    wait = max(0.0, due - time.monotonic())
    # What came while the run was live has been forgotten: a worker is to send it again at once.
    session.suspend(wait, invocation.retry.changes, slack=session.settings.lease if wait else 0.0)


def journal_away(invocation: Invocation, end: JournalAway) -> BaseException:
    """Leave the run as the journal has it; Celery tries the attempt again."""
    session, request, attempt = invocation.session, invocation.request, invocation.attempt
    assert session is not None  # noqa: S101
    session.close_attempt()
    logger.error("task %s: %s; the task is retried in %g s", request.id, end.error, JOURNAL_LOST_DELAY)
    if attempt is None:
        # What was to begin, or to reopen, the run still is, and what was not still is not.
        ours = invocation.delivery is not None and invocation.delivery.fresh
        repeated = message.header_of_repeat(request, fresh=ours, by_redis=session.journal.by_redis)
    else:
        # Where another attempt may have ended the run no state is to be stored over its own.
        ours, repeated = not attempt.pulse.journal.lease_in_doubt, None
    if ours and not invocation.eager:
        backend.store_retry(invocation.task, request, end.error)
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
    """Send the message that brings the run back."""
    task, request, session = invocation.task, invocation.request, invocation.session
    assert session is not None  # noqa: S101
    invocation.restore_arguments()
    signature = message.retry_signature(task, request, delay, by_policy=by_policy, repeated=repeated)
    if not invocation.eager:
        try:
            message.check_encodable(task, signature)
        except Exception as unencodable:
            return fail_after_all(invocation, unencodable)
        message.publish(task, request, signature, journaled=session.is_suspended)
    return _shown_as_retry(error, delay, is_eager=invocation.eager, sig=signature)


def fail_after_all(invocation: Invocation, error: BaseException) -> BaseException:
    """The journal knows of a retry that cannot be sent: the run has failed."""
    assert invocation.session is not None  # noqa: S101
    error = portable(error)
    invocation.session.finish_after_all(Status.FAILED, outcome.encode_error(error))
    eager_journals.forget(invocation)
    return error


def _shown_as_retry(error: BaseException, delay: float, **options: Any) -> BaseException:
    retry: BaseException = Retry(exc=error, when=delay, **options)  # type: ignore[arg-type]
    retry.__cause__ = error
    return retry


# -- first what others are told, then the journal ----------------------------------------------------------------------


def _say_and_suspend(invocation: Invocation, say: Callable[[], None], suspend: Callable[[], T]) -> T:
    say()
    try:
        return suspend()
    except Fenced:
        # Somebody has ended the run meanwhile: what was said over it is to be taken back.
        _report_if_over(invocation)
        raise


def _report_if_over(invocation: Invocation) -> None:
    from celery_durable.app.store import store_of  # a process that only sends tasks does without it

    task, request = invocation.task, invocation.request
    try:
        fields = store_of(task.app).runs.load(request.id)
    except DurableError as error:
        logger.error("task %s: whether it is over, and not asleep, is not known: %s", request.id, error)
        return
    ended = outcome.read(fields, task.durable_attempt_settings.accept)
    if ended.delivered:
        backend.restore_outcome(task, request, ended)


def _parts(invocation: Invocation) -> tuple[RunSession, Attempt]:
    session, attempt = invocation.session, invocation.attempt
    assert session is not None and attempt is not None  # noqa: S101, PT018
    return session, attempt
