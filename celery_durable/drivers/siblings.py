"""The asyncio tasks of an attempt: which there are, which branch each is, and whether all do nothing but wait.

An attempt of an async task may end before its body does: a step is to be retried, the run sleeps. The steps that its
coroutines have begun are let finish first, and what goes on beside a sleep goes on: that waits until every asyncio task
of the attempt waits, for an end like that or for one of the others. A task that awaits anything else, of which nobody
here knows when it ends, goes on beside a sleep, and meanwhile the attempt keeps its worker. Another end than a sleep
does not wait for it: no step can begin any more, and what a library keeps going for ever would keep it for ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from celery_durable.interrupts import Interrupt, Sleep
from celery_durable.seams.asyncio import awaited_by, how_it_is_made, needed_by, parts_of, tells_what_it_awaits
from celery_durable.steps.places import Places, Strand

if TYPE_CHECKING:
    from celery_durable.steps.attempt import Attempt

T = TypeVar("T")

logger = logging.getLogger("celery_durable")

_TURNS_TO_BE_SURE = 10
"""Turns of the event loop in which a coroutine whose step has ended may begin the next one."""
LONG = 60.0
"""Seconds that a sleep is held up, after which that is told."""

STUCK = 5.0
"""Seconds after which nobody waits for a step that waits for its siblings, while they wait for the attempt to end."""


class _Sibling:
    """What is known of one asyncio task."""

    __slots__ = ("family", "held_for", "message", "put_off", "steps")

    def __init__(self, family: Siblings) -> None:
        self.family = family
        self.held_for: Attempt | None = None
        """That whose step is under way in it, and is let finish."""
        self.put_off = 0
        """Cancellations that wait for the end of that."""
        self.message: Any = None
        """Of the last of them: anyio knows its own by it."""
        self.steps = 0
        """Steps that are under way in it; what their actions make is none of the attempt's."""


# The asyncio tasks of attempts, as long as they live.
_known: dict[Any, _Sibling] = {}


class _Task(asyncio.Task[Any]):
    """A task that is not cancelled amid a step: what has begun is let finish and recorded, whoever cancels."""

    def __init__(self, coroutine: Any, *, enter: Callable[[Any], None], **options: Any) -> None:
        # First: an eager task begins while it is being made.
        enter(self)
        super().__init__(coroutine, **options)

    def cancel(self, msg: Any | None = None) -> bool:
        sibling = _known.get(self)
        # What ends the attempt itself (a time limit, say) does not wait.
        if sibling is None or sibling.held_for is None or sibling.held_for.struck_by is not None:
            return super().cancel(msg)
        # anyio cancels at every turn of the event loop, until it has been heard.
        if msg is None or msg != sibling.message:
            sibling.put_off += 1
            sibling.message = msg
        return True


class _Factory:
    """Makes the asyncio tasks of a loop; those of an attempt are numbered and known."""

    def __init__(self, users: Any) -> None:
        self._users = users
        self._options: dict[str, Any] = {}
        if users is not None and users is getattr(asyncio, "eager_task_factory", None):
            self._users, self._options = None, {"eager_start": True}

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        maker = asyncio.current_task(loop)
        sibling = _known.get(maker)
        if sibling is not None and not sibling.steps:
            return sibling.family.make(self, maker, loop, coroutine, options)
        return self.make(loop, coroutine, options)

    def make(self, loop: Any, coroutine: Any, options: dict[str, Any], enter: Any = lambda _: None) -> Any:
        if self._users is None:
            return _Task(coroutine, loop=loop, enter=enter, **self._options, **options)
        task = self._users(loop, coroutine, **options)
        enter(task)
        return task


def look_after(loop: asyncio.AbstractEventLoop) -> None:
    """Number the asyncio tasks that are made on this loop; also those that a factory of the user's makes."""
    users = loop.get_task_factory()
    if not isinstance(users, _Factory):
        loop.set_task_factory(_Factory(users))


class Siblings:
    """The asyncio tasks of one attempt."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._tasks: set[Any] = set()
        self.flying = 0
        """Steps and waits that have begun and have not ended."""
        self._parked: dict[asyncio.Future[bool], Interrupt] = {}
        self._attempt: Attempt | None = None
        """As long as something is parked."""
        self.body_is_over = False
        self._released = False
        self._landing: asyncio.Future[None] | None = None
        self._looks = False
        self._sure = 0
        self._watched: Any = None
        self._long: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    # -- which there are

    def begin(self) -> None:
        """The body is this asyncio task; what it makes from now on is known."""
        look_after(asyncio.get_running_loop())
        self._know(asyncio.current_task())

    def _know(self, task: Any) -> None:
        self._enter(task)
        task.add_done_callback(self._leave)

    def make(self, factory: _Factory, maker: Any, loop: Any, coroutine: Any, options: dict[str, Any]) -> Any:
        """An asyncio task of this attempt, made by another one of it."""
        if self._places.by_use:
            task = factory.make(loop, coroutine, options, self._enter)
        else:
            how = how_it_is_made(2)  # behind make() and the factory
            strand = self._places.strand_of(maker) if how == "waited for" else None
            if strand is None:
                strand = self._places.branch_off(maker, in_order=how != "racing")
            task = factory.make(loop, coroutine, options, partial(self._enter, strand=strand))
            if how == "racing":
                is_step = getattr(coroutine, "__qualname__", "") in _STEPS
                self._places.race(maker, task, None if is_step else strand)
        task.add_done_callback(self._leave)
        return task

    def _enter(self, task: Any, strand: Strand | None = None) -> None:
        _known[task] = _Sibling(self)
        if strand is not None:
            self._places.enter(task, strand)
        if tells_what_it_awaits(task):
            self._tasks.add(task)

    def _leave(self, task: Any) -> None:
        _known.pop(task, None)
        self._tasks.discard(task)
        self._places.leave(task)
        self._look_soon()

    # -- what has begun is let finish

    def landed_one(self) -> None:
        """A step or a wait has ended."""
        self.flying -= 1
        if self._parked:
            self._look_soon()
        if self._landing is not None and not self.flying and not self._landing.done():
            self._landing.set_result(None)

    async def landed(self) -> None:
        """After the body: until no step is in flight, whose result is recorded, too; waits are given up."""
        self.body_is_over = True
        self._release(its_time_has_come=False)
        if len(self._tasks) > 1:
            await asyncio.sleep(0)  # a step that the body has begun last, and waits for no more, begins
        while self.flying:
            self._landing = asyncio.get_running_loop().create_future()
            await self._landing

    # -- an end that waits for the others

    @property
    def is_ending(self) -> bool:
        """Whether the attempt is about to end, and what goes on in it may go on until it waits."""
        return bool(self._parked) and not self._released

    async def park(self, attempt: Attempt, interrupt: Interrupt, seconds: float | None = None) -> None:
        """End the attempt by *interrupt* when all its asyncio tasks wait; return if the seconds have passed before.

        Raises:
            Interrupt: by which it ends.
            CancelledError: the body has returned meanwhile, and this wait ends with it.
        """
        if not self.body_is_over:
            loop = asyncio.get_running_loop()
            if (task := asyncio.current_task()) not in _known:
                # Made in a callback: others may wait for it.
                self._know(task)
            turn: asyncio.Future[bool] = loop.create_future()
            timer = None if seconds is None else loop.call_later(seconds, _resolve, turn, True)
            self._parked[turn] = interrupt
            self._attempt = attempt
            self._released = False
            self._look_soon()
            try:
                if await turn:
                    # It was no silence, and nobody is to take it for one now.
                    attempt.progressed_at = time.monotonic()
                    return
            finally:
                if timer is not None:
                    timer.cancel()
                self._unpark(turn)
        if attempt.interrupt is None:
            raise asyncio.CancelledError
        raise attempt.interrupt

    def _unpark(self, turn: asyncio.Future[bool]) -> None:
        del self._parked[turn]
        if not self._parked:
            self._attempt = None
            for timer in (self._long, self._stuck):
                if timer is not None:
                    timer.cancel()
            self._long = self._stuck = None

    def _release(self, *, its_time_has_come: bool) -> None:
        self._released = True
        for turn in self._parked:
            _resolve(turn, its_time_has_come)

    def _look_soon(self, _changed: object = None) -> None:
        if self._parked and not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """End the attempt if nothing goes on that it waits for; else look again when that has got on."""
        self._looks = False
        attempt = self._attempt
        if attempt is None or self._released:
            return
        if self.flying > len(self._parked):
            self._sure = 0
            # A sleeper wakes up by itself.
            if self._stuck is None and not self._sleeps:
                self._look_whether_stuck(None)
            return
        busy = next((task for task in self._tasks if not self._waits(task)), None) if self._sleeps else None
        if busy is not None:
            self._sure = 0
            self._watch(busy)
        elif self._sure < _TURNS_TO_BE_SURE:
            self._sure += 1
            self._look_soon()
        else:
            self._sure = 0
            self._end(attempt)

    @property
    def _sleeps(self) -> bool:
        """Whether all that is parked wakes up by itself."""
        return all(isinstance(interrupt, Sleep) for interrupt in self._parked.values())

    def _end(self, attempt: Attempt) -> None:
        for interrupt in self._parked.values():
            attempt.stop(interrupt)
        self._release(its_time_has_come=False)

    def _look_whether_stuck(self, before: dict[Any, Any] | None) -> None:
        """End the attempt although steps are under way, if they wait for what the body does, and it for them."""
        if self._attempt is None or self._released or self.flying <= len(self._parked):
            self._stuck = None
            return
        now = {task: awaited_by(task) for task in self._tasks} if all(map(self._waits, self._tasks)) else None
        if now is not None and now == before:
            self._stuck = None
            self._end(self._attempt)
        else:
            self._stuck = asyncio.get_running_loop().call_later(STUCK, self._look_whether_stuck, now)

    def _watch(self, busy: Any) -> None:
        """Look again when this task has got on."""
        awaited = awaited_by(busy)
        if awaited is None or awaited.done():
            self._look_soon()
        elif awaited is not self._watched:
            self._watched = awaited
            awaited.add_done_callback(self._look_soon)
        if self._long is None:
            self._long = asyncio.get_running_loop().call_later(LONG, self._tell, busy)

    def _tell(self, busy: Any) -> None:
        if self._attempt is not None and not busy.done():
            logger.info(
                "task %s keeps its worker while it waits: %s awaits something that is none of its steps and waits",
                self._attempt.about.task_id, getattr(busy.get_coro(), "__qualname__", busy),
            )  # fmt: skip

    # -- what an asyncio task waits for

    def _waits(self, task: Any) -> bool:
        """Whether it does nothing until the attempt has ended, or another one of its tasks has got on."""
        awaited = awaited_by(task)
        if awaited is None or awaited.done():
            return False
        return awaited in self._parked or self._is_of_siblings(awaited) or self._is_among_siblings(task.get_coro())

    def _is_of_siblings(self, future: Any) -> bool:
        """Whether it is done when siblings are."""
        if future in self._tasks:
            return True
        parts = [part for part in parts_of(future) if not part.done()]
        return bool(parts) and all(map(self._is_of_siblings, parts))

    def _is_among_siblings(self, coroutine: Any) -> bool:
        """Whether it waits in a function that waits for siblings."""
        needed = needed_by(coroutine)
        return needed is not None and all(map(self._is_of_siblings, needed))


_STEPS = {"Attempt._flight", "_replayed"}
"""Coroutines that ``ctx.run`` and ``ctx.sleep`` give."""


def step_begins(attempt: Attempt) -> _Sibling | None:
    """In this asyncio task, which is not cancelled until :func:`step_ends`; None if it is none that is known."""
    sibling = _known.get(asyncio.current_task())
    if sibling is not None:
        sibling.steps += 1
        if sibling.family is attempt.siblings:
            sibling.held_for = attempt
    return sibling


def step_ends(sibling: _Sibling | None) -> bool:
    """Let this asyncio task be cancelled; whether it has been meanwhile: its next ``await`` raises that."""
    if sibling is None:
        return False
    sibling.steps -= 1
    if sibling.steps:
        return False
    sibling.held_for = None
    return sibling.put_off > 0 and _catch_up(sibling)


def is_alone() -> bool:
    """Whether no attempt of this process has coroutines beside the one that asks."""
    return len(_known) <= 1


async def cancellable(waiting: Awaitable[T]) -> T:
    """Await what is nothing of an execution: a cancellation is not put off."""
    sibling = _known.get(asyncio.current_task())
    if sibling is None:
        return await waiting
    held_for, sibling.held_for = sibling.held_for, None
    _catch_up(sibling)
    try:
        return await waiting
    finally:
        sibling.held_for = held_for


def _catch_up(sibling: _Sibling) -> bool:
    """Cancel this asyncio task, if somebody has tried to meanwhile: its next ``await`` raises that."""
    put_off, message = sibling.put_off, sibling.message
    sibling.put_off, sibling.message = 0, None
    task: Any = asyncio.current_task()
    for _ in range(put_off):
        task.cancel(message)
    return put_off > 0


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
