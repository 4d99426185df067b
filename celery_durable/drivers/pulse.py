"""The pulse of an attempt: whether it goes on, and what runs in it. Drivers and the watchdog know no more of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from threading import Lock
from typing import Any, Protocol, TypeVar

from celery_durable.config.retry import RunOptions
from celery_durable.config.settings import AttemptSettings
from celery_durable.exceptions import (
    DurableError,
    DurableTimeoutError,
    InvalidStepError,
    JournalUnavailableError,
    JournalUnreadableError,
)
from celery_durable.interrupts import OUT_OF_TOUCH, EndRun, Fenced, Interrupt, JournalLost, prevailing
from celery_durable.journal.port import Journal

from .info import TaskInfo

T = TypeVar("T")

ASK_AFTER = 1.0
"""If Redis was not heard of for so many seconds, it is asked before an action starts."""


class StepWork(Protocol):
    """The work that a thread does for a step. It may go on when the step has failed."""

    @property
    def is_given_up(self) -> bool: ...

    def give_up(self, step: Running, error: BaseException) -> None:
        """Let the work have failed with this error, although nothing ends it."""
        ...

    def decided(self) -> None:
        """It is decided how the step goes on. What the work returns from now on is late."""
        ...


class Running(Protocol):
    """A step, as drivers and the watchdog know it."""

    name: str
    action: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: RunOptions
    pulse: Pulse
    executions: int
    """The number of this execution; the first is 1."""
    deadline: float
    """When its execution has run too long, by the monotonic clock."""
    work: StepWork | None
    """What a thread of the library does for it."""
    handover: Lock
    """A thread that gives the execution up holds it, until the run goes on without it."""
    violation: Interrupt | None
    """The context was used inside the action, which may have swallowed the error."""

    def record_late(self, execution: int, value: Any) -> None:
        """Record what an execution has returned after it was given up, unless the run has gone on meanwhile."""
        ...


running_step: ContextVar[Any] = ContextVar("celery_durable_step", default=None)
"""The step whose action this code belongs to."""


class Overrun(Interrupt):
    """User code has run too long. It is raised in that code, at any line."""

    def __init__(self, pulse: Pulse, error: DurableTimeoutError, step: Running | None = None) -> None:
        super().__init__(str(error))
        self.pulse = pulse
        self.error = error
        self.step = step
        """None: no step was running."""


class Pulse:
    """Whether an attempt goes on, and when it gave its last sign of life.

    It is one flat object with many attributes: each step reads most of them.
    """

    __slots__ = (
        "cancellation_told", "closed", "heard_at", "home", "info", "interrupt", "interrupted_by", "is_ending",
        "journal", "progressed_at", "running", "settings", "violation",
    )  # fmt: skip

    def __init__(self, journal: Journal, info: TaskInfo, settings: AttemptSettings) -> None:
        self.journal = journal
        self.info = info
        self.settings = settings
        self.interrupt: Interrupt | None = None
        """What ends the attempt, even if user code swallows it."""
        self.violation: Interrupt | None = None
        """The context was used inside a step, from a thread that does not know which step that is."""
        self.interrupted_by: BaseException | None = None
        """It has cancelled the body of an async task (a time limit, say). The step that this hits fails by it."""
        self.closed = False
        self.is_ending = False
        """The attempt is about to end. What goes on in it may go on until it waits."""
        self.running: set[Running] = set()
        """Steps whose action runs. The thread that takes a step out decides how that execution has ended."""
        self.progressed_at = self.heard_at = time.monotonic()
        """When the attempt made its last progress; and when its code last heard of Redis."""
        self.cancellation_told = False
        """The code knows that its run is cancelled."""
        self.home = threading.get_ident()
        """The thread of the body."""

    # -- its end

    def stop(self, interrupt: Interrupt) -> Interrupt:
        """End the attempt. Each further use of the context raises the interrupt again."""
        held = self.interrupt
        self.interrupt = interrupt if held is None else prevailing(held, interrupt)
        return self.interrupt

    def end_run(self, error: DurableError) -> Interrupt:
        return self.stop(EndRun(error))

    def invalid(self, message: object) -> Interrupt:
        """End the run: its code uses the context in a wrong way."""
        return self.end_run(InvalidStepError(f"task {self.info.task_id}: {message}"))

    def unreadable(self, error: object) -> Interrupt:
        """End the run: its journal cannot be read."""
        return self.end_run(JournalUnreadableError(f"task {self.info.task_id}: {error}"))

    def ask(self, question: Callable[[], T], *, loss_ends_it: bool = True) -> T:
        """Ask the journal. If the attempt is fenced, it ends. If the journal is lost, *loss_ends_it* decides.

        Raises:
            Interrupt: the attempt is fenced, or the journal is lost, or cannot be read.
        """
        try:
            return question()
        except JournalUnavailableError as error:
            lost = JournalLost(error)
            raise (self.stop(lost) if loss_ends_it else lost) from error
        except JournalUnreadableError as error:
            raise self.end_run(error) from error
        except Fenced as fenced:
            raise self.stop(fenced) from None

    def check_goes_on(self) -> None:
        """Refuse an action that would begin after the end of the attempt."""
        if self.closed or isinstance(self.interrupt, OUT_OF_TOUCH):
            raise self.interrupt or Fenced()

    def limits(self) -> tuple[type[BaseException], ...]:
        """Exceptions that come from outside, wherever its code is, as long as this goes on."""
        return () if self.closed else self.info.limits

    # -- whether an action may start

    @property
    def may_start(self) -> bool:
        """Whether an action may start now, as far as is known without asking Redis."""
        ended = self.closed or isinstance(self.interrupt, OUT_OF_TOUCH)
        return not (ended or self.cancel_requested or self.journal.lease_in_doubt)

    @property
    def is_in_doubt(self) -> bool:
        """Whether it is not certain that an action may start."""
        # This repeats is_out_of_touch and cancel_requested: two calls fewer per step.
        journal = self.journal
        if self.closed or self.interrupt is not None or (journal.cancel_requested and not self.cancellation_told):
            return True
        return time.monotonic() - self.heard_at > ASK_AFTER or journal.lease_in_doubt

    @property
    def is_out_of_touch(self) -> bool:
        """Whether Redis must be asked before an action starts: for the lease, or whether the run is cancelled."""
        return time.monotonic() - self.heard_at > ASK_AFTER or self.journal.lease_in_doubt

    @property
    def cancel_requested(self) -> bool:
        """Whether the run was asked to cancel, and its code does not know it yet."""
        return self.journal.cancel_requested and not self.cancellation_told

    def hears_of_cancellation(self) -> bool:
        """Like :attr:`cancel_requested`. Redis is asked if it was not asked within the last second."""
        if not self.cancel_requested and time.monotonic() - self.heard_at > ASK_AFTER:
            self.heard_at = time.monotonic()
            self.journal.look_for_cancellation()
        return self.cancel_requested
