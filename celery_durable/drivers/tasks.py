"""The asyncio tasks of attempts. The library's factory makes them, so that no cancellation hits a step that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from .pulse import Pulse

T = TypeVar("T")


class Siblings(Protocol):
    """The asyncio tasks of one attempt."""

    pulse: Pulse

    def make(self, factory: TaskFactory, maker: Any, loop: Any, coroutine: Any, options: dict[str, Any]) -> Any:
        """Make an asyncio task for another asyncio task."""
        ...


class Sibling:
    """What is known of one asyncio task."""

    __slots__ = ("held_for", "message", "put_off", "siblings", "steps")

    def __init__(self, siblings: Siblings) -> None:
        self.siblings = siblings
        self.held_for: Pulse | None = None
        """The attempt whose step is under way in this task. A cancellation waits for the end of the step."""
        self.put_off = 0
        """How many cancellations wait for the end of the step."""
        self.message: Any = None
        """The message of the last one. anyio recognises its own cancellation by it."""
        self.steps = 0
        """How many steps are under way in the task. Tasks that their actions make do not belong to the attempt."""


known: dict[Any, Sibling] = {}
"""The asyncio tasks of attempts, as long as they live."""


class _Task(asyncio.Task[Any]):
    """A task whose cancellation waits for the end of its step: what has begun ends, and is recorded."""

    def __init__(self, coroutine: Any, *, enter: Callable[[Any], None], **options: Any) -> None:
        # This comes first: an eager task begins while it is made.
        enter(self)
        super().__init__(coroutine, **options)

    def cancel(self, msg: Any | None = None) -> bool:
        sibling = known.get(self)
        # What ends the attempt itself (a time limit, say) does not wait.
        if sibling is None or sibling.held_for is None or sibling.held_for.interrupted_by is not None:
            return super().cancel(msg)
        # anyio cancels again in each turn of the event loop, until it is raised. All these count as one.
        if msg is None or msg != sibling.message:
            sibling.put_off += 1
            sibling.message = msg
        return True


class TaskFactory:
    """It makes the asyncio tasks of a loop. Those of an attempt are numbered and known."""

    def __init__(self, users: Any) -> None:
        self._users = users
        self._options: dict[str, Any] = {}
        if users is not None and users is getattr(asyncio, "eager_task_factory", None):
            self._users, self._options = None, {"eager_start": True}

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        maker = asyncio.current_task(loop)
        sibling = known.get(maker)
        if sibling is not None and not sibling.steps:
            return sibling.siblings.make(self, maker, loop, coroutine, options)
        return self.make(loop, coroutine, options)

    def make(self, loop: Any, coroutine: Any, options: dict[str, Any], enter: Any = lambda _: None) -> Any:
        if self._users is None:
            return _Task(coroutine, loop=loop, enter=enter, **self._options, **options)
        task = self._users(loop, coroutine, **options)
        enter(task)
        return task


def look_after(loop: asyncio.AbstractEventLoop) -> None:
    """Number the asyncio tasks that are made on this loop, also if a factory of the user's makes them."""
    users = loop.get_task_factory()
    if not isinstance(users, TaskFactory):
        loop.set_task_factory(TaskFactory(users))


# -- steps in them -----------------------------------------------------------------------------------------------------


def step_begins(pulse: Pulse) -> Sibling | None:
    """Put off cancellations of this asyncio task until :func:`step_ends`. None if it belongs to no attempt."""
    sibling = known.get(asyncio.current_task())
    if sibling is not None:
        sibling.steps += 1
        if sibling.siblings.pulse is pulse:
            sibling.held_for = pulse
    return sibling


def step_ends(sibling: Sibling | None) -> bool:
    """Let this asyncio task be cancelled again. True if somebody has tried: its next ``await`` raises that."""
    if sibling is None:
        return False
    sibling.steps -= 1
    if sibling.steps:
        return False
    sibling.held_for = None
    return sibling.put_off > 0 and _catch_up(sibling)


def is_idle() -> bool:
    """Whether the coroutine that asks is the only one of all attempts in this process."""
    return len(known) <= 1


async def cancellable(waiting: Awaitable[T]) -> T:
    """Await something that is not part of an execution. A cancellation is not put off."""
    sibling = known.get(asyncio.current_task())
    if sibling is None:
        return await waiting
    held_for, sibling.held_for = sibling.held_for, None
    _catch_up(sibling)
    try:
        return await waiting
    finally:
        sibling.held_for = held_for


def _catch_up(sibling: Sibling) -> bool:
    """Cancel this asyncio task, if somebody has tried meanwhile: its next ``await`` raises that."""
    put_off, message = sibling.put_off, sibling.message
    sibling.put_off, sibling.message = 0, None
    task: Any = asyncio.current_task()
    for _ in range(put_off):
        task.cancel(message)
    return put_off > 0
