"""An attempt as those know it who run its code and watch over it: whether it goes on, and what runs in it."""

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
"""Seconds since Redis was last heard of, after which it is asked before an action starts."""


class StepWork(Protocol):
    """What a thread does for a step, and may go on with when the step has failed."""

    @property
    def is_given_up(self) -> bool: ...

    def give_up(self, step: Running, error: BaseException) -> None:
        """Let it have failed with this error, though nothing ends it."""
        ...

    def decided(self) -> None:
        """It is known what the step comes to: what the work returns from now on is late."""
        ...


class Running(Protocol):
    """A step, as those know it who execute its action."""

    name: str
    action: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: RunOptions
    pulse: Pulse
    executions: int
    """The number of this execution; the first is 1."""
    deadline: float
    """When an execution in a thread has run too long, by the monotonic clock."""
    work: StepWork | None
    """What a thread of ours does for it."""
    handover: Lock
    """Of an execution that is given up: held while the run is made to go on without it."""
    violation: Interrupt | None
    """The context was used inside the action, which may have swallowed the error."""

    def record_late(self, execution: int, value: Any) -> None:
        """Record what an execution has returned after it was given up, unless the run has gone on meanwhile."""
        ...


running_step: ContextVar[Any] = ContextVar("celery_durable_step", default=None)
"""The step whose action this code belongs to."""


class Overrun(Interrupt):
    """User code has run too long; raised in its midst, wherever it is."""

    def __init__(self, pulse: Pulse, error: DurableTimeoutError, step: Running | None = None) -> None:
        super().__init__(str(error))
        self.pulse = pulse
        self.error = error
        self.step = step
        """None: no step was running."""


class Pulse:
    """Whether an attempt goes on, and when it gave its last sign of life.

    One flat object, although it has many attributes: each step reads most of them.
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
        """The context was used inside a step, from a thread that does not say which."""
        self.interrupted_by: BaseException | None = None
        """What cancelled the body of an async task (a time limit): the error of the step that it meets."""
        self.closed = False
        self.is_ending = False
        """It is about to end, and what goes on in it may go on until it waits."""
        self.running: set[Running] = set()
        """Steps whose action runs; whoever takes one out decides how that execution has ended."""
        self.progressed_at = self.heard_at = time.monotonic()
        """When it gave its last sign of life; when Redis was last heard of by its code."""
        self.cancellation_told = False
        """The code knows that its run is cancelled."""
        self.home = threading.get_ident()
        """The thread of the body."""

    # -- its end

    def stop(self, interrupt: Interrupt) -> Interrupt:
        """End the attempt; the same interrupt is raised again by whatever the body does next with its context."""
        held = self.interrupt
        self.interrupt = interrupt if held is None else prevailing(held, interrupt)
        return self.interrupt

    def end_run(self, error: DurableError) -> Interrupt:
        return self.stop(EndRun(error))

    def invalid(self, message: object) -> Interrupt:
        """End the run: its code uses the context as it cannot be used."""
        return self.end_run(InvalidStepError(f"task {self.info.task_id}: {message}"))

    def unreadable(self, error: object) -> Interrupt:
        """End the run: its journal cannot be read."""
        return self.end_run(JournalUnreadableError(f"task {self.info.task_id}: {error}"))

    def ask(self, question: Callable[[], T]) -> T:
        """Ask the journal; a fence or a lost journal ends the attempt."""
        try:
            return question()
        except JournalUnavailableError as error:
            raise self.stop(JournalLost(error)) from error
        except JournalUnreadableError as error:
            raise self.end_run(error) from error
        except Fenced as fenced:
            raise self.stop(fenced) from None

    def check_goes_on(self) -> None:
        """Refuse to let an action begin after the attempt."""
        if self.closed or isinstance(self.interrupt, OUT_OF_TOUCH):
            raise self.interrupt or Fenced()

    # -- whether an action may start

    @property
    def may_start(self) -> bool:
        """Whether an action may start this very moment, as far as is known without asking Redis."""
        ended = self.closed or isinstance(self.interrupt, OUT_OF_TOUCH)
        return not (ended or self.cancel_requested or self.journal.lease_in_doubt)

    @property
    def is_in_doubt(self) -> bool:
        """Whether it is not sure that an action may start."""
        # As is_out_of_touch and cancel_requested say, without two more calls per step.
        journal = self.journal
        if self.closed or self.interrupt is not None or (journal.cancel_requested and not self.cancellation_told):
            return True
        return time.monotonic() - self.heard_at > ASK_AFTER or journal.lease_in_doubt

    @property
    def is_out_of_touch(self) -> bool:
        """Whether Redis is to be asked before an action starts: for the lease, or whether the run is cancelled."""
        return time.monotonic() - self.heard_at > ASK_AFTER or self.journal.lease_in_doubt

    @property
    def cancel_requested(self) -> bool:
        """Whether the run is to be cancelled, and its code does not know yet."""
        return self.journal.cancel_requested and not self.cancellation_told

    def hears_of_cancellation(self) -> bool:
        """As :attr:`cancel_requested`, by asking Redis if it was not asked for a second."""
        if not self.cancel_requested and time.monotonic() - self.heard_at > ASK_AFTER:
            self.heard_at = time.monotonic()
            self.journal.look_for_cancellation()
        return self.cancel_requested
