"""Durable members of chains, groups and chords, some of which fail and are retried."""

from typing import Any

from celery import Celery, chain, group

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    DurableTask,
    RetryPolicy,
    RunOptions,
    TerminalError,
    durable_task,
)
from tests.smoke import effects

app = Celery("canvas")
app.conf.durable_task_retry_policy = RetryPolicy(initial_retry_interval=0.02)

OPTIONS = RunOptions(max_attempts=4, initial_retry_interval=0.02)


def flaky(name: str, key: object, value: Any, failures: int) -> Any:
    if effects.hit(name, key) <= failures:
        raise ConnectionError(f"{name} fails")
    return value


@durable_task
def add(ctx: DurableContext, x: int, y: int) -> int:
    """Its step fails twice by its policy, its body once by the task's."""
    effects.hit("add attempts", ctx.task_id)
    total = ctx.run("add", flaky, OPTIONS, "add", ctx.task_id, x + y, 2)
    if effects.count("add attempts", ctx.task_id) == 3:
        raise OSError("the body fails")
    return total


@durable_task
async def double(ctx: AsyncDurableContext, x: int) -> int:
    return await ctx.run("double", flaky, "double", ctx.task_id, 2 * x, 1)


@durable_task
def total(ctx: DurableContext, numbers: list[int]) -> int:
    return ctx.run("total", flaky, OPTIONS, "total", ctx.task_id, sum(numbers), 1)


@app.task(base=DurableTask, bind=True, autoretry_for=(ConnectionError,), default_retry_delay=0, max_retries=5)
def increment(self: Any, x: int) -> int:
    """On the base class, retried by Celery's own options."""
    return self.ctx.run("increment", flaky, "increment", self.request.id, x + 1, 1)


@durable_task
def refuse(ctx: DurableContext, *args: Any) -> None:
    ctx.run("before", effects.hit, "refuse", ctx.task_id)
    raise TerminalError("refused", 409, {"x": 1})


@durable_task
def exhausted(ctx: DurableContext, *args: Any) -> None:
    ctx.run("exhausted", flaky, OPTIONS, "exhausted", ctx.task_id, None, 99)


@app.task
def plain(x: Any) -> Any:
    effects.hit("plain", x)
    return x


@durable_task
def linked(ctx: DurableContext, value: Any) -> None:
    ctx.run("linked", flaky, OPTIONS, "linked", value, None, 1)
    effects.hit("linked for", value)


@app.task
def on_error(request: Any, error: BaseException, _traceback: Any) -> None:
    effects.hit("on_error", f"{request.id} {type(error).__name__} {error}")


@durable_task(bind=True)
def replaced(self: Any, ctx: DurableContext, x: int) -> None:
    """Gives way to another task, which inherits the id."""
    doubled = ctx.run("prepare", flaky, OPTIONS, "prepare", x, 2 * x, 1)
    raise self.replace(chain(add.s(doubled, 1), double.s()))


@durable_task
def sends_from_a_step(ctx: DurableContext, x: int) -> str:
    """A plain task, which both executions of the step send, under one id."""

    def send() -> str:
        from celery_durable import current_step

        key = str(current_step().idempotency_key)
        group(plain.s(x).set(task_id=key)).apply_async()
        if effects.hit("send", ctx.task_id) == 1:
            raise ConnectionError("after it was sent")
        return key

    return ctx.run("send", send, OPTIONS)
