"""Durable tasks of which every signal is noted."""

from typing import Any

from celery import Celery

from celery_durable import AsyncDurableContext, DurableContext, RunOptions, TerminalError, durable_task, signals
from tests.smoke import effects
from tests.smoke.actions import die, fail_once, held, work

app = Celery("signals")
app.conf.durable_lease = 2

HOUR = 3600
NOTED = (
    "run_started", "run_resumed", "run_suspended", "run_stalled", "run_succeeded", "run_failed", "run_parked",
    "run_cancelled", "attempt_fenced", "step_succeeded", "step_failed",
)  # fmt: skip


def note(signal: Any, run: Any, step: Any = None, **_: Any) -> None:
    effects.hit("signal", f"{run.id} {signal.name}" + (f" {step.name}" if step else ""))


for name in NOTED:
    getattr(signals, name).connect(note)


def refuse() -> None:
    work()
    raise TerminalError("declined")


def die_once() -> int:
    pid = work()
    if effects.hit("deaths") == 1:
        die()
    return pid


@durable_task
def sells(ctx: DurableContext) -> str:
    ctx.run("charge", work)
    ctx.run("ship", work)
    return "sold"


@durable_task
async def sells_async(ctx: AsyncDurableContext) -> str:
    await ctx.run("charge", work)
    return "sold"


@durable_task
def flaky(ctx: DurableContext) -> int:
    """Be retried by the broker."""
    ctx.run("charge", work)
    options = RunOptions(initial_retry_interval=1, max_retry_interval=1)
    return ctx.run("ask", fail_once, options)


@durable_task
def sleeps(ctx: DurableContext) -> str:
    ctx.run("charge", work)
    ctx.sleep(HOUR)
    return "awake"


@durable_task
def refused(ctx: DurableContext) -> None:
    ctx.run("charge", refuse)


@durable_task(time_limit=1)
def endless(ctx: DurableContext) -> None:
    ctx.run("wait", held)


@durable_task
def killed(ctx: DurableContext) -> None:
    ctx.run("charge", work)
    ctx.run("die", die_once)


@durable_task(max_recoveries=1)
def poisoned(ctx: DurableContext) -> None:
    ctx.run("die", die)
