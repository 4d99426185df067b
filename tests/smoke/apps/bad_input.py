"""Tasks that are wrong, each in one way, and one that is right, for the tests of what a worker says to them."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from celery import Celery
from pydantic import BaseModel

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    RetryPolicy,
    RunOptions,
    current_step,
    durable_task,
)
from tests.smoke import effects

app = Celery("bad_input")

AT_ONCE = RetryPolicy(max_attempts=1)

kept: list[DurableContext] = []
"""Contexts that tasks have left behind in their process."""


class Colour(Enum):
    """What only a type hint can bring back."""

    RED = 1


class Item(BaseModel):
    """What a customer orders."""

    sku: str
    amount: int


@dataclass
class Point:
    """What only a type hint can bring back."""

    x: int


def act(value: Any = "done") -> Any:
    """Count an execution, and return what is asked for."""
    effects.hit(current_step().name, current_step().task_id)
    return value


@app.task
def plain() -> str:
    """Use nothing of the library."""
    effects.hit("plain")
    return "plain"


@durable_task
def good(ctx: DurableContext) -> str:
    return ctx.run("good", act, "good")


@durable_task(task_retry_policy=AT_ONCE)
def patient(ctx: DurableContext) -> str:
    """Have one attempt only, which is not for the journal to spend."""
    return ctx.run("patient", act, "patient")


@durable_task(task_retry_policy=AT_ONCE)
def interrupted(ctx: DurableContext) -> str:
    """Be amid a step when something happens."""
    ctx.run("before", act)
    return ctx.run("amid", held)


def held() -> str:
    act()
    effects.block("amid")
    return "amid"


# -- values

VALUES: dict[str, Callable[[], Any]] = {
    "object": object,
    "generator": lambda: (n for n in "abc"),
    "function": lambda: act,
    "exception": lambda: ValueError("as a value"),
    "enum": lambda: Colour.RED,
    "dataclass": lambda: Point(1),
    "model": lambda: Item(sku="a", amount=1),
    "nested": lambda: {"deep": [{"down": object()}]},
    "cycle": lambda: cycle(),  # noqa: PLW0108  defined below
}


def cycle() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


def produce(kind: str):  # noqa: ANN201  the missing annotation is the point
    effects.hit("produce.key", current_step().idempotency_key)
    executions = effects.hit("produce", current_step().task_id)
    return VALUES[kind]() if executions == 1 else "mended"


@durable_task
def returns(ctx: DurableContext, kind: str) -> str:
    """Record one good value, then return a bad one from a step."""
    ctx.run("before", act)
    try:
        return ctx.run("produce", produce, kind)
    except Exception:
        effects.hit("swallowed")
        raise


@durable_task(max_entry_size=1000)
def returns_much(ctx: DurableContext, size: int) -> int:
    ctx.run("before", act)
    return len(ctx.run("large", act, "x" * size))


@durable_task
def returns_very_much(ctx: DurableContext, size: int) -> int:
    return len(ctx.run("large", act, "x" * size))


# -- options


@durable_task
def options(ctx: DurableContext, **wrong: Any) -> None:
    ctx.run("before", act)
    ctx.run("after", act, RunOptions(**wrong))


@durable_task
def positional_options(ctx: DurableContext) -> None:
    ctx.run("after", act, RunOptions(3))  # type: ignore[misc]


# -- calls


async def later() -> str:
    effects.hit("later")
    return "later"


CALLS: dict[str, Callable[[DurableContext], Any]] = {
    "coroutine": lambda ctx: ctx.run("fetch", later()),
    "result": lambda ctx: ctx.run("fetch", "already called"),
    "none": lambda ctx: ctx.run("fetch", None),
    "no name": lambda ctx: ctx.run(act, "value"),
    "lambda as name": lambda ctx: ctx.run(lambda: 1, "value"),
    "number as name": lambda ctx: ctx.run(7, act),
    "too many": lambda ctx: ctx.run("fetch", act, 1, 2),
    "unknown keyword": lambda ctx: ctx.run("fetch", act, colour="red"),
    "stray option": lambda ctx: ctx.run("fetch", act, max_attempts=3),
    "too few": lambda ctx: ctx.run("fetch", produce),
}


@durable_task
def calls(ctx: DurableContext, kind: str) -> Any:
    ctx.run("before", act)
    try:
        return CALLS[kind](ctx)
    except Exception:
        effects.hit("swallowed")
        return "swallowed"


@durable_task
async def calls_async(ctx: AsyncDurableContext, kind: str) -> Any:
    await ctx.run("before", act)
    try:
        return await CALLS[kind](ctx)
    except Exception:
        effects.hit("swallowed")
        return "swallowed"


@durable_task
def typed(ctx: DurableContext, number: int, *, colour: str = "red") -> str:
    return ctx.run("never", act)


@durable_task
def validated(ctx: DurableContext, item: Item) -> str:
    return ctx.run("never", act)


# -- the context inside of a step

VERBS: dict[str, Callable[[DurableContext], Any]] = {
    "run": lambda ctx: ctx.run("inner", act),
    "uuid": lambda ctx: ctx.uuid(),
    "random": lambda ctx: ctx.random(),
    "time": lambda ctx: ctx.time(),
    "now": lambda ctx: ctx.now(),
}


@durable_task
def nested(ctx: DurableContext, verb: str, way: str) -> str:
    """Use the context inside of a step: here, in a coroutine, in a thread, or with the error swallowed."""

    def use() -> None:
        effects.hit("outer", ctx.task_id)
        VERBS[verb](ctx)

    async def use_async() -> None:
        use()

    def use_in_thread() -> None:
        failures: list[BaseException] = []

        def guarded() -> None:
            try:
                use()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]

    def swallow() -> str:
        try:
            use()
        except BaseException:
            return "swallowed"
        return "unnoticed"

    ways = {"sync": use, "async": use_async, "thread": use_in_thread, "swallowed": swallow}
    ctx.run("before", act)
    try:
        ctx.run("outer", ways[way])
    except Exception:
        effects.hit("swallowed")
    ctx.run("after", act)
    return "unnoticed"


@durable_task
async def nested_async(ctx: AsyncDurableContext, way: str) -> str:
    async def use() -> None:
        await ctx.run("inner", act)

    async def swallow() -> str:
        try:
            await use()
        except BaseException:
            return "swallowed"
        return "unnoticed"

    async def use_in_task() -> None:
        await asyncio.create_task(use())

    def use_in_thread() -> None:
        ctx.uuid()

    ways = {"async": use, "task": use_in_task, "thread": use_in_thread, "swallowed": swallow}
    await ctx.run("before", act)
    await ctx.run("outer", ways[way])
    await ctx.run("after", act)
    return "unnoticed"


@durable_task
def reads(ctx: DurableContext) -> list[Any]:
    """Read, inside of a step, what may be read there."""
    return ctx.run("reads", lambda: [ctx.task_id, ctx.attempt, ctx.is_replaying, ctx.logger.name, ctx.request.id])


@durable_task
def keeps(ctx: DurableContext) -> str:
    """Leave the context behind; with an open gate "keeps" at once."""
    kept.append(ctx)
    ctx.run("keeps", act)
    effects.block("keeps")
    return ctx.run("goes on", act, "went on")


@durable_task
def uses_a_kept_one(ctx: DurableContext, verb: str, where: str) -> str:
    """Use the context of another task, in the body or in a step."""
    other = kept[-1]
    if where == "step":
        ctx.run("outer", lambda: VERBS[verb](other) and None)
    else:
        VERBS[verb](other)
    return "unnoticed"


@app.task
def plain_that_uses_a_kept_one(verb: str) -> str:
    VERBS[verb](kept[-1])
    return "unnoticed"


# -- damaged journals


@durable_task(task_retry_policy=AT_ONCE)
def order(ctx: DurableContext, number: int) -> str:
    """Record a step, a time and a UUID; fail after them, once."""
    ctx.run("reserve", act, {"seats": [1, 2]})
    ctx.time()
    ctx.uuid()
    ctx.run("charge", act)
    if effects.hit("body", ctx.task_id) == 1:
        raise ConnectionError("away")
    return f"order {number}"


@durable_task(task_retry_policy=AT_ONCE)
def another(ctx: DurableContext, number: int) -> str:
    return ctx.run("another", act, f"another {number}")


@durable_task
def gated(ctx: DurableContext, number: int) -> str:
    ctx.run("before", act)
    effects.block("gated")
    return f"gated {number}"
