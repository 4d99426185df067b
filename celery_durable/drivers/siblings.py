"""The asyncio tasks of an attempt: which there are, which branch each is, and which of its operations have begun.

An attempt of an async task may end before its body does: a step must be retried, or the run sleeps. The steps that its
coroutines have begun finish first. :mod:`.parking` says when it may end.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol, TypeVar

from celery_durable.interrupts import Interrupt
from celery_durable.seams.asyncio import how_it_is_made, tells_what_it_awaits

from .parking import Parking
from .pulse import Pulse
from .tasks import Sibling, TaskFactory, known, look_after

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Strands(Protocol):
    """The branches of asyncio tasks."""

    @property
    def by_use(self) -> bool:
        """Whether they are numbered when they first use the context, and not when they are made."""
        ...

    def strand_of(self, task: Any) -> Any:
        """The strand of an asyncio task; None if it was not made in this attempt."""
        ...

    def branch_off(self, maker: Any, *, in_order: bool) -> Any:
        """The strand of an asyncio task that *maker* is about to make; *in_order*: it does so in a fixed order."""
        ...

    def enter(self, task: Any, strand: Any) -> None:
        """This asyncio task follows that strand."""
        ...

    def leave(self, task: Any) -> None:
        """The asyncio task has ended."""
        ...

    def race(self, maker: Any, task: Any, strand: Any) -> None:
        """*maker* gives this task to ``as_completed()``, to learn which of several ends first."""
        ...


_operations: set[str] = set()


def gives_operations(function: F) -> F:
    """Mark a coroutine function whose coroutines ``ctx.run`` or ``ctx.sleep`` give to user code."""
    _operations.add(function.__qualname__)
    return function


class InFlight:
    """The operations of an attempt that user code awaits: steps and waits."""

    def __init__(self, parking: Parking) -> None:
        self._parking = parking
        self._not_begun: dict[Callable[[], Any], tuple[Coroutine[Any, Any, Any], str]] = {}
        """Those that nobody has awaited yet, with their names."""
        self._idle: asyncio.Future[None] | None = None

    def operation(self, perform: Callable[[], Coroutine[Any, Any, T]], name: str) -> Coroutine[Any, Any, T]:
        """The coroutine of a step or a wait. Once it has begun, the attempt does not end before it."""
        self._not_begun[perform] = flight, _ = self._flight(perform), name
        return flight

    @gives_operations
    async def _flight(self, perform: Callable[[], Coroutine[Any, Any, T]]) -> T:
        del self._not_begun[perform]
        self._parking.in_flight += 1
        try:
            return await perform()
        finally:
            self._ended_one()

    def _ended_one(self) -> None:
        parking = self._parking
        parking.in_flight -= 1
        if parking.parked:
            parking.check_soon()
        if self._idle is not None and not parking.in_flight and not self._idle.done():
            self._idle.set_result(None)

    def never_awaited(self) -> str | None:
        """The name of an operation that nobody has awaited; None if there is none."""
        for flight, name in self._not_begun.values():
            # If it was cancelled before it began, somebody has waited for it.
            if inspect.getcoroutinestate(flight) == inspect.CORO_CREATED:
                flight.close()
                return name
        return None

    async def wait_idle(self) -> None:
        """Wait until none is in flight."""
        while self._parking.in_flight:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle


class Siblings:
    """The asyncio tasks of one attempt."""

    def __init__(self, pulse: Pulse, strands: Strands) -> None:
        self.pulse = pulse
        self._strands = strands
        self._parking = Parking(pulse)
        self.in_flight = InFlight(self._parking)
        self._body_is_over = False

    def begin(self) -> None:
        """The body is this asyncio task. The tasks that it makes from now on are known."""
        look_after(asyncio.get_running_loop())
        self._know(asyncio.current_task())

    def _know(self, task: Any) -> None:
        self._enter(task)
        task.add_done_callback(self._leave)

    def make(self, factory: TaskFactory, maker: Any, loop: Any, coroutine: Any, options: dict[str, Any]) -> Any:
        """Make an asyncio task of this attempt, for another one of its tasks."""
        strands = self._strands
        if strands.by_use:
            task = factory.make(loop, coroutine, options, self._enter)
        else:
            how = how_it_is_made(2)  # behind make() and the factory
            strand = strands.strand_of(maker) if how == "waited for" else None
            if strand is None:
                strand = strands.branch_off(maker, in_order=how != "racing")
            task = factory.make(loop, coroutine, options, partial(self._enter, strand=strand))
            if how == "racing":
                is_operation = getattr(coroutine, "__qualname__", "") in _operations
                strands.race(maker, task, None if is_operation else strand)
        task.add_done_callback(self._leave)
        return task

    def _enter(self, task: Any, strand: Any = None) -> None:
        known[task] = Sibling(self)
        if strand is not None:
            self._strands.enter(task, strand)
        if tells_what_it_awaits(task):
            self._parking.tasks.add(task)

    def _leave(self, task: Any) -> None:
        known.pop(task, None)
        self._parking.tasks.discard(task)
        self._strands.leave(task)
        self._parking.check_soon()

    # -- the end

    async def park(self, interrupt: Interrupt, seconds: float | None = None) -> None:
        """End the attempt by *interrupt* when all its asyncio tasks wait. Return if the seconds have passed before.

        Raises:
            Interrupt: the attempt ends by it.
            CancelledError: the body has returned meanwhile, and this wait ends with it.
        """
        if not self._body_is_over:
            if (task := asyncio.current_task()) not in known:
                # It was made in a callback. Other tasks may wait for it.
                self._know(task)
            if await self._parking.park(interrupt, seconds):
                # The wait was no inactivity, and the watchdog must not count it as one.
                self.pulse.progressed_at = time.monotonic()
                return
        if self.pulse.interrupt is None:
            raise asyncio.CancelledError
        raise self.pulse.interrupt

    async def wait_all(self) -> None:
        """After the body: give up its waits, and wait until no step is in flight. Their results are recorded."""
        self._body_is_over = True
        self._parking.release()
        if len(self._parking.tasks) > 1:
            await asyncio.sleep(0)  # a step that the body has started, and does not wait for, begins now
        await self.in_flight.wait_idle()
