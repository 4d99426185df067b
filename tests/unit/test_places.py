"""Coroutines side by side: each finds its own values again, whichever of them was quicker."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from celery_durable import AsyncDurableContext, RunOptions
from celery_durable.interrupts import Interrupt, Sleep
from tests.unit.conftest import Action, Run

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
            await run.last.landed()
            run.end()

    return asyncio.run(awaited())


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
    assert [run.entry(f"step:{place}")["value"] for place in ("1.1", "1.1.1", "1.2.1", "2.1.1", "2.2.1")] == [
        "a", "a1", "a2", "b1", "b2",
    ]  # fmt: skip


def test_what_the_body_itself_calls_for_a_gather_has_the_places_of_the_body(run: Run) -> None:
    async def body(ctx: AsyncDurableContext) -> list[str]:
        return await asyncio.gather(ctx.run("a", Action("a")), ctx.run("b", Action("b")))

    assert attempt(run, body) == ["a", "b"]
    assert sorted(name for name in run.names() if name.startswith("step:")) == ["step:1", "step:2"]
