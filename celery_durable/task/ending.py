"""What the end of a body becomes: what the journal is told, and what Celery is to do.

What is raised here is Celery's to handle. A good end is :mod:`execution`'s own.
"""

from __future__ import annotations

import json
import logging
import time
from asyncio import CancelledError
from collections.abc import Callable
from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING, Any, TypeVar

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, WorkerShutdown, WorkerTerminate

from celery_durable.delivery import message, outcome, report
from celery_durable.delivery.announcement import Announcement
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
    Overrun,
    RetryStep,
    Sleep,
    Stall,
    text_of_time,
)
from celery_durable.seams.celery import EXIT_BY_SIGTERM
from celery_durable.steps.attempt import Attempt
from celery_durable.steps.step import NOT_A_FAILURE
from celery_durable.values.failure import leading, located, portable, shown

from .redelivery import turn_away

if TYPE_CHECKING:
    from .execution import Execution

T = TypeVar("T")

logger = logging.getLogger("celery_durable")

JOURNAL_LOST_DELAY = 5.0
"""Seconds until Celery tries an attempt again that could not reach its journal."""

_STALL_PAUSE, _LONGEST_STALL_PAUSE = 1.0, 30.0
"""Seconds until a run is sent again that does not fit a worker's code, at most: doubling, in a rolling deploy."""
_MISFIT = ("position", "found", "found_build", "expected_build", "expected")


class Ending:
    """The end of one call of a task's body that has used its context; of any other nothing is ours."""

    def __init__(self, execution: Execution) -> None:
        assert execution.hold is not None  # noqa: S101
        self.execution = execution
        self.task = execution.task
        self.request = execution.request
        self.hold = execution.hold
        self.attempt = execution.hold.attempt

    def settle(self, error: BaseException) -> Any:
        """Turn what ended the body into what Celery is to do."""
        try:
            return self._settle_twice(error)
        except BaseException as decided:
            if not self.execution.undecided:
                self.execution.decided = decided
            place = decided.__traceback__
            while place is not None and place.tb_frame.f_globals is globals():
                place = place.tb_next
            # Where it was raised, if it was not here; how we came to pass it on says nothing.
            raise decided.with_traceback(place or decided.__traceback__)  # noqa: B904  it is this very error

    def _settle_twice(self, error: BaseException) -> Any:
        try:
            return self._settle(self.execution.interrupt or self.execution.said or self._reason(leading(error)))
        except Interrupt as met:
            # The end itself met a fence, a lost journal, or steps that were left over.
            late = met
        return self._settle_late(late)

    def _settle_late(self, late: Interrupt) -> Any:
        try:
            return self._settle(late)
        except (Fenced, JournalLost) as again:
            # Neither the journal nor the broker takes a word of it: whoever comes next goes on from what they have.
            self.hold.let_go()
            logger.error("task %s: its end cannot be recorded, another attempt goes on: %s", self.request.id, again)
            raise (Reject(str(again), requeue=True) if self.task.acks_late else Ignore(str(again))) from again

    def _reason(self, error: BaseException) -> BaseException:
        """Why the body of an async task was cancelled, if it was by us."""
        struck_by = self.attempt.struck_by if self.attempt is not None else None
        return struck_by if isinstance(error, CancelledError) and isinstance(struck_by, Overrun) else error

    def _settle(self, error: BaseException) -> Any:
        match error:
            case Interrupt():
                return self._interrupted(error)
            case Retry() | Ignore() | Reject():
                raise self._celery_said(error)
            case _ if isinstance(error, NOT_A_FAILURE):
                # The process is going down: another one is to go on at once.
                self.hold.give_up(orderly=_is_shutdown(error))
                raise error
        raise self._failed_attempt(error)

    def _interrupted(self, interrupt: Interrupt) -> Any:
        match interrupt:
            case NotNow(verdict=verdict):
                fresh = self.execution.delivery is not None and self.execution.delivery.fresh
                return turn_away(verdict, self.task, self.request, self.hold, fresh=fresh)
            case RetryStep():
                raise self._retry(located(interrupt.error, interrupt), interrupt.delay, {})
            case Overrun() if interrupt.attempt is not self.attempt:
                # Of a step that called this task as a function.
                raise interrupt
            case Sleep():
                raise self._sleep(interrupt)
            case Stall():
                raise self._stall(interrupt)
            case FailAttempt() | Overrun():
                raise self._failed_attempt(located(interrupt.error, interrupt))
            case EndRun():
                raise self.fail(located(interrupt.error, interrupt))
            case JournalLost():
                raise self._lost(interrupt.error)
        logger.warning(
            "task %s: another attempt has taken over, or the run was revoked; this attempt ends", self.request.id
        )
        self.hold.let_go()
        raise Ignore("another attempt has taken over") from interrupt

    def _celery_said(self, said: BaseException) -> BaseException:
        """User code used Celery's own means: ``self.retry()``, ``Ignore``, ``Reject``."""
        if self.execution.direct:
            return said
        match said:
            case Ignore():
                self.hold.finish("ignored", None)
            case Reject() if not said.requeue:  # type: ignore[attr-defined]
                return self.fail(said)
            case Retry():
                # It was sent: by ``self.retry(throw=False)``, say.
                due = self.execution.sent_for
                if due is None:
                    due = time.monotonic() + message.seconds_until(self.task, said.when)
                if not self.hold.ended:
                    self.suspend_as_retried(said.exc, partial(self.execution.await_retry, self.hold, due))
            case _:
                # The message goes back to the broker, which brings it again.
                self.hold.suspend(0.0, message.resume_as_is(self.request), slack=self.hold.settings.lease)
        return said

    def _failed_attempt(self, error: BaseException) -> BaseException:
        """An exception of the body, or of a step without retry options; the exception for Celery."""
        attempt = self.attempt
        if self.execution.direct:
            return error
        if attempt is None:
            if isinstance(error, SoftTimeLimitExceeded):
                return self._lost(JournalUnavailableError("a time limit struck before the journal was open"))
            return error
        if self.task.opinionated and not self.execution.began and not _is_by_time_limit(error):
            misfit = _misfit(error)
            if attempt.was_begun_by_another_build:
                raise attempt.refuse_arguments(misfit)
            return self.fail(misfit)
        if isinstance(error, TerminalError):
            attempt.check_nothing_left()
        final = isinstance(error, DurableError) and not isinstance(error, (RetryableError, DurableTimeoutError))
        if final or error is self.execution.gave_up:
            return self.fail(error)
        return self._by_policy(attempt, error) if self.task.opinionated else self._as_celery_decides(error)

    def _by_policy(self, attempt: Attempt, error: BaseException) -> BaseException:
        """The task retry policy: another attempt, or FAILURE."""
        rules = self.task.retry_rules
        failures = attempt.failures_now()
        if not rules.resets_on_progress:
            # Celery's max_retries: all retries but those of steps share it.
            failures += message.own_retries(self.request)
        since = attempt.failing_since(failures)
        delay = rules.next(failures, (attempt.now() - since) / 1000, error)
        if delay is None:
            # Celery logs the error itself, as one; here is only why it is final.
            level = logging.INFO if isinstance(error, self.task.throws) else logging.WARNING
            logger.log(level, "task %s: attempt %d failed for good: %s", self.request.id, failures, shown(error))
            return self.fail(error)
        logger.warning(
            "task %s: attempt %d of %s failed: %s; next try in %g s",
            self.request.id, failures, rules.backoff.max_attempts or "any number", shown(error), delay,
        )  # fmt: skip
        counts = {"failures": str(attempt.failures_now()), "failing_since": str(since)}
        return self._retry(error, delay, counts, by_policy=True)

    def _as_celery_decides(self, error: BaseException) -> BaseException:
        """Plain Celery's rules: ``autoretry_for``, or FAILURE."""
        if isinstance(error, tuple(getattr(self.task, "autoretry_for", None) or ())):
            # Celery's autoretry wraps us: it calls retry(), or gives up (see :meth:`Execution.after`).
            self.execution.undecided = True
            return error
        if self.execution.sent_for is not None:
            # ``self.retry(throw=False)`` is on its way: the task has failed, and is run again.
            self.execution.await_retry(self.hold, self.execution.sent_for)
            return error
        return self.fail(error)

    def fail(self, error: BaseException) -> BaseException:
        """End the run as failed; the exception for Celery."""
        error = portable(error)
        if self.execution.direct:
            return error
        cancelled = isinstance(error, TaskCancelled) and not self.execution.eager
        self.hold.finish("revoked" if cancelled else "failed", outcome.of_error(error))
        self.execution.forget_eager()
        if not cancelled:
            return error
        logger.info("task %s: cancelled", self.request.id)
        if report.revoked(self.task, self.request, error):
            return Announcement.of_cancellation(error)
        self.hold.not_delivered()
        return Ignore("the run was cancelled, which could not be delivered")

    def fail_after_all(self, error: BaseException) -> BaseException:
        """A retry was announced to the journal, and cannot be sent."""
        self.hold.ended = False
        return self.fail(error)

    def _sleep(self, sleep: Sleep) -> BaseException:
        """Suspend the run until it is to wake up; the journal alone keeps that wait."""
        assert self.attempt is not None  # noqa: S101
        wait = max(0.0, (sleep.until - self.attempt.now()) / 1000)
        # Celery logs of this attempt that it was ignored, and no more.
        logger.info("task %s: sleeps at %r until %s", self.request.id, sleep.name, sleep.until_text)
        return self._wait(wait, report.SUSPENDED, {"until": sleep.until_text})

    def _stall(self, stall: Stall) -> BaseException:
        """Suspend the run until a worker looks at it whose code may fit; it fails where none does for too long."""
        attempt = self.attempt
        assert attempt is not None  # noqa: S101
        now = attempt.now()
        since, times = int(attempt.stalled.get("since", now)), int(attempt.stalled.get("times", 0))
        left = self.hold.settings.stall_timeout - (now - since) / 1000
        if left <= 0:
            return self.fail(located(stall.error, stall))
        pause = min(_STALL_PAUSE * 2.0 ** min(times, 16), _LONGEST_STALL_PAUSE)
        # Not whole seconds: workers ask Redis for messages once a second, each at its own moment, and the same one
        # would get the run again and again.
        delay = min(pause * SystemRandom().uniform(0.5, 1.0), left)
        logger.log(
            logging.INFO if times else logging.WARNING,
            "task %s: at %s the journal has %s, recorded by build %s; this worker's build %s asks for %s. It is sent "
            "again in %.3g s, for a worker whose code fits, and fails if none comes within %.0f s",
            self.request.id, *(stall.misfit[fact] for fact in _MISFIT), delay, left,
        )  # fmt: skip
        info = {**stall.misfit, "since": text_of_time(since), "fails_at": text_of_time(now + round(left * 1000))}
        stalled = json.dumps({"since": since, "times": times + 1, **stall.misfit})
        # Where the run is to be cancelled its code cannot be told here. Who does not want to wait revokes it.
        known = attempt.journal.cancel_requested
        return self._wait(delay, report.STALLED, info, {"stalled": stalled}, though_cancelled=known)

    def _wait(
        self,
        delay: float,
        state: str,
        info: dict[str, str],
        fields: dict[str, str] | None = None,
        *,
        though_cancelled: bool = False,
    ) -> BaseException:
        self.hold.prove_lease()
        said = Announcement.of_wait(state, info, delay)
        fields = {**message.resume_as_is(self.request), **(fields or {})}
        self._say_and_suspend(
            partial(report.waits, self.task, self.request, state, info),
            partial(self.hold.suspend, delay, fields, though_cancelled=though_cancelled),
        )
        return said

    def suspend_as_retried(self, error: BaseException | None, suspend: Callable[[], T]) -> T:
        """Give the run back until its retry for this *error*."""
        if self.execution.eager:
            return suspend()
        if self.attempt is not None and self.attempt.is_out_of_touch:
            self.hold.prove_lease()
        return self._say_and_suspend(partial(report.retried, self.task, self.request, error), suspend)

    def _say_and_suspend(self, say: Callable[[], None], suspend: Callable[[], T]) -> T:
        """In this order: once the lease is given back the run may go on, and end, before this process says a word."""
        say()
        try:
            return suspend()
        except Fenced:
            # Somebody has ended the run meanwhile: what was said over it is to be taken back.
            self._report_if_over()
            raise

    def _report_if_over(self) -> None:
        from celery_durable.app.store import store_of

        try:
            fields = store_of(self.task.app).runs.load(self.request.id)
        except DurableError as error:
            logger.error("task %s: whether it is over, and not asleep, is not known: %s", self.request.id, error)
            return
        ended = outcome.read(fields, self.task.durable_terms.accept)
        if ended.delivered:
            report.again(self.task, self.request, ended)

    def _retry(
        self, error: BaseException, delay: float, fields: dict[str, str], *, by_policy: bool = False
    ) -> BaseException:
        """Suspend the run until its next attempt; the exception that shows it as RETRY.

        The broker carries the wait if it is short, else the journal.
        """
        delay = 0.0 if self.execution.eager else message.sendable_delay(self.task.app, delay)
        fields = {**fields, **message.resume_of_retry(self.request, by_policy=by_policy)}
        if self.suspend_as_retried(error, partial(self.hold.back_off, delay, fields)):
            return _shown_as_retry(error, delay)
        return self._publish(error, delay, by_policy=by_policy)

    def _lost(self, error: DurableError) -> BaseException:
        self.hold.let_go()
        logger.error("task %s: %s; the task is retried in %g s", self.request.id, error, JOURNAL_LOST_DELAY)
        # What was to begin, or to reopen, the run still is, and what was not still is not.
        fresh = self.attempt is None and self.execution.delivery is not None and self.execution.delivery.fresh
        asking = (
            message.still_asking(self.request, fresh=fresh, by_redis=self.hold.journal.by_redis)
            if self.attempt is None
            else None
        )
        # Where another attempt may have ended the run no state is to be stored over its own.
        ours = fresh if self.attempt is None else not self.attempt.journal.lease_in_doubt
        if ours and not self.execution.eager:
            report.retried(self.task, self.request, error)
        retry = self._publish(error, JOURNAL_LOST_DELAY, asking=asking)
        return retry if ours or not isinstance(retry, Retry) else Ignore("the journal is lost, and perhaps the run")

    def _publish(
        self, error: BaseException, delay: float, *, by_policy: bool = False, asking: dict[str, Any] | None = None
    ) -> BaseException:
        self.execution.restore_arguments()
        signature = message.retry_signature(self.task, self.request, delay, by_policy=by_policy, asking=asking)
        if not self.execution.eager:
            try:
                message.check_encodable(self.task, signature)
            except Exception as unencodable:
                return self.fail_after_all(unencodable)
            message.publish(self.task, self.request, signature, journaled=self.hold.suspended)
        return _shown_as_retry(error, delay, is_eager=self.execution.eager, sig=signature)


def _shown_as_retry(error: BaseException, delay: float, **options: Any) -> BaseException:
    retry: BaseException = Retry(exc=error, when=delay, **options)  # type: ignore[arg-type]
    retry.__cause__ = error
    return retry


def _is_by_time_limit(error: BaseException) -> bool:
    """Whether Celery's soft time limit struck, wherever that was: code that it strikes may fail by another error."""
    return isinstance(error, SoftTimeLimitExceeded) or isinstance(error.__context__, SoftTimeLimitExceeded)


def _is_shutdown(error: BaseException) -> bool:
    """Whether the worker ends the process, and not the task itself."""
    by_signal = isinstance(error, SystemExit) and error.code == EXIT_BY_SIGTERM
    return by_signal or isinstance(error, (WorkerShutdown, WorkerTerminate))


def _misfit(error: BaseException) -> BaseException:
    """Arguments that do not fit the task, as an error that a caller in another process can read."""
    if type(error).__name__ != "ValidationError":
        return error
    refused = TerminalError(str(error), 400)
    refused.error_type = "ValidationError"
    refused.__cause__ = error
    return refused
