"""Steps keep the types of their actions; this file is checked by mypy and pyright, and never run."""

from datetime import datetime
from random import Random
from uuid import UUID

from typing_extensions import assert_type

from celery_durable import AsyncDurableContext, DurableContext, RunOptions, current_step

OPTIONS = RunOptions(max_attempts=3)


class Receipt:
    """What a payment leaves."""


def pay(order: int, *, currency: str = "EUR") -> Receipt:
    raise NotImplementedError


async def pay_async(order: int, *, currency: str = "EUR") -> Receipt:
    raise NotImplementedError


class Gateway:
    def pay(self, order: int) -> Receipt:
        raise NotImplementedError

    async def pay_async(self, order: int) -> Receipt:
        raise NotImplementedError


def sync_steps(ctx: DurableContext, gateway: Gateway) -> None:
    assert_type(ctx.patched("check address"), bool)
    assert_type(ctx.run("pay", pay, 5), Receipt)
    assert_type(ctx.run("pay", pay, order=5, currency="CHF"), Receipt)
    assert_type(ctx.run("pay", pay_async, 5), Receipt)
    assert_type(ctx.run("pay", gateway.pay, 5), Receipt)
    assert_type(ctx.run("pay", gateway.pay_async, 5), Receipt)
    assert_type(ctx.run("pay", lambda: 5), int)
    assert_type(ctx.run("pay", lambda: pay_async(5)), Receipt)
    assert_type(ctx.run_typed("pay", pay, 5, currency="CHF"), Receipt)
    assert_type(ctx.run_typed("pay", pay, OPTIONS, 5), Receipt)
    assert_type(ctx.run_typed("pay", pay_async, OPTIONS, 5), Receipt)
    assert_type(ctx.run("pay", lambda: 5, OPTIONS), int)

    ctx.run("pay", pay)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.run("pay", pay, "five")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.run("pay", pay, 5, curency="CHF")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.run("pay", pay, 5, max_attempts=3)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.run(pay, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    ctx.run("pay", pay(5))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def async_steps(ctx: AsyncDurableContext, gateway: Gateway) -> None:
    assert_type(await ctx.run("pay", pay, 5), Receipt)
    assert_type(await ctx.run("pay", pay_async, order=5, currency="CHF"), Receipt)
    assert_type(await ctx.run("pay", gateway.pay, 5), Receipt)
    assert_type(await ctx.run("pay", gateway.pay_async, 5), Receipt)
    assert_type(await ctx.run("pay", lambda: 5), int)
    assert_type(await ctx.run("pay", lambda: pay_async(5)), Receipt)
    assert_type(await ctx.run_typed("pay", pay_async, 5, currency="CHF"), Receipt)
    assert_type(await ctx.run_typed("pay", pay, OPTIONS, 5), Receipt)
    assert_type(await ctx.run_typed("pay", pay_async, OPTIONS, 5), Receipt)

    await ctx.run("pay", pay_async)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.run("pay", pay_async, "five")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.run(pay_async, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.run("pay", pay_async(5))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def sync_helpers(ctx: DurableContext) -> None:
    assert_type(ctx.uuid(), UUID)
    assert_type(ctx.random(), Random)
    assert_type(ctx.random("stream").random(), float)
    assert_type(ctx.time(), int)
    assert_type(ctx.now(), datetime)
    assert_type(ctx.task_id, str)
    assert_type(ctx.attempt, int)
    assert_type(ctx.is_replaying, bool)


async def async_helpers(ctx: AsyncDurableContext) -> None:
    assert_type(ctx.patched("check address"), bool)
    assert_type(ctx.uuid(), UUID)
    assert_type(ctx.random(), Random)
    assert_type(await ctx.time(), int)
    assert_type(await ctx.now(), datetime)


def inside_of_a_step() -> None:
    step = current_step()
    assert_type(step.name, str)
    assert_type(step.attempt, int)
    assert_type(step.task_id, str)
    assert_type(step.idempotency_key, UUID)
