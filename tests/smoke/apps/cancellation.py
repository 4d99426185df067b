"""Durable tasks to be cancelled, wherever they are; they compensate, and tell `effects` what they saw."""

import asyncio
from collections.abc import Callable
from typing import Any

from celery import Celery

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    DurableTask,
    RetryPolicy,
    RunOptions,
    TaskCancelled,
    current_step,
    durable_task,
)
from tests.smoke import effects
from tests.smoke.actions import held, named, work
from tests.waiting import eventually

app = Celery("cancellation")
app.conf.update(durable_lease=2)

HOUR = 3600


def fail() -> None:
    work()
    raise ConnectionError("away")


def held_then_failing() -> None:
    held()
    raise ConnectionError("away")


def saw(error: TaskCancelled, task_id: str) -> None:
    """Count that the code of a run was told."""
    effects.hit("told", f"{task_id} {error.status_code} {error}")


# -- where a run may be when it is cancelled ---------------------------------------------------------------------------


def in_a_step(ctx: DurableContext) -> None:
    ctx.run("charge", held)


def asleep(ctx: DurableContext) -> None:
    ctx.sleep(HOUR, "pause")


def backing_off(seconds: float) -> Callable[[DurableContext], None]:
    options = RunOptions(initial_retry_interval=seconds, max_retry_interval=seconds, retry_interval_factor=1)
    return lambda ctx: ctx.run("flaky", fail, options)


def failing_between(ctx: DurableContext) -> None:
    if effects.hit("bodies", ctx.task_id) == 1:
        raise ConnectionError("no route")


def failing(ctx: DurableContext) -> None:
    ctx.run("charge", held_then_failing, RunOptions(initial_retry_interval=HOUR, max_retry_interval=HOUR))


PLACES: dict[str, Callable[[DurableContext], None]] = {
    "in a step": in_a_step,
    "in a step that fails": failing,
    "asleep": asleep,
    "backing off in Redis": backing_off(HOUR),
    "backing off in the broker": backing_off(30),
    "backing off in the worker": backing_off(0.05),
    "between attempts": failing_between,
}

LATER = RetryPolicy(initial_retry_interval=HOUR, max_retry_interval=HOUR)


@durable_task(task_retry_policy=LATER)
def order(ctx: DurableContext, place: str, ending: str = "raise") -> str:
    """Reserve, be somewhere, ship; when it is cancelled release what was reserved, then raise or return."""
    ctx.run("reserve", work)
    try:
        PLACES[place](ctx)
        ctx.run("ship", work)
    except TaskCancelled as error:
        saw(error, ctx.task_id)
        ctx.run("release", work)
        ctx.run("notify", held if ending == "held" else work)
        if ending == "return":
            return "compensated"
        raise
    return "shipped"


@durable_task(bind=True)
def asks_again(self: Any, ctx: DurableContext, word: str) -> None:
    """Retry with another argument, far from now."""
    ctx.run("reserve", work)
    if word == "first":
        raise self.retry(args=("second",), countdown=HOUR)
    try:
        ctx.run("ship", work)
    except TaskCancelled as error:
        saw(error, f"{ctx.task_id} {word}")
        raise


@durable_task(ignore_result=True)
def unseen(ctx: DurableContext) -> None:
    try:
        ctx.sleep(HOUR)
    finally:
        ctx.run("release", work)


@durable_task(inline_retry_limit=1)
def impatient(ctx: DurableContext) -> str:
    """Retry a step inside the worker, for ever."""
    PLACES["backing off in the worker"](ctx)
    return "unreachable"


@app.task(base=DurableTask, bind=True)
def base_class_order(self: Any) -> str:
    self.ctx.run("reserve", work)
    try:
        self.ctx.sleep(HOUR)
    except TaskCancelled as error:
        saw(error, self.request.id)
        self.ctx.run("release", work)
        raise
    return "shipped"


@app.task(base=DurableTask, bind=True, autoretry_for=(Exception,), max_retries=5)
def retried_by_celery(self: Any) -> None:
    """Have options of Celery that retry every exception."""
    effects.hit("bodies", self.request.id)
    self.ctx.sleep(HOUR)


@durable_task
async def async_order(ctx: AsyncDurableContext) -> list[str]:
    """Be cancelled amid a gather; return what became of each member."""
    outcomes = await asyncio.gather(
        ctx.run("left", named, held), ctx.sleep(HOUR), ctx.run("right", named, work), return_exceptions=True
    )
    for outcome in outcomes:
        if isinstance(outcome, TaskCancelled):
            saw(outcome, ctx.task_id)
    await ctx.run("release", work)
    return [outcome if isinstance(outcome, str) else type(outcome).__name__ for outcome in outcomes]


@durable_task
async def async_order_that_raises(ctx: AsyncDurableContext) -> None:
    await asyncio.gather(ctx.sleep(HOUR, "left"), ctx.sleep(HOUR, "right"))


def watchful() -> str:
    """Work until the run is to be cancelled."""
    step = current_step()
    effects.hit("watching", step.task_id)
    eventually(lambda: step.is_cancelled, 60, what="the cancellation")
    return "stopped early"


async def watchful_async() -> str:
    step = current_step()
    effects.hit("watching", step.task_id)
    for _ in range(3000):
        if step.is_cancelled:
            return "stopped early"
        await asyncio.sleep(0.02)
    raise TimeoutError("nobody cancelled the run")


@durable_task
def watches(ctx: DurableContext) -> str:
    """Have a step that looks; the run ends before anything else of its context is used."""
    return ctx.run("watch", watchful)


@durable_task
async def watches_async(ctx: AsyncDurableContext) -> str:
    return await ctx.run("watch", watchful_async)


# -- others ------------------------------------------------------------------------------------------------------------


@durable_task
def quick(ctx: DurableContext, *args: Any) -> str:
    return ctx.run("quick", named, work)


@app.task
def plain(*args: Any) -> str:
    effects.hit("plain")
    return "done"


@app.task
def on_error(request: Any, error: BaseException, _traceback: Any) -> None:
    effects.hit("on_error", type(error).__name__)


@durable_task
def fails(ctx: DurableContext) -> None:
    raise TaskCancelled("by the user's own hand")
