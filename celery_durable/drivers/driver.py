"""What a step waits for: a thread that waits itself, or the process's event loop. What waits is written once."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from celery_durable.interrupts import Interrupt

from .pulse import Running
from .threads import MOST_QUESTIONS, Thread, questions

T = TypeVar("T")

LARGE = 2**16
"""Characters; what is larger is encoded, sent and read in a thread: a socket takes as much only as it is read from."""


class LargeWrites(Protocol):
    """The outbox of an attempt, as a driver sees it that sends what is large in a thread."""

    keeps_back: bool
    """What is staged waits for a thread to send it."""

    def send_staged(self, *, with_next: bool = False) -> None:
        """Send it, without waiting."""
        ...

    def send_large(self) -> Callable[[], None]:
        """What sends all that was kept back, in any thread, and waits until it is acknowledged."""
        ...

    def sent_large(self, most: float) -> None:
        """That is over; what was staged meanwhile follows, unless it has more than so many characters itself."""
        ...


class Driver(Protocol):
    """What the steps of one attempt have to wait for."""

    most_at_once: float
    """Characters of an entry that may be sent without a thread."""
    on_loop: bool
    """Others go on while it waits, and are not to be held up."""

    async def thread_for(self, step: Running) -> Thread:
        """A thread for the step's action, once one is there; asked on the loop only.

        Raises:
            Interrupt: the attempt has ended meanwhile.
        """
        ...

    async def call(self, step: Running, thread: Thread | None) -> Any:
        """The result of the step's action; an awaitable is awaited.

        Raises:
            Stale: the action was not started, because what its attempt may do is to be asked once more.
        """

    async def flush(self) -> None:
        """Until the journal has acknowledged all that was sent."""

    async def ask(self, question: Callable[[], None]) -> None:
        """Until a blocking question to the journal is answered."""

    async def pause(self, seconds: float) -> None:
        """For a while."""

    async def park(self, interrupt: Interrupt, seconds: float) -> None:
        """Until nothing of the attempt goes on but waits, which ends it; or until the seconds have passed before.

        Raises:
            Interrupt: by which it ends.
            CancelledError: the body is over, and the wait with it.
        """

    def is_cancelled(self, error: BaseException) -> bool:
        """Whether it says that somebody has cancelled what runs here: that says nothing about an action."""
        ...


def run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits in its thread: it never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("a coroutine of a def task was suspended")  # pragma: no cover


async def off_loop(work: Callable[[], T]) -> T:
    """Do in a thread, to its end, what would hold up the event loop."""
    return await questions.do(MOST_QUESTIONS, work)
