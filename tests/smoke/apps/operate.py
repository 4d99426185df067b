"""Durable tasks for an operator to look at."""

from celery import Celery

from celery_durable import DurableContext, RetryPolicy, RunOptions, TaskCancelled, TerminalError, durable_task
from tests.smoke import effects
from tests.smoke.actions import count_execution, fail, held, work

app = Celery("operate")


@durable_task
def sleeps(ctx: DurableContext, seconds: float) -> int:
    """Sleep after a step; return the attempt."""
    ctx.run("before", work)
    ctx.sleep(seconds, "pause")
    return ctx.attempt


@durable_task
def holds(ctx: DurableContext) -> int:
    """Wait at the gate "held"."""
    return ctx.run("held", held)


@durable_task
def fails_once(ctx: DurableContext) -> int:
    """Fail for good, until it is retried; return the execution."""
    return ctx.run("decline", declined_once, RunOptions())


@durable_task
def names(ctx: DurableContext, name: str) -> str:
    """Return the name."""
    return ctx.run(name, lambda: name)


def declined_once() -> int:
    number = count_execution()
    if number == 1:
        raise TerminalError("declined")
    return number


@durable_task(task_retry_policy=RetryPolicy(initial_retry_interval=0.05, max_attempts=2, on_exhausted="pause"))
def pauses(ctx: DurableContext, failures: int) -> int:
    """Charge, which fails so often; release what is reserved, if the run is cancelled. Return the execution."""
    ctx.run("reserve", work)
    try:
        return ctx.run("charge", fail, failures)
    except TaskCancelled:
        ctx.run("release", work)
        raise


@app.task
def follow(value: int) -> int:
    """What a chain goes on with."""
    effects.hit("follow")
    return value


@app.task
def report(*_: object) -> None:
    """What is to be called after a failure."""
    effects.hit("report")


@durable_task
def order(ctx: DurableContext) -> str:
    """Fail at the second of three steps, the first time that any run comes to it; return the id."""
    ctx.run("reserve", work)
    ctx.run("charge", charged_once_declined)
    ctx.run("ship", work)
    return ctx.task_id


def charged_once_declined() -> None:
    work()
    if effects.hit("charged") == 1:
        raise TerminalError("declined")
