"""An attempt whose code does not end: its run goes on without it. Asked by the thread that watches the attempt."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject, Retry

from celery_durable.drivers import silence
from celery_durable.drivers.driver import IN_THREAD, run_to_end
from celery_durable.exceptions import TerminalError
from celery_durable.interrupts import Interrupt, Overrun, RetryStep

from .ending import Ending

if TYPE_CHECKING:
    from celery_durable.steps.step import Step

    from .execution import Execution

logger = logging.getLogger("celery_durable")


class Abandonment:
    """What becomes of an attempt without its own doing."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def silent(self, seconds: float) -> None:
        attempt, request = self._execution.attempt, self._execution.request
        assert attempt is not None  # noqa: S101
        _aside(silence.report, request.id, self._execution.task, attempt, seconds, request.hostname)

    def go_on_without(self, overrun: Overrun) -> None:
        """The code of this attempt cannot be interrupted: the run goes on, whenever that ends."""
        if not (self._execution.direct or self._execution.eager):
            in_a_step = overrun.step is not None and not self._execution.task.is_async
            _aside(self._abandon if in_a_step else self._leave, self._execution.request.id, overrun)

    def _leave(self, overrun: Overrun) -> None:
        """Nobody knows what the body does next: its run is taken over as that of a dead process is."""
        attempt, hold = overrun.attempt, self._execution.hold
        assert hold is not None  # noqa: S101
        logger.error("task %s: %s, and its code does not end; its lease lapses", attempt.about.task_id, overrun.error)
        attempt.stop(overrun)
        hold.lapse()

    def _abandon(self, overrun: Overrun) -> None:
        """Fail the execution of a step in the place of its thread, which does nothing else until its action ends."""
        attempt, step, hold = overrun.attempt, overrun.step, self._execution.hold
        assert step is not None  # noqa: S101
        assert hold is not None  # noqa: S101
        step.handover = threading.Lock()
        with step.handover:
            try:
                attempt.running.remove(step)
            except KeyError:
                return  # it has ended just now
            logger.error(
                "task %s: step %r cannot be interrupted; the run goes on without it",
                attempt.about.task_id, step.name,
            )  # fmt: skip
            try:
                Ending(self._execution).settle(self._failure(step, overrun.error))
            except Interrupt as error:
                logger.error(
                    "task %s: its abandoned step could not be journaled: %s", self._execution.request.id, error
                )
            except BaseException as said:
                if self._execution.undecided:
                    said = self._as_autoretry_decides(said)
                if not hold.ended:
                    # Neither over nor to be tried again: somebody's mistake, which nobody else is to hear of.
                    logger.error(
                        "task %s: its abandoned step %r could not be settled; its lease lapses",
                        attempt.about.task_id, step.name, exc_info=said,
                    )  # fmt: skip
                    hold.lapse()
                elif not isinstance(said, (Retry, Ignore, Reject)):
                    hold.hand_over()
            attempt.leave_behind()

    @staticmethod
    def _failure(step: Step, error: BaseException) -> BaseException:
        """How the attempt ends by this failure of a step."""
        try:
            delay = run_to_end(step.fail(error, IN_THREAD))
        except TerminalError:
            # Recorded: the next attempt finds it at once.
            return RetryStep(step.name, error, 0.0)
        except Interrupt as ended:
            return ended
        return RetryStep(step.name, error, delay)

    def _as_autoretry_decides(self, error: BaseException) -> BaseException:
        """What Celery's ``autoretry_for`` makes of what the body raises."""
        task = self._execution.task
        task.request_stack.push(self._execution.request)
        try:
            task.retry(exc=error, **getattr(task, "retry_kwargs", {}))
        except BaseException as said:
            return said if isinstance(said, (Retry, Ignore, Reject)) else Ending(self._execution).fail(said)
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
