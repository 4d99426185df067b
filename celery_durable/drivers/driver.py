"""How a step waits: in its thread, or on the event loop of the process. The code of steps is written once, for both."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from celery_durable.interrupts import Interrupt

from .pulse import Running
from .threads import MOST_QUESTIONS, Thread, questions

T = TypeVar("T")

LARGE = 2**16
"""Characters. A thread encodes, sends and reads a larger text: a socket takes it no faster than its peer reads."""


class LargeWrites(Protocol):
    """The outbox of an attempt, as a driver sees it that sends what is large in a thread."""

    keeps_back: bool
    """What is staged waits for a thread that sends it."""

    def send_staged(self, *, with_next: bool = False) -> None:
        """Send what is staged, without waiting."""
        ...

    def send_large(self) -> Callable[[], None]:
        """A function that sends all that was kept back, and waits for the reply. Any thread may call it."""
        ...

    def sent_large(self, most: float) -> None:
        """That is over. Send what was staged meanwhile, unless a text of it has more than *most* characters."""
        ...


class Driver(Protocol):
    """It waits for the steps of one attempt."""

    most_at_once: float
    """Characters of an entry that may be sent without a thread."""
    on_loop: bool
    """Other coroutines go on while it waits, and must not be held up."""

    async def thread_for(self, step: Running) -> Thread:
        """Wait for a thread for the step's action. It is called on the loop only.

        Raises:
            Interrupt: the attempt has ended meanwhile.
        """
        ...

    async def call(self, step: Running, thread: Thread | None) -> Any:
        """The result of the step's action; an awaitable is awaited.

        Raises:
            Stale: the action was not started, because its attempt must check again whether it may start one.
        """

    async def flush(self) -> None:
        """Wait until the journal has acknowledged all that was sent."""

    async def ask(self, question: Callable[[], None]) -> None:
        """Wait until a blocking question to the journal is answered."""

    async def pause(self, seconds: float) -> None:
        """Wait for so many seconds."""

    async def park(self, interrupt: Interrupt, seconds: float) -> None:
        """Wait until nothing of the attempt goes on but waits. That ends it. Return if the seconds pass before that.

        Raises:
            Interrupt: the attempt ends by it.
            CancelledError: the body is over, and the wait with it.
        """

    def is_cancelled(self, error: BaseException) -> bool:
        """Whether somebody has cancelled the code that runs here. Such an error says nothing about an action."""
        ...


def run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that blocks its thread when it waits, and so is never suspended."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("a coroutine of a def task was suspended")  # pragma: no cover


async def off_loop(work: Callable[[], T]) -> T:
    """Do work in a thread, to its end, that would hold up the event loop."""
    return await questions.do(MOST_QUESTIONS, work)
