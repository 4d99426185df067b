"""An attempt whose code does not end: its run goes on without it. The watchdog's thread calls this."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from celery_durable import happenings
from celery_durable.drivers.driver import run_to_end
from celery_durable.drivers.in_thread import InThread
from celery_durable.drivers.pulse import Overrun
from celery_durable.exceptions import TerminalError
from celery_durable.interrupts import Fenced, Interrupt, RetryStep
from celery_durable.invocation import news
from celery_durable.invocation.ends import LeftToAutoretry, over
from celery_durable.invocation.invocation import Invocation, Mode
from celery_durable.invocation.session import RunSession
from celery_durable.steps.failures import fail
from celery_durable.steps.step import Step

from . import inactivity
from .completion import carry_out, complete

logger = logging.getLogger("celery_durable")


class OrphanedAttempt:
    """It acts for an attempt, whose own thread cannot do so, because its code takes too long."""

    def __init__(self, invocation: Invocation, session: RunSession) -> None:
        self._invocation = invocation
        self._session = session

    def inactive(self, seconds: float) -> None:
        """Report that the attempt has made no progress for *seconds*."""
        attempt, request = self._invocation.attempt, self._invocation.request
        assert attempt is not None  # noqa: S101
        silent = inactivity.silent_parts(attempt)
        if happenings.observers:
            news.inactive(attempt)
        _in_thread(
            inactivity.report, request.id,
            self._invocation.task, attempt.info, silent, seconds, request.hostname,
        )  # fmt: skip

    def go_on_without(self, overrun: Overrun) -> None:
        """Let the run go on: the code of this attempt cannot be interrupted, and nobody knows when it ends."""
        if self._invocation.mode is Mode.WORKER:
            in_a_step = overrun.step is not None and not self._invocation.task.is_async
            _in_thread(self._fail_step if in_a_step else self._let_lease_lapse, self._invocation.request.id, overrun)

    def _let_lease_lapse(self, overrun: Overrun) -> None:
        """Let the lease lapse, as after the death of a process: nobody knows what the body does next."""
        attempt = self._invocation.attempt
        assert attempt is not None  # noqa: S101
        logger.error("task %s: %s, and its code does not end; its lease lapses", attempt.info.task_id, overrun.error)
        attempt.pulse.stop(overrun)
        self._session.lapse()

    def _fail_step(self, overrun: Overrun) -> None:
        """Record that the execution of a step has failed. Its own thread is busy until the action ends."""
        attempt, step = self._invocation.attempt, overrun.step
        assert attempt is not None  # noqa: S101
        assert isinstance(step, Step)  # noqa: S101
        step.handover = threading.Lock()
        with step.handover:
            try:
                attempt.pulse.running.remove(step)
            except KeyError:
                return  # it has ended just now
            logger.error(
                "task %s: step %r cannot be interrupted; the run goes on without it",
                attempt.info.task_id, step.name,
            )  # fmt: skip
            try:
                complete(self._invocation, self._failure(step, overrun.error))
            except Interrupt as error:
                logger.error(
                    "task %s: the failure of its step could not be recorded: %s", self._invocation.request.id, error
                )
            except BaseException as raised:
                self._release_to_others(step, raised)
            # The run goes on without this code. What its step still returns is progress after the failure.
            attempt.pulse.interrupt = Fenced()
            attempt.state.fails_without()

    def _release_to_others(self, step: Step, raised: BaseException) -> None:
        """Let other workers carry out the end of the attempt. Celery in this process does not learn of it."""
        if isinstance(self._invocation.end, LeftToAutoretry):
            raised = self._as_autoretry_decides(raised)
        if not self._session.has_ended:
            # The end could not be recorded, because of an error in the code here. The caller must not get that error.
            logger.error(
                "task %s: the failure of its step %r could not be carried out; its lease lapses",
                self._invocation.request.id, step.name, exc_info=raised,
            )  # fmt: skip
            self._session.lapse()
        elif not isinstance(raised, (Retry, Ignore, Reject)):
            self._session.release_for_delivery()

    @staticmethod
    def _failure(step: Step, error: BaseException) -> Interrupt:
        """The interrupt by which this failure of a step ends the attempt."""
        try:
            delay = run_to_end(fail(step, error, InThread(step.pulse)))
        except TerminalError:
            # The failure is recorded. The next attempt replays it at once.
            return RetryStep(step.name, error, 0.0)
        except Interrupt as ended:
            return ended
        return RetryStep(step.name, error, delay)

    def _as_autoretry_decides(self, error: BaseException) -> BaseException:
        """What Celery's ``autoretry_for`` raises for this *error* of the body."""
        invocation = self._invocation
        task = invocation.task
        task.request_stack.push(invocation.request)
        try:
            task.retry(exc=error, **getattr(task, "retry_kwargs", {}))
        except BaseException as raised:
            if not isinstance(raised, (Retry, Ignore, Reject)):
                carry_out(invocation, over(raised, is_direct=False, is_eager=False))
            return raised
        finally:
            task.request_stack.pop()
        return error


def _in_thread(work: Callable[..., None], task_id: str, *args: Any) -> None:
    """Call *work* in a thread of its own, because it may take a while."""
    name = f"celery-durable-{work.__name__.strip('_')}"

    def worked() -> None:
        try:
            work(*args)
        except Exception:
            logger.exception("task %s: its thread %s has failed", task_id, name)

    threading.Thread(target=worked, name=name, daemon=True).start()
