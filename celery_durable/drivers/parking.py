"""An end of an attempt waits until all its asyncio tasks only wait.

A sleep ends the attempt only when each of its asyncio tasks waits: for such an end, or for another task of the attempt.
If a task awaits something else, nobody here knows how long that takes. So a sleep waits for it, and the attempt keeps
its worker. Other ends do not wait for it: no step can begin any more, and a task that a library keeps running for ever
would hold up the end for ever.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from celery_durable.interrupts import Interrupt, Sleep
from celery_durable.seams.asyncio import awaited_by, needed_by, parts_of

from .pulse import Pulse

logger = logging.getLogger("celery_durable")

_TURNS_TO_BE_SURE = 10
"""Within so many turns of the event loop, a coroutine whose step has ended may begin the next one."""
LONG = 60.0
"""When a sleep has been held up for so many seconds, that is logged."""
STUCK = 5.0
"""Seconds. A step may wait for its siblings, while they wait for the attempt to end: then it is waited for so long."""


class Parking:
    """An end of an attempt that waits until all its asyncio tasks only wait."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self.tasks: set[Any] = set()
        """Asyncio tasks of the attempt that say what they wait for."""
        self.in_flight = 0
        """Steps and waits that have begun and have not ended."""
        self.parked: dict[asyncio.Future[bool], Interrupt] = {}
        """Those of them that wait for the end of the attempt, and the end that each asks for."""
        self._checks = _Checks()

    async def park(self, interrupt: Interrupt, seconds: float | None) -> bool:
        """Wait for the end of the attempt, by this or another interrupt. True if the seconds have passed before."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, _resolve, turn, True)
        self.parked[turn] = interrupt
        self._pulse.is_ending = True
        self.check_soon()
        try:
            return await turn
        finally:
            if timer is not None:
                timer.cancel()
            self._unpark(turn)

    def _unpark(self, turn: asyncio.Future[bool]) -> None:
        del self.parked[turn]
        if not self.parked:
            self._pulse.is_ending = False
            self._checks.cancel()

    def release(self) -> None:
        """Let nothing wait for the end any more."""
        self._pulse.is_ending = False
        for turn in self.parked:
            _resolve(turn, False)

    def _end(self) -> None:
        for interrupt in self.parked.values():
            self._pulse.stop(interrupt)
        self.release()

    # -- whether all of them wait

    def check_soon(self, _changed: object = None) -> None:
        """Something has changed. Check again if anything waits for the end."""
        if self.parked and not self._checks.is_due:
            self._checks.is_due = True
            asyncio.get_running_loop().call_soon(self._check)

    def _check(self) -> None:
        """End the attempt if nothing goes on that its end waits for. Else check again when that has got on."""
        checks = self._checks
        checks.is_due = False
        if not self._pulse.is_ending:
            return
        if self.in_flight > len(self.parked):
            checks.sure = 0
            # A sleeper wakes up by itself.
            if checks.stuck is None and not self._sleeps:
                self._check_whether_stuck(None)
            return
        busy = next((task for task in self.tasks if not self._waits(task)), None) if self._sleeps else None
        if busy is not None:
            checks.sure = 0
            self._watch(busy)
        elif checks.sure < _TURNS_TO_BE_SURE:
            checks.sure += 1
            self.check_soon()
        else:
            checks.sure = 0
            self._end()

    @property
    def _sleeps(self) -> bool:
        """Whether all that is parked wakes up by itself."""
        return all(isinstance(interrupt, Sleep) for interrupt in self.parked.values())

    def _waits(self, task: Any) -> bool:
        """Whether a task does nothing until the attempt has ended, or until another of its tasks has got on."""
        awaited = awaited_by(task)
        if awaited is None or awaited.done():
            return False
        if awaited in self.parked or self._is_of_siblings(awaited):
            return True
        needed = needed_by(task.get_coro())
        return needed is not None and all(map(self._is_of_siblings, needed))

    def _is_of_siblings(self, future: Any) -> bool:
        """Whether a future is done as soon as siblings are."""
        if future in self.tasks:
            return True
        parts = [part for part in parts_of(future) if not part.done()]
        return bool(parts) and all(map(self._is_of_siblings, parts))

    def _check_whether_stuck(self, before: dict[Any, Any] | None) -> None:
        """End the attempt although steps are under way, if they wait for the body and the body waits for them."""
        self._checks.stuck = None
        if not self._pulse.is_ending or self.in_flight <= len(self.parked):
            return
        now = {task: awaited_by(task) for task in self.tasks} if all(map(self._waits, self.tasks)) else None
        if now is not None and now == before:
            self._end()
        else:
            self._checks.stuck = asyncio.get_running_loop().call_later(STUCK, self._check_whether_stuck, now)

    def _watch(self, busy: Any) -> None:
        """Check again when this task has got on."""
        awaited, checks = awaited_by(busy), self._checks
        if awaited is None or awaited.done():
            self.check_soon()
        elif awaited is not checks.watched:
            checks.watched = awaited
            awaited.add_done_callback(self.check_soon)
        if checks.long is None:
            checks.long = asyncio.get_running_loop().call_later(LONG, self._say_that_it_takes_long, busy)

    def _say_that_it_takes_long(self, busy: Any) -> None:
        if self.parked and not busy.done():
            logger.info(
                "task %s keeps its worker while it waits: %s awaits something that is none of its steps and waits",
                self._pulse.info.task_id, getattr(busy.get_coro(), "__qualname__", busy),
            )  # fmt: skip


class _Checks:
    """The state of the checks whether all asyncio tasks of an attempt wait."""

    __slots__ = ("is_due", "long", "stuck", "sure", "watched")

    def __init__(self) -> None:
        self.is_due = False
        self.sure = 0
        """So many checks in a row, each in its own turn of the loop, have found that nothing goes on."""
        self.watched: Any = None
        self.long: asyncio.TimerHandle | None = None
        self.stuck: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        for timer in (self.long, self.stuck):
            if timer is not None:
                timer.cancel()
        self.long = self.stuck = None


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
