"""An attempt whose code does not end: its run goes on without it. Asked by the thread that watches the attempt."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from celery_durable.drivers.driver import run_to_end
from celery_durable.drivers.in_thread import InThread
from celery_durable.drivers.pulse import Overrun
from celery_durable.exceptions import TerminalError
from celery_durable.interrupts import Interrupt, RetryStep
from celery_durable.invocation.ends import LeftToAutoretry, over
from celery_durable.invocation.invocation import Invocation, Mode
from celery_durable.invocation.session import RunSession
from celery_durable.steps.failures import fail
from celery_durable.steps.step import Step

from . import inactivity
from .completion import carry_out, complete

logger = logging.getLogger("celery_durable")


class OrphanedAttempt:
    """What becomes of an attempt without its own doing."""

    def __init__(self, invocation: Invocation, session: RunSession) -> None:
        self._invocation = invocation
        self._session = session

    def inactive(self, seconds: float) -> None:
        """It has made no progress for so long."""
        attempt, request = self._invocation.attempt, self._invocation.request
        assert attempt is not None  # noqa: S101
        _aside(inactivity.report, request.id, self._invocation.task, attempt, seconds, request.hostname)

    def go_on_without(self, overrun: Overrun) -> None:
        """The code of this attempt cannot be interrupted: the run goes on, whenever that ends."""
        if self._invocation.mode is Mode.WORKER:
            in_a_step = overrun.step is not None and not self._invocation.task.is_async
            _aside(self._abandon if in_a_step else self._leave, self._invocation.request.id, overrun)

    def _leave(self, overrun: Overrun) -> None:
        """Nobody knows what the body does next: its run is taken over as that of a dead process is."""
        attempt = self._invocation.attempt
        assert attempt is not None  # noqa: S101
        logger.error("task %s: %s, and its code does not end; its lease lapses", attempt.info.task_id, overrun.error)
        attempt.pulse.stop(overrun)
        self._session.lapse()

    def _abandon(self, overrun: Overrun) -> None:
        """Fail the execution of a step in the place of its thread, which does nothing else until its action ends."""
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
                complete(self._invocation, failure := self._failure(step, overrun.error), failure)
            except Interrupt as error:
                logger.error(
                    "task %s: its abandoned step could not be journaled: %s", self._invocation.request.id, error
                )
            except BaseException as said:
                self._hand_on(step, said)
            attempt.detach()

    def _hand_on(self, step: Step, said: BaseException) -> None:
        """Let others go on from the end that the attempt was given, which Celery here does not learn of."""
        if isinstance(self._invocation.end, LeftToAutoretry):
            said = self._as_autoretry_decides(said)
        if not self._session.has_ended:
            # Neither over nor to be tried again: somebody's mistake, which nobody else is to hear of.
            logger.error(
                "task %s: its abandoned step %r could not be settled; its lease lapses",
                self._invocation.request.id, step.name, exc_info=said,
            )  # fmt: skip
            self._session.lapse()
        elif not isinstance(said, (Retry, Ignore, Reject)):
            self._session.release_for_delivery()

    @staticmethod
    def _failure(step: Step, error: BaseException) -> Interrupt:
        """How the attempt ends by this failure of a step."""
        try:
            delay = run_to_end(fail(step, error, InThread(step.pulse)))
        except TerminalError:
            # Recorded: the next attempt finds it at once.
            return RetryStep(step.name, error, 0.0)
        except Interrupt as ended:
            return ended
        return RetryStep(step.name, error, delay)

    def _as_autoretry_decides(self, error: BaseException) -> BaseException:
        """What Celery's ``autoretry_for`` makes of what the body raises."""
        invocation = self._invocation
        task = invocation.task
        task.request_stack.push(invocation.request)
        try:
            task.retry(exc=error, **getattr(task, "retry_kwargs", {}))
        except BaseException as said:
            if not isinstance(said, (Retry, Ignore, Reject)):
                carry_out(invocation, over(said, is_direct=False, is_eager=False))
            return said
        finally:
            task.request_stack.pop()
        return error


def _aside(work: Callable[..., None], task_id: str, *args: Any) -> None:
    """Do what may take a while in a thread of its own."""
    name = f"celery-durable-{work.__name__.strip('_')}"

    def worked() -> None:
        try:
            work(*args)
        except Exception:
            logger.exception("task %s: its thread %s has failed", task_id, name)

    threading.Thread(target=worked, name=name, daemon=True).start()
