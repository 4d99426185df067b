"""Durable tasks that sleep, and tasks whose retries are far away."""

import asyncio
from typing import Any

from celery import Celery

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    DurableTask,
    RetryPolicy,
    RunOptions,
    durable_task,
)
from tests.smoke import effects
from tests.smoke.actions import fail, work

app = Celery("waits")
app.conf.update(durable_lease=2)


@app.task
def quick() -> str:
    return "done"


# -- sleeps ------------------------------------------------------------------------------------------------------------


@durable_task
def sleeps(ctx: DurableContext, *durations: float) -> int:
    """Sleep between steps; return the attempt."""
    ctx.run("before", work)
    for duration in durations:
        ctx.sleep(duration, "pause")
        ctx.run("after", work)
    return ctx.attempt


@app.task(base=DurableTask, bind=True)
def base_class_sleeps(self: Any, duration: float) -> int:
    self.ctx.run("before", work)
    self.ctx.sleep(duration)
    self.ctx.run("after", work)
    return self.ctx.attempt


@durable_task
async def sleeps_async(ctx: AsyncDurableContext, *durations: float) -> int:
    """Sleep for several times at once."""
    await ctx.run("before", work)
    await asyncio.gather(*(ctx.sleep(duration) for duration in durations))
    await ctx.run("after", work)
    return ctx.attempt


@durable_task(track_started=True)
def tracked(ctx: DurableContext) -> str:
    ctx.sleep(3600, "pause")
    ctx.run("held", effects.block, "tracked")
    return "done"


@durable_task
def refused(ctx: DurableContext, duration: Any) -> None:
    """Sleep for a time that there is not."""
    ctx.run("before", work)
    try:
        ctx.sleep(duration)
    except Exception:
        effects.hit("swallowed")


@durable_task
def numbers(ctx: DurableContext, number: int, duration: float = 0.5) -> int:
    """Be a member of a canvas that sleeps."""
    ctx.run("before", work)
    ctx.sleep(duration)
    ctx.run("after", work)
    return number + 1


@durable_task
def total(ctx: DurableContext, numbers: list[int]) -> int:
    ctx.sleep(0.5)
    return ctx.run("total", lambda: effects.hit("total") and sum(numbers))


@durable_task(bind=True, max_retries=5)
def sleeps_and_retries(self: Any, ctx: DurableContext) -> list[int]:
    """Sleep before and after a retry of each kind; return Celery's count of retries, seen after each."""
    seen = [self.request.retries]
    ctx.run("flaky", fail, RunOptions(initial_retry_interval=0.05), 1)
    ctx.sleep(0.2)
    seen.append(self.request.retries)
    if effects.hit("bodies", ctx.task_id) == 1:
        raise self.retry(countdown=0.05)
    ctx.sleep(0.2)
    return [*seen, self.request.retries]


# -- retries -----------------------------------------------------------------------------------------------------------


@durable_task(bind=True)
def flaky(self: Any, ctx: DurableContext, failures: int, **options: Any) -> list[int]:
    """Have a step that fails so often; return its executions and Celery's count of retries."""
    ctx.run("before", work)
    return [ctx.run("flaky", fail, RunOptions(**options), failures), self.request.retries]


@durable_task(task_retry_policy=RetryPolicy(initial_retry_interval=0.3, retry_interval_factor=1, max_attempts=3))
def fails(ctx: DurableContext, failures: int) -> int:
    """Fail so many attempts outside of steps."""
    ctx.run("before", work)
    if effects.hit("bodies", ctx.task_id) <= failures:
        raise ConnectionError("no route")
    return ctx.attempt


@durable_task(bind=True, max_retries=2)
def retries_itself(self: Any, ctx: DurableContext, word: str, times: int, **options: Any) -> dict[str, Any]:
    """Retry so often, with these options; return what the last attempt sees."""
    ctx.run("before", work)
    if effects.hit("bodies", ctx.task_id) <= times:
        raise self.retry(**options)
    return seen_by(self.request, word)


@app.task(base=DurableTask, bind=True, max_retries=2)
def base_class_retries_itself(self: Any, word: str, times: int, **options: Any) -> dict[str, Any]:
    self.ctx.run("before", work)
    if effects.hit("bodies", self.request.id) <= times:
        raise self.retry(**options)
    return seen_by(self.request, word)


def seen_by(request: Any, word: str) -> dict[str, Any]:
    return {
        "word": word,
        "retries": request.retries,
        "queue": request.delivery_info["routing_key"],
        "colour": (request.headers or {}).get("colour"),
    }
