"""Tasks that behave the same in every pool of Celery."""

import asyncio
import time
from typing import Any

from celery import Celery

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    RetriesExhausted,
    RetryPolicy,
    RunOptions,
    current_step,
    durable_task,
)
from tests.smoke import effects

app = Celery("pools")
app.conf.durable_task_retry_policy = RetryPolicy(initial_retry_interval=0.02)

OPTIONS = RunOptions(max_attempts=4, initial_retry_interval=0.02)


def reserve() -> str:
    step = current_step()
    effects.hit("reserve", step.task_id)
    time.sleep(0.01)
    return step.task_id


async def reserve_async() -> str:
    step = current_step()
    effects.hit("reserve", step.task_id)
    await asyncio.sleep(0.01)
    return step.task_id


def charge() -> int:
    execution = effects.hit("charge", current_step().task_id)
    if execution <= 2:
        raise ConnectionError("the gateway is down")
    return execution


async def charge_async() -> int:
    await asyncio.sleep(0.01)
    return charge()


@durable_task
def order(ctx: DurableContext) -> list[Any]:
    """Two executions fail by the step's policy, then the body fails once; finished steps are replayed."""
    found = [ctx.run("reserve", reserve), ctx.run("reserve later", reserve_async), str(ctx.uuid())]
    found.append(ctx.run("charge", charge, OPTIONS))
    effects.hit("found", f"{ctx.task_id} {found}")
    if effects.count("found", f"{ctx.task_id} {found}") == 1:
        raise OSError("the body fails")
    return found


@durable_task
async def order_async(ctx: AsyncDurableContext) -> list[Any]:
    """The same in an `async def` task; its sync step runs in a thread."""
    found = [await ctx.run("reserve", reserve), await ctx.run("reserve later", reserve_async), str(ctx.uuid())]
    found.append(await ctx.run("charge", charge_async, OPTIONS))
    effects.hit("found", f"{ctx.task_id} {found}")
    if effects.count("found", f"{ctx.task_id} {found}") == 1:
        raise OSError("the body fails")
    return found


@durable_task
async def steps_side_by_side(ctx: AsyncDurableContext) -> list[str]:
    """Three steps at a time, each of which waits until all have begun."""

    async def meet(name: str) -> str:
        effects.hit("met", name)
        while effects.count("met") < 3:  # noqa: ASYNC110  the others write to a file
            await asyncio.sleep(0.01)
        return name

    return list(await asyncio.gather(*(ctx.run(name, meet, name) for name in ("a", "b", "c"))))


@durable_task
def held(ctx: DurableContext) -> int:
    ctx.run("before", effects.hit, "before", ctx.task_id)

    def step() -> int:
        execution = effects.hit("held", ctx.task_id)
        effects.block("held")
        return execution

    return ctx.run("held", step)


@durable_task
async def held_async(ctx: AsyncDurableContext) -> int:
    await ctx.run("before", effects.hit, "before", ctx.task_id)

    async def step() -> int:
        execution = effects.hit("held", current_step().task_id)
        await effects.block_async("held")
        return execution

    return await ctx.run("held", step)


@durable_task
def exhausted(ctx: DurableContext) -> int:
    def fail() -> None:
        effects.hit("fail", ctx.task_id)
        raise ConnectionError("down")

    try:
        ctx.run("fail", fail, OPTIONS)
    except RetriesExhausted as error:
        return error.attempts
    return 0
