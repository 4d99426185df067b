"""Tasks that fail until somebody retries them, for the tests of Retry from Flower."""

import os
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from celery import Celery, Task
from pydantic import BaseModel

from celery_durable import (
    DurableContext,
    RetryPolicy,
    RunOptions,
    TerminalError,
    current_step,
    durable_task,
)
from tests.smoke import effects

app = Celery("flower")
app.conf.task_routes = {"*.routed": {"queue": "named"}}
if queue := os.environ.get("RETRY_QUEUE"):
    app.conf.task_routes["celery_durable.retry"] = {"queue": queue}

AT_ONCE = RetryPolicy(max_attempts=1)
TWICE = RunOptions(max_attempts=2, initial_retry_interval=0.05)


class Item(BaseModel):
    """What a customer orders."""

    sku: str
    amount: int


class Declined(TerminalError):
    """The bank has refused the card."""


def act(name: str) -> str:
    """Count an execution that succeeds."""
    effects.hit(name, current_step().task_id)
    return name


def fail(name: str, times: int, error: Exception) -> str:
    """Count an execution, and its idempotency key; fail so many times."""
    step = current_step()
    effects.hit(f"{name}.key", step.idempotency_key)
    if effects.hit(name, step.task_id) <= times:
        raise error
    return name


def held(name: str) -> str:
    effects.hit(name, current_step().task_id)
    effects.block(name)
    return name


@durable_task(task_retry_policy=AT_ONCE)
def order(ctx: DurableContext, number: int) -> dict[str, Any]:
    """Fail in the second of three steps; the task's policy allows no other attempt."""
    key = ctx.uuid()
    ctx.run("reserve", act, "reserve")
    ctx.run("charge", fail, "charge", 1, ConnectionError("gateway away"))
    ctx.run("ship", act, "ship")
    return {"number": number, "key": str(key)}


@durable_task(task_retry_policy=AT_ONCE)
def exhausting(ctx: DurableContext) -> str:
    """Fail three times in a step that may be executed twice: the budget, and one execution more."""
    ctx.run("reserve", act, "reserve")
    return ctx.run("charge", fail, TWICE, "charge", 3, ConnectionError("gateway away"))


@durable_task
def declined(ctx: DurableContext) -> str:
    ctx.run("reserve", act, "reserve")
    return ctx.run("charge", fail, "charge", 1, Declined("card declined", 402, {"bank": "b"}))


@durable_task
def refused(ctx: DurableContext) -> str:
    """Fail in the body, after its only step."""
    ctx.run("reserve", act, "reserve")
    if effects.hit("body", ctx.task_id) == 1:
        raise TerminalError("out of stock", 409)
    return "in stock"


@durable_task
def compensated(ctx: DurableContext) -> str:
    """A saga: the failed charge is followed by the step that undoes the reservation."""
    ctx.run("reserve", act, "reserve")
    try:
        ctx.run("charge", fail, TWICE, "charge", 2, ConnectionError("gateway away"))
    except TerminalError:
        ctx.run("release", act, "release")
        raise
    return "charged"


@durable_task(task_retry_policy=AT_ONCE)
def described(ctx: DurableContext, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Fail once; then tell how the message that succeeded was sent."""
    ctx.run("charge", fail, "charge", 1, ConnectionError("gateway away"))
    return {
        "args": args,
        "kwargs": kwargs,
        "types": [type(arg).__name__ for arg in args],
        "tenant": ctx.request.headers.get("tenant"),
        "priority": ctx.request.delivery_info["priority"],
        "queue": ctx.request.delivery_info["routing_key"],
        "root": ctx.request.root_id,
    }


@durable_task(task_retry_policy=AT_ONCE)
def priced(ctx: DurableContext, item: Item, at: datetime, price: Decimal, customer: UUID) -> str:
    """Take arguments that plain JSON does not know."""
    ctx.run("charge", fail, "charge", 1, ConnectionError("gateway away"))
    return f"{item!r} {at.isoformat()} {price!r} {customer!r}"


@durable_task(task_retry_policy=AT_ONCE)
def routed(ctx: DurableContext) -> str:
    ctx.run("reserve", act, "reserve")
    return ctx.run("charge", fail, "charge", 1, ConnectionError("gateway away"))


@durable_task
def live(ctx: DurableContext) -> str:
    """Be under way until the test lets it end."""
    return ctx.run("work", held, "work")


@durable_task(task_retry_policy=RetryPolicy(initial_retry_interval=3600))
def suspended(ctx: DurableContext) -> str:
    """Wait an hour for its next attempt."""
    return ctx.run("charge", fail, "charge", 1, ConnectionError("gateway away"))


@app.task(bind=True)
def follow(self: Task, value: Any, name: str) -> str:
    """Be what a chain or a link executes next."""
    effects.hit(name, self.request.root_id)
    return f"{name} after {value}"


@app.task
def report(request: Any, error: Any, traceback: Any) -> None:
    """Be an errback."""
    effects.hit("reported", request.id)
