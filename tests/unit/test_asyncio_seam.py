"""What asyncio keeps to itself: each name that is used fails here when it is not what it was."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from celery_durable.seams.asyncio import awaited_by, how_it_is_made, needed_by, parts_of, tells_what_it_awaits

LONG = 60.0


async def stands_in(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that does this, and waits."""
    task = asyncio.ensure_future(work)
    for _ in range(10):  # turns of the event loop
        await asyncio.sleep(0)
    assert awaited_by(task) is not None
    return task


async def end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


# -- what a task waits for ---------------------------------------------------------------------------------------------


@on_a_loop
async def test_the_future_that_a_task_waits_for_is_known() -> None:
    future = asyncio.get_running_loop().create_future()

    async def wait() -> None:
        await future

    task = asyncio.ensure_future(wait())
    assert tells_what_it_awaits(task)
    assert awaited_by(task) is None
    await asyncio.sleep(0)
    assert awaited_by(task) is future

    future.set_result(None)
    await task
    assert awaited_by(task) is None


@on_a_loop
async def test_a_future_is_no_task_that_tells_what_it_awaits() -> None:
    assert not tells_what_it_awaits(asyncio.get_running_loop().create_future())


@on_a_loop
async def test_the_parts_of_what_gather_and_shield_give_are_known() -> None:
    one, two = (asyncio.get_running_loop().create_future() for _ in range(2))

    gathered = asyncio.gather(one, two)
    shielded = asyncio.shield(one)

    assert parts_of(gathered) == [one, two]
    assert parts_of(shielded) == [one]
    assert parts_of(one) == []
    assert parts_of(None) == []
    for future in (one, two):
        future.set_result(None)
    await asyncio.gather(gathered, shielded)


@on_a_loop
async def test_what_wait_and_wait_for_need_is_known() -> None:
    one, two = (asyncio.get_running_loop().create_future() for _ in range(2))

    async def needed(work: Any) -> Any:
        task = await stands_in(work)
        found = needed_by(task.get_coro())
        await end(task)
        return found

    first = asyncio.FIRST_COMPLETED
    assert set(await needed(asyncio.wait({one, two}))) == {one, two}
    assert set(await needed(asyncio.wait({one, two}, return_when=first))) == {one, two}
    assert await needed(asyncio.wait({one, two}, timeout=LONG)) is None
    two.set_result(None)
    assert await needed(asyncio.wait({one, two})) == [one]
    assert await needed(_awaits(one)) is None
    one = asyncio.get_running_loop().create_future()
    assert await needed(asyncio.wait_for(one, LONG)) == [one]


async def _awaits(future: asyncio.Future[Any]) -> Any:
    return await future


async def _full() -> asyncio.Queue[int]:
    queue: asyncio.Queue[int] = asyncio.Queue(1)
    await queue.put(1)
    return queue


async def _locked() -> asyncio.Lock:
    lock = asyncio.Lock()
    await lock.acquire()
    return lock


async def _take_lock() -> None:
    await (await _locked()).acquire()


async def _take_semaphore() -> None:
    await asyncio.Semaphore(0).acquire()


async def _wait_for_event() -> None:
    await asyncio.Event().wait()


async def _wait_for_condition() -> None:
    async with (condition := asyncio.Condition()):
        await condition.wait()


async def _get_from_queue() -> None:
    await asyncio.Queue[int]().get()


async def _put_into_queue() -> None:
    await (await _full()).put(2)


async def _end_anyios_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)


async def _wait_at_barrier() -> None:
    await asyncio.Barrier(2).wait()  # type: ignore[attr-defined, unused-ignore]


async def _end_group() -> None:
    async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined, unused-ignore]
        group.create_task(asyncio.Event().wait())


_SINCE_3_11 = [_wait_at_barrier, _end_group] if sys.version_info >= (3, 11) else []


@pytest.mark.parametrize(
    "wait",
    [
        _take_lock, _take_semaphore, _wait_for_event, _wait_for_condition, _get_from_queue, _put_into_queue,
        _end_anyios_group, *_SINCE_3_11,
    ],
)  # fmt: skip
def test_what_waits_for_others_is_known(wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def look() -> list[Any] | None:
        task = await stands_in(wait())
        found = needed_by(task.get_coro())
        await end(task)
        return found

    assert asyncio.run(look()) == []


@on_a_loop
async def test_a_clock_is_none_of_the_others() -> None:
    task = await stands_in(asyncio.sleep(LONG))

    assert needed_by(task.get_coro()) is None

    await end(task)


# -- on whose behalf a task is made ------------------------------------------------------------------------------------


class Makers:
    """On whose behalf the tasks of a loop are made; as a task factory."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        self.known.append(how_it_is_made(1))
        return asyncio.Task(coroutine, loop=loop, **options)


async def _nothing() -> None: ...


async def _gathers() -> None:
    await asyncio.gather(_nothing(), _nothing())


async def _creates() -> None:
    await asyncio.create_task(_nothing())


async def _ensures() -> None:
    await asyncio.ensure_future(_nothing())


async def _groups() -> None:
    async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined, unused-ignore]
        group.create_task(_nothing())


async def _waits_for() -> None:
    await asyncio.wait_for(_nothing(), LONG)


async def _takes_as_completed() -> None:
    for each in asyncio.as_completed([_nothing(), _nothing()]):
        await each


async def _takes_as_completed_by_async_for() -> None:
    async for each in asyncio.as_completed([_nothing(), _nothing()]):  # type: ignore[attr-defined, unused-ignore]
        await each


MADE: list[tuple[Any, list[str]]] = [
    (_creates, [""]),
    (_ensures, [""]),
    (_gathers, ["", ""]),
    # From Python 3.12 on it makes none.
    (_waits_for, ["waited for"] if sys.version_info < (3, 12) else []),
    (_takes_as_completed, ["racing", "racing"]),
]
if sys.version_info >= (3, 11):
    MADE.append((_groups, [""]))
if sys.version_info >= (3, 13):
    MADE.append((_takes_as_completed_by_async_for, ["racing", "racing"]))


@pytest.mark.parametrize(("make", "expected"), MADE, ids=[make.__name__.strip("_") for make, _ in MADE])
def test_on_whose_behalf_a_task_is_made_is_known(make: Any, expected: list[str]) -> None:
    makers = Makers()

    async def look() -> None:
        asyncio.get_running_loop().set_task_factory(makers)
        await make()

    asyncio.run(look())

    assert makers.known[: len(expected)] == expected
    assert set(makers.known[len(expected) :]) <= {""}


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="since Python 3.11 wait() takes no coroutines")
@pytest.mark.filterwarnings("ignore:The explicit passing of coroutine objects")
def test_wait_makes_tasks_of_coroutines() -> None:
    makers = Makers()

    async def look() -> None:
        asyncio.get_running_loop().set_task_factory(makers)
        await asyncio.wait([_nothing()])  # type: ignore[type-var]

    asyncio.run(look())

    assert makers.known[0] == "racing"


def test_the_makers_depth_is_that_of_the_caller() -> None:
    """What stands between asyncio's function and the question is not asyncio's."""

    def asked_deeper() -> str:
        return how_it_is_made(2)

    known: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        known.append(asked_deeper())
        return asyncio.Task(coroutine, loop=loop, **options)

    async def look() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        await _takes_as_completed()

    asyncio.run(look())

    assert known[:2] == ["racing", "racing"]
