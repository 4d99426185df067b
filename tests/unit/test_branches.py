"""Coroutines side by side: each finds its own values again, whichever of them was quicker."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from typing import Any

import pytest

from celery_durable import AsyncDurableContext, InvalidStepError, RunOptions
from celery_durable.interrupts import EndRun, Interrupt, Sleep
from celery_durable.journal.positions import in_order
from tests.unit.conftest import Action, Run, turns

Body = Callable[[AsyncDurableContext], Awaitable[Any]]


def attempt(run: Run, body: Body, later: float = 0.0) -> Any:
    """Run a body as the task that an attempt awaits; what it returns, or the interrupt that ends it."""

    async def awaited() -> Any:
        context = run.async_attempt(later=later)
        run.last.begin_here()
        try:
            return await body(context)
        except Interrupt as interrupt:
            return interrupt
        finally:
            await run.last.siblings.wait_all()
            run.end()

    return asyncio.run(awaited())


def ends_run(ended: Any) -> InvalidStepError:
    """The error by which the run is to end."""
    assert isinstance(ended, EndRun)
    assert isinstance(ended.error, InvalidStepError)
    return ended.error


class Turns:
    """An action that takes so many turns of the event loop, another number in each attempt."""

    def __init__(self, *turns: int) -> None:
        self.turns = list(turns)

    async def __call__(self, value: str) -> str:
        for _ in range(self.turns.pop(0) if self.turns else 0):
            await asyncio.sleep(0)
        return value


def test_a_branch_that_slept_goes_on_beside_one_that_went_on(run: Run) -> None:
    reminded, processed = Action("reminded"), Action("first", "second")

    async def remind(ctx: AsyncDurableContext) -> str:
        await ctx.sleep(3600)
        return await ctx.run("remind", reminded)

    async def process(ctx: AsyncDurableContext) -> list[str]:
        return [await ctx.run("one", processed), await ctx.run("two", processed)]

    async def body(ctx: AsyncDurableContext) -> Any:
        return await asyncio.gather(remind(ctx), process(ctx))

    assert isinstance(attempt(run, body), Sleep)
    assert attempt(run, body, later=3601) == ["reminded", ["first", "second"]]
    assert (reminded.executions, processed.executions) == (1, 2)
    assert sorted(name for name in run.names() if name.startswith("step:")) == [
        "step:1.1", "step:1.2", "step:2.1", "step:2.2",
    ]  # fmt: skip


@pytest.mark.parametrize("slow", ["a", "b"])
def test_steps_of_one_name_keep_to_their_branch(run: Run, slow: str) -> None:
    flaky = Action(OSError("away"), "done")
    turns = {name: Turns(*([200] if name == slow else [])) for name in "ab"}

    async def order(ctx: AsyncDurableContext, who: str) -> list[Any]:
        drawn = str(ctx.uuid())
        first = await ctx.run("fetch", turns[who], f"{who}1")
        second = await ctx.run("fetch", turns[who], f"{who}2")
        return [drawn, first, second, str(ctx.uuid()), ctx.random().random()]

    seen = []

    async def body(ctx: AsyncDurableContext) -> None:
        seen.append(await asyncio.gather(order(ctx, "a"), order(ctx, "b")))
        await ctx.run("flaky", flaky, RunOptions(max_attempts=3))

    attempt(run, body)
    attempt(run, body)

    assert [values[1:3] for values in seen[0]] == [["a1", "a2"], ["b1", "b2"]]
    assert seen[1] == seen[0]
    assert flaky.executions == 2


def test_branches_of_branches_count_for_themselves(run: Run) -> None:
    async def leaf(ctx: AsyncDurableContext, name: str) -> str:
        return await ctx.run("leaf", Action(name))

    async def branch(ctx: AsyncDurableContext, name: str) -> list[str]:
        await ctx.run("branch", Action(name))
        return await asyncio.gather(leaf(ctx, f"{name}1"), leaf(ctx, f"{name}2"))

    async def body(ctx: AsyncDurableContext) -> list[list[str]]:
        return await asyncio.gather(branch(ctx, "a"), branch(ctx, "b"))

    assert attempt(run, body) == [["a1", "a2"], ["b1", "b2"]]
    assert [run.entry(f"step:{position}")["value"] for position in ("1.1", "1.1.1", "1.2.1", "2.1.1", "2.2.1")] == [
        "a", "a1", "a2", "b1", "b2",
    ]  # fmt: skip


def test_what_the_body_itself_calls_for_a_gather_has_the_positions_of_the_body(run: Run) -> None:
    async def body(ctx: AsyncDurableContext) -> list[str]:
        return await asyncio.gather(ctx.run("a", Action("a")), ctx.run("b", Action("b")))

    assert attempt(run, body) == ["a", "b"]
    assert sorted(name for name in run.names() if name.startswith("step:")) == ["step:1", "step:2"]


# -- numbered as their tasks are made ----------------------------------------------------------------------------------

AGAIN = RunOptions(max_attempts=3, initial_retry_interval=60)


def twice(run: Run, body: Body) -> list[Any]:
    """What the body gives in an attempt that is retried at its end, and in the next one."""
    flaky, given = Action(OSError("away"), "done"), []

    async def retried(ctx: AsyncDurableContext) -> None:
        given.append(await body(ctx))
        await ctx.run("flaky", flaky, AGAIN)

    attempt(run, retried)
    attempt(run, retried)
    assert flaky.executions == 2
    return given


def in_a_gather(ctx: AsyncDurableContext, *coroutines: Any) -> Any:
    return asyncio.gather(*coroutines)


async def as_futures(ctx: AsyncDurableContext, *coroutines: Any) -> list[Any]:
    futures = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    return [await future for future in reversed(futures)][::-1]


async def in_a_task_group(ctx: AsyncDurableContext, *coroutines: Any) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
    return [task.result() for task in tasks]


async def in_contexts_of_their_own(ctx: AsyncDurableContext, *coroutines: Any) -> list[Any]:
    tasks = [asyncio.create_task(coroutine, context=Context()) for coroutine in coroutines]
    return [await task for task in tasks]


async def in_a_group_of_anyio(ctx: AsyncDurableContext, *coroutines: Any) -> list[Any]:
    anyio = pytest.importorskip("anyio")
    results: dict[int, Any] = {}

    async def keep(number: int, coroutine: Any) -> None:
        results[number] = await coroutine

    async with anyio.create_task_group() as group:
        for number, coroutine in enumerate(coroutines):
            group.start_soon(keep, number, coroutine)
    return [results[number] for number in range(len(coroutines))]


async def shielded(ctx: AsyncDurableContext, *coroutines: Any) -> list[Any]:
    return await asyncio.gather(*[asyncio.shield(coroutine) for coroutine in coroutines])


async def waited_for(ctx: AsyncDurableContext, *coroutines: Any) -> list[Any]:
    return await asyncio.gather(*[asyncio.wait_for(coroutine, 60) for coroutine in coroutines])


needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 has brought them")


@pytest.mark.parametrize(
    "begin",
    [
        in_a_gather,
        as_futures,
        shielded,
        waited_for,
        in_a_group_of_anyio,
        pytest.param(in_a_task_group, marks=needs_groups),
        pytest.param(in_contexts_of_their_own, marks=needs_groups),
    ],
)
def test_what_a_coroutine_awaits_before_its_first_step_swaps_nothing(run: Run, begin: Any) -> None:
    order = Turns(50, 3, 20, 1, 30, 60)

    async def one(ctx: AsyncDurableContext, name: str) -> list[Any]:
        await order(name)
        return [await ctx.run("fetch", Action(name)), str(ctx.uuid()), ctx.random().random(), await ctx.time()]

    def body(ctx: AsyncDurableContext) -> Any:
        return begin(ctx, *[one(ctx, name) for name in "abc"])

    first, again = twice(run, body)
    assert [values[0] for values in first] == ["a", "b", "c"]
    assert first == again


def test_nested_coroutines_are_numbered_as_their_parents_make_them(run: Run) -> None:
    order = Turns(*[9, 1, 5, 2, 8, 3, 7, 4, 1, 9, 2, 8])

    async def leaf(ctx: AsyncDurableContext, name: str) -> str:
        await order(name)
        return await ctx.run("leaf", Action(name))

    async def branch(ctx: AsyncDurableContext, name: str) -> list[str]:
        await order(name)
        leaves = asyncio.gather(leaf(ctx, f"{name}1"), leaf(ctx, f"{name}2"))
        return [await ctx.run("branch", Action(name)), *await leaves]

    first, again = twice(run, lambda ctx: asyncio.gather(branch(ctx, "a"), branch(ctx, "b")))
    assert first == again == [["a", "a1", "a2"], ["b", "b1", "b2"]]
    assert [run.entry(f"step:{position}")["value"] for position in ("1.1", "1.1.1", "1.2.1", "2.1", "2.2.1")] == [
        "a", "a1", "a2", "b", "b2",
    ]  # fmt: skip


@pytest.mark.parametrize("seconds", [60, None, 0])
def test_what_wait_for_awaits_is_in_the_branch_of_its_parent(run: Run, seconds: Any) -> None:
    """Before Python 3.12 it makes a task of it, from then on none."""

    async def helper(ctx: AsyncDurableContext) -> None:
        await ctx.run("inner", Action(1))
        await asyncio.gather(leaf(ctx))

    async def leaf(ctx: AsyncDurableContext) -> None:
        await ctx.run("leaf", Action(1))

    async def body(ctx: AsyncDurableContext) -> None:
        await ctx.run("before", Action(1))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(helper(ctx), seconds)
        await ctx.run("after", Action(1))
        await asyncio.gather(leaf(ctx))

    assert attempt(run, body) is None
    names = {position: run.entry(position)["name"] for position in run.names()}
    if seconds == 0:
        assert names == {"step:1": "before", "step:2": "after", "step:1.1": "leaf"}
    else:
        assert names == {
            "step:1": "before", "step:2": "inner", "step:3": "after", "step:1.1": "leaf", "step:2.1": "leaf",
        }  # fmt: skip


def test_tasks_that_a_step_makes_take_no_number(run: Run) -> None:
    made = [3, 0]

    async def action() -> int:
        return len(await asyncio.gather(*[turns(1) for _ in range(made.pop(0))]))

    async def leaf(ctx: AsyncDurableContext) -> int:
        return await ctx.run("leaf", Action(1))

    async def body(ctx: AsyncDurableContext) -> Any:
        return [await ctx.run("act", action), *await asyncio.gather(leaf(ctx))]

    assert twice(run, body) == [[3, 1], [3, 1]]
    assert "step:1.1" in run.names()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 has brought eager tasks")
def test_eager_tasks_are_numbered_too(run: Run) -> None:
    async def leaf(ctx: AsyncDurableContext, name: str) -> str:
        return await ctx.run("leaf", Action(name))

    async def branch(ctx: AsyncDurableContext, name: str) -> list[str]:
        return [await ctx.run("branch", Action(name)), *await asyncio.gather(leaf(ctx, f"{name}1"))]

    async def awaited() -> Any:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        context = run.async_attempt()
        run.last.begin_here()
        try:
            return await asyncio.gather(branch(context, "a"), branch(context, "b"))
        finally:
            await run.last.siblings.wait_all()
            run.end()

    assert asyncio.run(awaited()) == [["a", "a1"], ["b", "b1"]]
    assert run.names() == ["step:1.1", "step:1.1.1", "step:2.1", "step:2.1.1"]


# -- named -------------------------------------------------------------------------------------------------------------


def test_workers_that_take_their_work_from_a_queue_name_it(run: Run) -> None:
    order = Turns(*[9, 1, 5, 2, 8, 3, 7, 4, 1, 9, 2, 8])

    async def work(ctx: AsyncDurableContext, queue: Any, done: dict[int, Any]) -> None:
        while not queue.empty():
            item = queue.get_nowait()
            await order("")
            with ctx.branch(f"item {item}"):
                done[item] = [await ctx.run("fetch", Action(item)), str(ctx.uuid())]

    async def body(ctx: AsyncDurableContext) -> Any:
        queue: asyncio.Queue[int] = asyncio.Queue()
        for item in range(6):
            queue.put_nowait(item)
        done: dict[int, Any] = {}
        await asyncio.gather(*[work(ctx, queue, done) for _ in range(3)])
        return done

    first, again = twice(run, body)
    assert {item: values[0] for item, values in first.items()} == {item: item for item in range(6)}
    assert first == again
    assert "step:@item 0.1" in run.names()


def test_results_that_come_as_completed_are_handled_in_branches_with_names(run: Run) -> None:
    order = Turns(9, 1, 5)

    async def body(ctx: AsyncDurableContext) -> Any:
        handled = {}
        for next_one in asyncio.as_completed([ctx.run("fetch", order, name) for name in "abc"]):
            name = await next_one
            with ctx.branch(name):
                handled[name] = await ctx.run("handle", Action(name))
        return handled

    assert twice(run, body) == [dict.fromkeys("abc") | {name: name for name in "abc"}] * 2
    assert {"step:@a.1", "step:@b.1", "step:@c.1"} <= set(run.names())


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("a", "step:@a.1"),
        ("7", "step:@7.1"),
        ("1.2", "step:@1%2E2.1"),
        ("1%2E2", "step:@1%252E2.1"),
        ('say "@" : é', 'step:@say "@" : é.1'),
        ("two\nlines", "step:@two%0Alines.1"),
    ],
)
def test_a_key_is_any_text(run: Run, key: str, field: str) -> None:
    async def body(ctx: AsyncDurableContext) -> Any:
        with ctx.branch(key):
            return [await ctx.run("step", Action(key)), str(ctx.uuid())]

    first, again = twice(run, body)
    assert first == again
    assert run.names() == sorted([field, "step:1"])
    assert max([field[5:], "1"], key=in_order) == field[5:]


@pytest.mark.parametrize("key", ["", None, 5, "\ud800"])
def test_a_key_that_is_none_ends_the_run(run: Run, key: Any) -> None:
    async def body(ctx: AsyncDurableContext) -> None:
        with ctx.branch(key):
            pass

    assert "the key of ctx.branch must be a text" in str(ends_run(attempt(run, body)))


def test_equal_keys_of_one_parent_end_the_run(run: Run) -> None:
    async def one(ctx: AsyncDurableContext, key: str) -> None:
        with suppress(Exception), ctx.branch(key):
            await ctx.run("step", Action(1))

    async def body(ctx: AsyncDurableContext) -> None:
        await asyncio.gather(one(ctx, "a"), one(ctx, "b"), one(ctx, "a"))

    assert "two branches of one parent are named 'a'" in str(ends_run(attempt(run, body)))


def test_a_named_branch_has_branches_and_names_of_its_own(run: Run) -> None:
    async def leaf(ctx: AsyncDurableContext, name: str) -> str:
        return await ctx.run("leaf", Action(name))

    async def body(ctx: AsyncDurableContext) -> Any:
        with ctx.branch("outer"):
            numbered = asyncio.gather(leaf(ctx, "numbered"))
            with ctx.branch("inner"):
                named = await leaf(ctx, "named")
            return [named, *await numbered, await leaf(ctx, "own")]

    assert twice(run, body) == [["named", "numbered", "own"]] * 2
    assert [run.entry(f"step:@outer.{position}")["value"] for position in ("@inner.1", "1.1", "1")] == [
        "named", "numbered", "own",
    ]  # fmt: skip


# -- without an order --------------------------------------------------------------------------------------------------


async def made_in_a_callback(ctx: AsyncDurableContext, one: Any) -> Any:
    loop = asyncio.get_running_loop()
    made: asyncio.Future[Any] = loop.create_future()
    loop.call_soon(lambda: made.set_result(loop.create_task(one(ctx, "a"))))
    return await (await made)


async def made_as_completed(ctx: AsyncDurableContext, one: Any) -> Any:
    return [await next_one for next_one in asyncio.as_completed([one(ctx, "a")])]


async def handled_as_completed(ctx: AsyncDurableContext, one: Any) -> Any:
    for next_one in asyncio.as_completed([ctx.run("slow", turns, 50), ctx.run("quick", turns, 1)]):
        await next_one
        await one(ctx, "a")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (made_in_a_callback, "made in no fixed order"),
        (made_as_completed, "made in no fixed order"),
        (handled_as_completed, "which is first differs from attempt to attempt"),
    ],
)
def test_what_has_no_order_is_refused_by_name(run: Run, body: Any, message: str) -> None:
    async def one(ctx: AsyncDurableContext, name: str) -> Any:
        return await ctx.run("step", Action(name))

    error = str(ends_run(attempt(run, lambda ctx: body(ctx, one))))
    assert message in error
    assert "ctx.branch(key)" in error


@pytest.mark.parametrize("body", [made_in_a_callback, made_as_completed, handled_as_completed])
def test_what_has_no_order_may_have_names(run: Run, body: Any) -> None:
    keys = iter("abcd")

    async def one(ctx: AsyncDurableContext, name: str) -> Any:
        with ctx.branch(next(keys)):
            return await ctx.run("step", Action(name))

    assert not isinstance(attempt(run, lambda ctx: body(ctx, one)), Interrupt)
    assert run.entry("step:@a.1")["value"] == "a"


def test_a_thread_of_an_async_task_is_refused_by_name(run: Run) -> None:
    async def body(ctx: AsyncDurableContext) -> Any:
        return await asyncio.to_thread(ctx.uuid)

    assert "used in another thread" in str(ends_run(attempt(run, body)))


# -- journals of 0.1.0 -------------------------------------------------------------------------------------------------


async def later_first(ctx: AsyncDurableContext) -> Any:
    """The coroutine that is made first uses its context last."""

    async def one(name: str, number: int) -> str:
        await turns(number)
        return await ctx.run("fetch", Action(name))

    return await asyncio.gather(one("a", 20), one("b", 1))


def test_a_journal_says_how_its_branches_are_numbered(run: Run) -> None:
    async def linear(ctx: AsyncDurableContext) -> None:
        await ctx.run("fetch", Action(1))

    attempt(run, linear)
    assert run.journal.fields[b"v"] == b"1"
    branched = Run()
    attempt(branched, later_first)
    assert branched.journal.fields[b"v"] == b"2"
    assert branched.entry("step:1.1")["value"] == "a"


def test_a_journal_of_0_1_0_is_read_by_its_own_rule_to_its_end(run: Run) -> None:
    """Branches were numbered by their first use."""
    attempt(run, later_first)
    fields = run.journal.fields
    fields[b"v"] = b"1"
    fields[b"step:1.1"], fields[b"step:2.1"] = fields[b"step:2.1"], fields[b"step:1.1"]

    async def longer(ctx: AsyncDurableContext) -> Any:
        return [*await later_first(ctx), *await later_first(ctx)]

    assert attempt(run, longer) == ["a", "b", "a", "b"]
    assert fields[b"v"] == b"1"
    assert [run.entry(f"step:{position}.1")["value"] for position in (1, 2, 3, 4)] == ["b", "a", "b", "a"]
