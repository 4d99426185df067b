"""Tasks that take too long, each in its own way."""

import asyncio
import signal
import time
from typing import Any

from celery import Celery

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    DurableTask,
    RetriesExhausted,
    RetryPolicy,
    RunOptions,
    current_step,
    durable_task,
)
from tests.smoke import effects

app = Celery("progress")
app.conf.durable_task_retry_policy = RetryPolicy(initial_retry_interval=0.05, max_attempts=3)

FOR_EVER = 60.0
"""Seconds that no test waits for."""

OVERRUNNING = RunOptions(timeout=0.5, max_attempts=3, initial_retry_interval=0.05)
IMPATIENT = {"inactivity_timeout": 1, "abort_timeout": 1}


def hang() -> None:
    effects.hit("hang", current_step().task_id)
    time.sleep(FOR_EVER)


async def hang_async() -> None:
    effects.hit("hang", current_step().task_id)
    await asyncio.sleep(FOR_EVER)


def hang_in(kind: str) -> None:
    """Hang in a way that does not want to end."""
    effects.hit("hang", current_step().task_id)
    give_up_at = time.monotonic() + FOR_EVER
    while time.monotonic() < give_up_at:
        if kind == "a loop":
            continue
        try:
            time.sleep(1)
        except Exception:
            effects.hit("swallowed")


@durable_task
def overruns(ctx: DurableContext) -> list[Any]:
    """Hangs until its options are spent, then compensates."""
    before = ctx.run("before", effects.hit, "before", ctx.task_id)
    try:
        ctx.run("hang", hang, OVERRUNNING)
    except RetriesExhausted as error:
        return [
            before,
            ctx.run("compensate", effects.hit, "compensate", ctx.task_id),
            error.attempts,
            error.last_error_type,
        ]
    return []


@durable_task
async def overruns_async(ctx: AsyncDurableContext) -> list[Any]:
    before = await ctx.run("before", effects.hit, "before", ctx.task_id)
    try:
        await ctx.run("hang", hang_async, OVERRUNNING)
    except RetriesExhausted as error:
        after = await ctx.run("compensate", effects.hit, "compensate", ctx.task_id)
        return [before, after, error.attempts, error.last_error_type]
    return []


@durable_task
async def overruns_in_a_thread(ctx: AsyncDurableContext) -> list[Any]:
    """A sync action of an async task, which nothing stops."""
    try:
        await ctx.run("hang", lambda: effects.hit("hang", ctx.task_id) and effects.block("held"), OVERRUNNING)
    except RetriesExhausted as error:
        return [error.attempts, error.last_error_type]
    return []


@durable_task
def starts_once(ctx: DurableContext) -> None:
    ctx.run("hang", hang, RunOptions(timeout=0.5, max_attempts=1))


@durable_task
def never_ends(ctx: DurableContext, kind: str) -> int:
    try:
        ctx.run("hang", hang_in, RunOptions(timeout=0.5, max_attempts=2, initial_retry_interval=0.05), kind)
    except RetriesExhausted as error:
        return error.attempts
    return 0


@durable_task(**IMPATIENT)
def silent(ctx: DurableContext) -> int:
    """Its step hangs once; without options of its own it is retried by the policy of the task."""
    ctx.run("before", effects.hit, "before", ctx.task_id)

    def step() -> int:
        execution = effects.hit("silent", ctx.task_id)
        if execution == 1:
            effects.block("held")
        return execution

    return ctx.run("silent", step)


@durable_task(**IMPATIENT)
async def silent_async(ctx: AsyncDurableContext) -> int:
    await ctx.run("before", effects.hit, "before", ctx.task_id)

    async def step() -> int:
        execution = effects.hit("silent", ctx.task_id)
        if execution == 1:
            await effects.block_async("held")
        return execution

    return await ctx.run("silent", step)


@durable_task(**IMPATIENT)
def silent_for_ever(ctx: DurableContext) -> None:
    ctx.run("hang", hang)


@durable_task(**IMPATIENT)
def silent_between_steps(ctx: DurableContext) -> int:
    before = ctx.run("before", effects.hit, "before", ctx.task_id)
    if effects.hit("body", ctx.task_id) == 1:
        time.sleep(FOR_EVER)
    return before


@durable_task(inactivity_timeout=1, abort_timeout=0.5)
def alive(ctx: DurableContext) -> int:
    """Works for several times as long as it may be silent."""

    def work() -> int:
        for _ in range(40):
            time.sleep(0.1)
            current_step().heartbeat()
        return effects.hit("alive", ctx.task_id)

    return ctx.run("work", work)


@durable_task(inactivity_timeout=0.5)
def quiet(ctx: DurableContext) -> int:
    """Is silent, and ends after all."""

    def step() -> int:
        effects.block("held")
        return effects.hit("quiet", ctx.task_id)

    return ctx.run("quiet", step)


@durable_task
def outlasts(ctx: DurableContext) -> int:
    """Is silent for some seconds."""

    def step() -> int:
        time.sleep(3)
        return effects.hit("outlasts", ctx.task_id)

    return ctx.run("outlasts", step)


@durable_task
def deaf(ctx: DurableContext) -> int:
    """Its step does not hear signals, as code in C that does not return to Python."""

    def step() -> int:
        execution = effects.hit("deaf", ctx.task_id)
        if execution == 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
            effects.block("held")
        return execution

    return ctx.run("deaf", step, RunOptions(timeout=0.5, initial_retry_interval=0.05))


@durable_task(inactivity_timeout=1, abort_timeout=1)
def held(ctx: DurableContext) -> int:
    """In threads its run goes on while it is held; what it returns then is recorded if nobody has begun again."""

    def step() -> int:
        execution = effects.hit("held", ctx.task_id)
        effects.block("held")
        return execution

    return ctx.run("held", step, RunOptions(initial_retry_interval=8, max_retry_interval=8))


@app.task(
    base=DurableTask,
    bind=True,
    autoretry_for=(TimeoutError,),
    retry_kwargs={"countdown": 0},
    max_retries=2,
    **IMPATIENT,
)
def silent_on_the_base_class(self: Any) -> int:
    """Its timeout is an exception like any other, of which Celery's own options decide."""

    def step() -> int:
        execution = effects.hit("silent", self.request.id)
        if execution == 1:
            effects.block("held")
        return execution

    return self.ctx.run("silent", step)
