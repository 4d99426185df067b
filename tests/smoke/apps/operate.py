"""Durable tasks for an operator to look at."""

from celery import Celery

from celery_durable import DurableContext, RunOptions, TerminalError, durable_task
from tests.smoke.actions import count_execution, held, work

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
