"""Orders, taken in ways that are right and wrong."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from asgiref.sync import sync_to_async
from celery import shared_task
from django.db import connection, transaction

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    DurableTask,
    RetryPolicy,
    RunOptions,
    current_step,
    durable_task,
)
from celery_durable.signals import step_postrun, step_prerun
from tests.django_project.shop.models import Order
from tests.smoke import effects

QUICK = RunOptions(initial_retry_interval=0.05, max_attempts=4)


def create(item: str) -> int:
    effects.hit("create", item)
    return int(Order.objects.create(item=item).pk)


def fail_once() -> None:
    if current_step().attempt == 1:
        raise ConnectionError("away")


def rows(item: str) -> int:
    return Order.objects.filter(item=item).count()


@durable_task(name="shop.in_a_transaction")
def in_a_transaction(ctx: DurableContext, item: str, then: str) -> int:
    """Steps within a transaction, and what rolls it back."""
    with transaction.atomic():
        ctx.run("create", create, item)
        if then == "sleep":
            ctx.sleep(0.2)
        else:
            ctx.run("fail once", fail_once, QUICK)
    return ctx.run("rows", rows, item)


class Atomic(DurableTask[Any, Any]):
    """Puts a transaction around every task."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with transaction.atomic():
            return super().__call__(*args, **kwargs)


@durable_task(name="shop.of_an_atomic_base", base=Atomic)
def of_an_atomic_base(ctx: DurableContext, item: str, then: str) -> int:
    return ctx.run("create", create, item)


@durable_task(name="shop.sleep_in_a_transaction")
def sleep_in_a_transaction(ctx: DurableContext, item: str) -> None:
    with transaction.atomic():
        create(item)
        ctx.sleep(0.2)


@durable_task(name="shop.helpers_in_a_transaction")
def helpers_in_a_transaction(ctx: DurableContext, item: str) -> int:
    """What draws a value has nothing to lose: the next attempt draws it again."""
    with transaction.atomic():
        Order.objects.create(item=f"{item} {ctx.uuid()} {ctx.time()} {ctx.now()} {ctx.random().random()}"[:50])
    return ctx.run("rows", rows, item)


@durable_task(name="shop.transaction_in_a_step")
def transaction_in_a_step(ctx: DurableContext, item: str) -> int:
    """The way to write it; who is to hear of the order, hears of one that is there."""

    def order() -> int:
        with transaction.atomic():
            order = create(item)
            confirm.delay_on_commit(order)
            return order

    order_id = ctx.run("order", order)
    ctx.run("fail once", fail_once, QUICK)
    ctx.sleep(0.2)
    return order_id


@shared_task(name="shop.confirm")
def confirm(order: int) -> None:
    effects.hit("confirm", Order.objects.get(pk=order).item)


# -- connections of code that does not run in Celery's thread


def backend() -> int:
    """Which process of the server serves the connection of this thread."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


async def async_backend() -> int:
    return await sync_to_async(backend)()


def backend_when_released() -> int:
    served_by = backend()
    effects.block("connected")
    return served_by


SOON = RetryPolicy(initial_retry_interval=0.05, max_retry_interval=0.05, max_attempts=4)


@durable_task(name="shop.side_by_side", task_retry_policy=SOON)
async def side_by_side(ctx: AsyncDurableContext, steps: int) -> list[int]:
    return await asyncio.gather(*[ctx.run(f"step {n}", backend_when_released) for n in range(steps)])


@durable_task(name="shop.one_by_one", task_retry_policy=SOON)
async def one_by_one(ctx: AsyncDurableContext, steps: int) -> list[int]:
    return [await ctx.run(f"step {n}", backend, QUICK) for n in range(steps)]


@durable_task(name="shop.async_steps", task_retry_policy=SOON)
async def async_steps(ctx: AsyncDurableContext, steps: int) -> list[int]:
    return [await ctx.run(f"step {n}", async_backend, QUICK) for n in range(steps)]


@durable_task(name="shop.async_body", task_retry_policy=SOON)
async def async_body(ctx: AsyncDurableContext) -> list[int]:
    return [await sync_to_async(backend)()]


@durable_task(name="shop.async_step_of_a_def_task", task_retry_policy=SOON)
def async_step_of_a_def_task(ctx: DurableContext) -> list[int]:
    return [ctx.run("step", async_backend, QUICK)]


@step_prerun.connect
@step_postrun.connect
def remember(sender: str, signal: Any, task_id: str, name: str, **_: Any) -> None:
    effects.hit(signal.name, f"{sender} {task_id} {name} {threading.get_ident()}")
