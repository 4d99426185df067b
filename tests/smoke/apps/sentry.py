"""Durable tasks in a worker that tells Sentry; what it would send is written where tests read it."""

from typing import Any

from celery import Celery, signals

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

app = Celery("sentry")

TWICE = RetryPolicy(max_attempts=2, initial_retry_interval=0.02)


@signals.celeryd_init.connect
def begin(**_: Any) -> None:
    """In workers only: its import changes what it finds in the process."""
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    class Collecting(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            for item in envelope.items:
                if item.type in ("event", "transaction", "check_in"):
                    effects.hit(item.type, item.get_bytes().decode())

    sentry_sdk.init(
        "http://key@127.0.0.1:1/1", transport=Collecting, traces_sample_rate=1.0, integrations=[CeleryIntegration()]
    )


def boom() -> None:
    raise ValueError("boom")


async def boom_async() -> None:
    boom()


def refuse() -> None:
    raise TerminalError("no such card", 402)


@durable_task(task_retry_policy=TWICE)
def spends_its_policy(ctx: DurableContext) -> None:
    ctx.run("boom", boom)


@durable_task(task_retry_policy=TWICE)
async def spends_its_policy_async(ctx: AsyncDurableContext) -> None:
    await ctx.run("boom", boom_async)


@app.task(base=DurableTask, bind=True)
def of_the_base_class(self: Any) -> None:
    self.ctx.run("boom", boom)


@app.task(base=DurableTask, bind=True, autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0)
def retried_by_celery(self: Any) -> None:
    self.ctx.run("boom", boom)


@durable_task
def unrecordable(ctx: DurableContext) -> None:
    ctx.run("object", object)


@durable_task
def exhausts_a_step(ctx: DurableContext) -> None:
    ctx.run("boom", boom, RunOptions(max_attempts=2, initial_retry_interval=0.02))


@durable_task
def fails_later(ctx: DurableContext) -> None:
    """Raise a failure that the journal has."""
    try:
        ctx.run("refuse", refuse)
    except TerminalError:
        ctx.sleep(0.05)
        raise


@durable_task
def sleeps(ctx: DurableContext, seconds: float) -> str:
    ctx.sleep(seconds)
    return "awake"
