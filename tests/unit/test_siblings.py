"""Coroutines side by side: what has begun is let finish and recorded, whoever cancels; the attempt ends after that."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from celery_durable import AsyncDurableContext, EntryNotRecordableError, RunOptions, TerminalError
from celery_durable.drivers import loop, parking, tasks
from celery_durable.interrupts import EndRun, Interrupt, RetryStep, Sleep
from tests.unit.conftest import Action, Run, turns

HOUR = 3600
AGAIN = RunOptions(max_attempts=3, initial_retry_interval=60)

needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 has brought task groups")


@pytest.fixture(params=["asyncio", "uvloop"], autouse=True)
def policy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loops that are made."""
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        monkeypatch.setattr(asyncio.events, "new_event_loop", uvloop.new_event_loop)


def attempt(run: Run, body: Callable[[AsyncDurableContext], Any], later: float = 0.0) -> Any:
    """Run a body as the task that an attempt awaits; what it returns, or what ends the attempt."""

    async def awaited() -> Any:
        context = run.async_attempt(later=later)
        run.last.begin_here()
        try:
            result = await body(context)
        except BaseException as error:
            return run.last.pulse.interrupt or error
        else:
            return run.last.pulse.interrupt or result
        finally:
            await run.last.siblings.wait_all()
            run.end()

    async def on_the_loop() -> Any:
        tasks.look_after(asyncio.get_running_loop())
        return await asyncio.wait_for(asyncio.ensure_future(awaited()), 30)

    return asyncio.run(on_the_loop())


# -- ways to let two coroutines go on beside each other ----------------------------------------------------------------


async def gathered(first: Any, second: Any) -> Any:
    return await asyncio.gather(first, second)


async def grouped(first: Any, second: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(first), group.create_task(second)]
    return [task.result() for task in tasks]


async def waited_for_in_a_group(first: Any, second: Any) -> Any:
    return await grouped(asyncio.wait_for(first, 60), asyncio.wait_for(second, 60))


async def gathered_in_a_group(first: Any, second: Any) -> Any:
    async def alone(coroutine: Any) -> Any:
        return (await asyncio.gather(coroutine))[0]

    return await grouped(alone(first), alone(second))


async def in_a_group_of_anyio(first: Any, second: Any) -> Any:
    anyio = pytest.importorskip("anyio")
    results: dict[int, Any] = {}

    async def keep(number: int, coroutine: Any) -> None:
        results[number] = await coroutine

    async with anyio.create_task_group() as group:
        group.start_soon(keep, 0, first)
        group.start_soon(keep, 1, second)
    return [results[0], results[1]]


async def shielded(first: Any, second: Any) -> Any:
    return [await asyncio.shield(task) for task in (asyncio.ensure_future(first), asyncio.ensure_future(second))]


async def waited(first: Any, second: Any) -> Any:
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    await asyncio.wait(tasks)
    return [task.result() for task in tasks]


side_by_side = pytest.mark.parametrize(
    "together",
    [
        gathered,
        shielded,
        waited,
        in_a_group_of_anyio,
        pytest.param(grouped, marks=needs_groups),
        pytest.param(waited_for_in_a_group, marks=needs_groups),
        pytest.param(gathered_in_a_group, marks=needs_groups),
    ],
)


@side_by_side
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_step_that_is_to_be_retried_lets_finish_what_its_siblings_have_begun(
    run: Run, together: Any, kind: str
) -> None:
    failed, flaky = threading.Event(), Action(OSError("away"), "done")
    ended: list[str] = []

    async def pay() -> str:
        while not failed.is_set():
            await turns(1)
        await turns(50)
        ended.append("paid")
        return "paid"

    def pay_in_a_thread() -> str:
        assert failed.wait(10)
        ended.append("paid")
        return "paid"

    async def fail() -> Any:
        try:
            return flaky()
        finally:
            failed.set()

    async def body(ctx: AsyncDurableContext) -> Any:
        action: Any = pay if kind == "async" else pay_in_a_thread
        try:
            return await together(ctx.run("flaky", fail, AGAIN), ctx.run("pay", action, RunOptions(max_attempts=1)))
        finally:
            ended.append("left")

    assert isinstance(attempt(run, body), RetryStep)
    assert ended == ["paid", "left"]
    assert attempt(run, body) == ["done", "paid"]
    assert ended == ["paid", "left", "left"]


@pytest.mark.parametrize(
    ("action", "end"), [(Action(OSError("away")), RetryStep), (object, EndRun)], ids=["retry", "end of the run"]
)
def test_what_goes_on_for_ever_holds_up_no_end_but_a_sleep(run: Run, action: Any, end: type[Interrupt]) -> None:
    """As a library keeps a connection alive, say."""

    async def beats() -> None:
        while True:  # noqa: ASYNC110  nobody tells it to end
            await asyncio.sleep(0.01)

    async def body(ctx: AsyncDurableContext) -> None:
        beat = asyncio.ensure_future(beats())
        try:
            await ctx.run("step", action, AGAIN)
        except BaseException as error:
            met.append(type(error))
            raise
        finally:
            beat.cancel()

    met: list[type[BaseException]] = []
    assert isinstance(attempt(run, body), end)
    assert met == [end], "no cancellation, by who would wait no longer"


@side_by_side
def test_what_goes_on_beside_a_sleep_goes_on_to_its_end(run: Run, together: Any) -> None:
    """Whatever it awaits between its steps."""
    done = Action("done")

    async def chores(ctx: AsyncDurableContext) -> int:
        lock = asyncio.Lock()
        for number in range(3):
            await asyncio.sleep(0.01)
            await turns(30)
            async with lock:
                await ctx.run(f"chore {number}", done)
        return done.executions

    async def body(ctx: AsyncDurableContext) -> Any:
        return await together(ctx.sleep(HOUR), chores(ctx))

    assert isinstance(attempt(run, body), Sleep)
    assert done.executions == 3
    assert attempt(run, body, later=HOUR + 1) == [None, 3]


def test_a_sleeper_wakes_in_its_place_while_others_go_on(run: Run) -> None:
    async def body(ctx: AsyncDurableContext) -> Any:
        woken = asyncio.Event()

        async def sleeper() -> str:
            await ctx.sleep(0.1)
            woken.set()
            return await ctx.run("woken", Action("woken"))

        async def busy() -> str:
            while not woken.is_set():  # noqa: ASYNC110  it is to be busy
                await asyncio.sleep(0.01)
            return "busy"

        return await asyncio.gather(sleeper(), busy())

    assert attempt(run, body) == ["woken", "busy"]


def test_siblings_that_wait_for_each_other_and_a_sleeper_keep_no_worker(run: Run) -> None:
    async def body(ctx: AsyncDurableContext) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()
        condition, event, lock = asyncio.Condition(), asyncio.Event(), asyncio.Semaphore(0)

        async def notified() -> None:
            async with condition:
                await condition.wait()

        others = [queue.get(), event.wait(), lock.acquire(), notified(), queue.join()]
        queue.put_nowait(1)
        queue.get_nowait()
        waiting = [asyncio.ensure_future(other) for other in others]
        await asyncio.gather(ctx.sleep(HOUR), *waiting)

    assert isinstance(attempt(run, body), Sleep)


def test_a_sleep_that_is_held_up_for_long_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parking, "LONG", 0.05)
    caplog.set_level(logging.INFO, "celery_durable")

    async def body(ctx: AsyncDurableContext) -> None:
        async def polls() -> None:
            while not caplog.messages:  # noqa: ASYNC110  it is to be busy
                await asyncio.sleep(0.01)

        await asyncio.gather(ctx.sleep(HOUR), polls())

    assert isinstance(attempt(run, body), Sleep)
    (message,) = caplog.messages
    assert message.startswith("task task-1 keeps its worker while it waits: ")
    assert "polls awaits something" in message


def test_values_are_drawn_while_an_attempt_lets_finish_what_has_begun(run: Run) -> None:
    failed, flaky = asyncio.Event(), Action(OSError("away"), "done")
    drawn: list[Any] = []

    async def fail() -> Any:
        failed.set()
        return flaky()

    async def body(ctx: AsyncDurableContext) -> None:
        async def draws() -> None:
            await failed.wait()
            await turns(30)
            drawn.append([str(ctx.uuid()), ctx.random().random(), await ctx.time()])

        await asyncio.gather(ctx.run("flaky", fail, AGAIN), ctx.run("long", turns, 60), draws())

    attempt(run, body)
    attempt(run, body)
    assert len(drawn) == 2
    assert drawn[0] == drawn[1]


# -- who cancels -------------------------------------------------------------------------------------------------------


async def by_a_timeout(step: Any, began: asyncio.Event) -> None:
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(step, 0.01)


async def by_a_group(step: Any, began: asyncio.Event) -> None:
    with suppress(BaseException):
        async with asyncio.TaskGroup() as group:
            group.create_task(step)
            await began.wait()
            raise TerminalError("no")


async def by_anyio(step: Any, began: asyncio.Event) -> None:
    anyio = pytest.importorskip("anyio")

    async def awaits() -> None:
        await step

    async with anyio.create_task_group() as group:
        group.start_soon(awaits)
        await began.wait()
        group.cancel_scope.cancel()


async def by_a_scope_of_anyio(step: Any, began: asyncio.Event) -> None:
    anyio = pytest.importorskip("anyio")
    with anyio.move_on_after(0.01) as scope:
        await step
    assert scope.cancelled_caught


async def by_hand(step: Any, began: asyncio.Event) -> None:
    task = asyncio.ensure_future(step)
    await began.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "cancel", [by_a_timeout, by_anyio, by_a_scope_of_anyio, by_hand, pytest.param(by_a_group, marks=needs_groups)]
)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_has_begun_is_recorded_whoever_cancels_it(run: Run, cancel: Any, kind: str) -> None:
    executions: list[str] = []

    async def body(ctx: AsyncDurableContext) -> str:
        began, loop = asyncio.Event(), asyncio.get_running_loop()

        async def pay() -> str:
            began.set()
            await asyncio.sleep(0.05)
            executions.append("paid")
            return "paid"

        def pay_in_a_thread() -> str:
            loop.call_soon_threadsafe(began.set)
            time.sleep(0.05)
            executions.append("paid")
            return "paid"

        await cancel(ctx.run("pay", pay if kind == "async" else pay_in_a_thread, RunOptions(max_attempts=1)), began)
        executions.append("went on")
        await ctx.run("next", Action(1))
        return "done"

    assert attempt(run, body) == "done"
    assert executions == ["paid", "went on"]
    assert run.entry("step:1")["value"] == "paid"


@needs_groups
def test_of_nested_timeouts_the_inner_one_is_told_and_nothing_is_left_behind(run: Run) -> None:
    async def body(ctx: AsyncDurableContext) -> str:
        met = []
        try:
            async with asyncio.timeout(0.02):
                try:
                    async with asyncio.timeout(0.01):
                        await ctx.run("slow", asyncio.sleep, 0.05)
                except TimeoutError:
                    met.append("inner")
                    await asyncio.sleep(0)
        except TimeoutError:
            met.append("outer")
        await asyncio.sleep(0)
        return await ctx.run("next", Action(met))

    assert attempt(run, body) == ["outer"]


def test_a_step_that_is_cancelled_between_its_executions_is_not_executed_again(run: Run) -> None:
    flaky = Action(OSError("away"))

    async def body(ctx: AsyncDurableContext) -> str:
        retried = asyncio.ensure_future(ctx.run("flaky", flaky, RunOptions(initial_retry_interval=0.5)))
        while not flaky.executions:
            await turns(1)
        await turns(100)
        retried.cancel()
        with suppress(asyncio.CancelledError):
            await retried
        return "done"

    async def awaited() -> Any:
        context = run.async_attempt(inline_retry_limit=1)
        run.last.begin_here()
        return await body(context)

    assert asyncio.run(awaited()) == "done"
    assert flaky.executions == 1


# -- how it ends -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_recorded_ends_a_run_whose_sibling_is_to_be_retried(run: Run) -> None:
    executions: list[str] = []

    async def fail() -> None:
        raise OSError("away")

    async def make() -> object:
        await turns(30)
        executions.append("made")
        return object()

    async def body(ctx: AsyncDurableContext) -> None:
        await asyncio.gather(ctx.run("fail", fail, AGAIN), ctx.run("make", make))

    ended = attempt(run, body)
    assert isinstance(ended, EndRun)
    assert isinstance(ended.error, EntryNotRecordableError)
    assert executions == ["made"]


@pytest.mark.parametrize("late", ["returns", "raises", "goes on"])
def test_an_execution_whose_time_is_over_has_failed_whatever_it_makes_of_that(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, late: str
) -> None:
    monkeypatch.setattr(loop, "GRACE", 0.05)
    gate, swallowed = asyncio.Event(), []

    async def polls() -> str:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                swallowed.append(late)
                if late == "returns":
                    return "late"
                if late == "raises":
                    raise KeyError("late") from None
        return "later"

    async def body(ctx: AsyncDurableContext) -> Any:
        try:
            return await ctx.run("poll", polls, RunOptions(timeout=0.05, max_attempts=1))
        except TerminalError as error:
            gate.set()
            await turns(10)
            return str(error)

    assert "no result within 0.05 s" in attempt(run, body)
    assert swallowed == [late]
    assert run.entry("step:1")["state"] == "failed"
    assert ["swallows its cancellation" in message for message in caplog.messages if "poll" in message][:1] == [
        late == "goes on"
    ]


def test_a_step_that_the_body_has_begun_and_forgotten_is_recorded(run: Run) -> None:
    forgotten = []

    async def body(ctx: AsyncDurableContext) -> str:
        forgotten.append(asyncio.ensure_future(ctx.run("forgotten", turns, 30)))
        return "done"

    assert attempt(run, body) == "done"
    assert run.entry("step:1")["state"] == "done"


def test_an_interrupt_that_is_swallowed_is_raised_again(run: Run) -> None:
    async def body(ctx: AsyncDurableContext) -> list[str]:
        met = []
        for name in ("first", "second"):
            try:
                await ctx.run(name, Action(OSError("away")), AGAIN)
            except Interrupt as interrupt:
                met.append(type(interrupt).__name__)
        assert met == ["RetryStep", "RetryStep"]
        with pytest.raises(RetryStep):
            ctx.uuid()
        return met

    assert isinstance(attempt(run, body), RetryStep)


def test_partials_of_the_verbs_may_be_begun_by_a_group(run: Run) -> None:
    anyio = pytest.importorskip("anyio")
    flaky, steady = Action(OSError("away"), 1), Action(2)

    async def body(ctx: AsyncDurableContext) -> str:
        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(ctx.run, "flaky", flaky, AGAIN))
            group.start_soon(functools.partial(ctx.run, "steady", steady))
        return "done"

    assert isinstance(attempt(run, body), RetryStep)
    assert attempt(run, body) == "done"
    assert (flaky.executions, steady.executions) == (2, 1)
