"""How an attempt ends before its body returns.

An interrupt is a ``BaseException``, so that no ``except Exception`` of user code swallows it. The context raises it,
and only the edge of the task catches it.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

from .exceptions import DurableError

if TYPE_CHECKING:
    from .journal.port import OpenResult


class Interrupt(BaseException):
    """The attempt is over; user code must let this pass (write ``except Exception``, not a bare ``except``)."""


class RetryStep(Interrupt):
    """A step has failed, and a later attempt executes it again."""

    def __init__(self, step: str, error: BaseException, delay: float) -> None:
        super().__init__(f"step {step!r} is to be retried in {delay:g} s")
        self.error = error
        self.delay = delay


class Sleep(Interrupt):
    """The run sleeps: it goes on in a later attempt, at *until* (ms since the epoch, by Redis' clock)."""

    def __init__(self, name: str, until: int) -> None:
        super().__init__(f"asleep at {name!r} until {until}")
        self.name = name
        self.until = until

    @property
    def until_text(self) -> str:
        return text_of_time(self.until)


def text_of_time(milliseconds: int) -> str:
    """A time by Redis' clock, for people."""
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc).isoformat(timespec="milliseconds")


class FailAttempt(Interrupt):
    """A step without retry options failed: the failure is handled like any other exception of the task."""

    def __init__(self, step: str, error: BaseException) -> None:
        super().__init__(f"step {step!r} failed with {type(error).__qualname__}")
        self.error = error


class EndRun(Interrupt):
    """The run cannot go on, now or later."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Stall(Interrupt):
    """The journal does not fit this code, and another build has recorded it. A worker with that build can go on."""

    def __init__(self, error: BaseException, misfit: dict[str, str]) -> None:
        super().__init__(str(error))
        self.error = error
        """The run fails with this error if no such worker takes it."""
        self.misfit = misfit
        """``position``, what was ``found`` there and what was ``expected``, ``found_build``, ``expected_build``."""


class JournalLost(Interrupt):
    """The journal cannot be reached. Celery tries the whole attempt again."""

    def __init__(self, error: DurableError) -> None:
        super().__init__(str(error))
        self.error = error


class Fenced(Interrupt):
    """Another attempt of this run has taken over. This one ends quietly, and changes nothing more."""


class NotNow(Interrupt):
    """This delivery does not begin an attempt (see *refusal*)."""

    def __init__(self, refusal: OpenResult) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


PATIENT = (Sleep, RetryStep, FailAttempt, EndRun, Stall)
"""An attempt ends by one of these only when its coroutines have ended what they have begun."""
OUT_OF_TOUCH = (Fenced, JournalLost)
"""After one of these, nothing more is written into the journal."""


def prevailing(held: Interrupt, new: Interrupt) -> Interrupt:
    """Which of two interrupts ends the attempt: the *held* one, or a *new* one."""
    if isinstance(new, OUT_OF_TOUCH) and not isinstance(held, Fenced):
        # Without its journal, an attempt cannot end as it was about to end.
        return new
    if isinstance(held, (Sleep, RetryStep, FailAttempt)) and isinstance(new, EndRun):
        # A run that cannot go on is not tried again.
        return new
    if isinstance(held, Sleep) and isinstance(new, (Sleep, RetryStep, FailAttempt)):
        # Siblings wait: the first to wake up wakes the run, and a failed one does not wait for sleepers.
        asleep_longer = isinstance(new, Sleep) and new.until >= held.until
        return held if asleep_longer else new
    if isinstance(held, RetryStep) and isinstance(new, RetryStep):
        # Siblings failed: the next attempt begins when the last of them is due.
        held.delay = max(held.delay, new.delay)
    return held
