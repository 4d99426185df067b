"""The driver of ``async def`` tasks: other coroutines go on while it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn, TypeVar

from celery_durable.interrupts import OUT_OF_TOUCH, PATIENT, Interrupt
from celery_durable.journal.port import LONGEST_READ

from . import upkeep
from .action import act_in_lent_thread, begin_action
from .driver import LARGE, LargeWrites, off_loop
from .loop import is_async, is_to_be_lent, limited
from .pulse import Pulse, Running
from .siblings import Siblings
from .tasks import cancellable, is_idle, step_begins, step_ends
from .threads import Thread, actions, to_its_end
from .watchdog import timed_out

S = TypeVar("S", bound=Running)


class OnLoop:
    """It waits on the event loop that runs the body. One per attempt."""

    most_at_once: float = LARGE
    on_loop = True

    def __init__(self, pulse: Pulse, outbox: LargeWrites, siblings: Siblings) -> None:
        self._pulse = pulse
        self._outbox = outbox
        self._siblings = siblings
        self._reading = asyncio.Lock()

    async def perform(self, execute: Callable[[S, OnLoop], Awaitable[Any]], step: S) -> Any:
        """Let a step execute to its end, even if somebody cancels it meanwhile."""
        sibling = step_begins(self._pulse)
        try:
            value = await execute(step, self)
        except Interrupt as interrupt:
            step_ends(sibling)
            actions.withdraw(self._pulse)
            await self.end_by(interrupt)
        except BaseException:
            step_ends(sibling)
            raise
        if step_ends(sibling):
            await asyncio.sleep(0)  # this raises the cancellation
        return value

    async def end_by(self, interrupt: Interrupt) -> NoReturn:
        """Raise what ends the attempt, as soon as its other coroutines have ended what they have begun."""
        if isinstance(interrupt, PATIENT):
            await self._siblings.park(interrupt)
        raise self._pulse.interrupt or interrupt

    # -- a step's action

    async def thread_for(self, step: Running) -> Thread:
        most = self._pulse.settings.step_threads
        return actions.take(most) or await self._queue(step, most)

    async def _queue(self, step: Running, most: int) -> Thread:
        pulse = self._pulse
        thread = await cancellable(actions.queue(most, step)) if pulse.interrupt is None else None
        if thread is None or pulse.interrupt is not None:
            if thread is not None:
                thread.leave()
            raise pulse.interrupt or asyncio.CancelledError
        return thread

    async def call(self, step: Running, thread: Thread | None) -> Any:
        if thread is not None:
            result = await _in_its_thread(step, thread)
        elif is_to_be_lent(step) and not is_async(step.action):
            result = await _in_lent_thread(step)
        else:
            result = step.action(*step.args, **step.kwargs)
        if not isinstance(result, Awaitable):
            return result
        with upkeep.on_loop(step):
            return await result if step.options.timeout is None else await limited(step, result)

    # -- the journal

    async def flush(self) -> None:
        # Siblings share one connection. The first one that reads gets the replies for all.
        async with self._reading:
            pulse, journal = self._pulse, self._pulse.journal
            if isinstance(pulse.interrupt, OUT_OF_TOUCH):
                raise pulse.interrupt
            if self._outbox.keeps_back:
                await self._send_large()
            if not journal.has_pending:
                return
            fd = journal.fileno()
            if fd is not None and await self._arrives(fd) and pulse.ask(journal.flush_if_connected):
                return
            await self._in_thread(journal.flush)

    async def _send_large(self) -> None:
        try:
            await self._in_thread(self._outbox.send_large())
        finally:
            self._outbox.sent_large(self.most_at_once)

    async def _arrives(self, fd: int) -> bool:
        """Wait for the reply; False if none comes in time: a connection may be lost, and nothing says so."""
        if is_idle():
            await asyncio.sleep(0)  # what else is due on the loop comes first
            if is_idle() and self._pulse.journal.spin_wait():
                return True
        return await _readable(fd)

    async def ask(self, question: Callable[[], None]) -> None:
        async with self._reading:
            await self._in_thread(question)

    async def _in_thread(self, question: Callable[[], None]) -> None:
        # The question is waited for even if this task is cancelled: the next reader must be alone on the connection.
        await off_loop(partial(self._pulse.ask, question))

    # -- waits

    async def pause(self, seconds: float) -> None:
        await cancellable(asyncio.sleep(seconds))

    async def park(self, interrupt: Interrupt, seconds: float) -> None:
        self._outbox.send_staged()
        await self._siblings.park(interrupt, seconds)

    def is_cancelled(self, error: BaseException) -> bool:
        # Python 3.11 counts cancellations. If an action has cancelled itself, it has also taken that back.
        task: Any = asyncio.current_task()
        return isinstance(error, asyncio.CancelledError) and hasattr(task, "cancelling") and task.cancelling() > 0


async def _in_lent_thread(step: Running) -> Any:
    outcome = act_in_lent_thread(step)
    if step.options.timeout is not None:
        done, _ = await asyncio.wait({asyncio.wrap_future(outcome)}, timeout=step.options.longest_execution)
        if not done:
            raise timed_out(step)
    return await to_its_end(outcome)


async def _in_its_thread(step: Running, thread: Thread) -> Any:
    item = begin_action(step, thread)
    if step.options.timeout is None:
        return await to_its_end(item.outcome)
    loop = asyncio.get_running_loop()
    timer = loop.call_later(step.options.longest_execution, lambda: item.give_up(step, timed_out(step)))
    try:
        return await to_its_end(item.outcome)
    finally:
        timer.cancel()


async def _readable(fd: int) -> bool:
    """Wait until something arrives; False if nothing does."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[bool] = loop.create_future()
    loop.add_reader(fd, _end, arrived, True)
    patience = loop.call_later(LONGEST_READ, _end, arrived, False)
    try:
        return await arrived
    finally:
        patience.cancel()
        loop.remove_reader(fd)


def _end(arrived: asyncio.Future[bool], has_arrived: bool) -> None:
    if not arrived.done():
        arrived.set_result(has_arrived)
