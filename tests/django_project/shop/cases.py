"""Django's own kind of tests, run by Django: what durable tasks do in eager mode, and where they are called.

Each case runs twice: in a `TestCase`, which puts a transaction of one connection around it that nobody else can look
into, and in a `TransactionTestCase`.
"""

# mypy: disable-error-code="attr-defined, misc"

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from celery import current_task
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    InvalidStepError,
    RetriesExhausted,
    RetryPolicy,
    RunOptions,
    TerminalError,
    current_step,
    durable_task,
)
from tests.django_project.celery import app
from tests.django_project.shop.models import Order

TWICE = RetryPolicy(max_attempts=2)


class Refused(Exception):
    """What a step raises."""


def create(item: str) -> int:
    return int(Order.objects.create(item=item).pk)


def items() -> list[str]:
    return sorted(Order.objects.values_list("item", flat=True))


async def items_async() -> list[str]:
    return sorted([item async for item in Order.objects.values_list("item", flat=True)])


def refuse() -> None:
    raise Refused(current_step().attempt)


def refuse_once() -> int:
    if current_step().attempt == 1:
        raise Refused("once")
    return current_step().attempt


@durable_task(app=app, name="cases.order")
def order(ctx: DurableContext, item: str) -> list[str]:
    ctx.run("create", create, item)
    return ctx.run("items", items)


@durable_task(app=app, name="cases.order_async")
async def order_async(ctx: AsyncDurableContext, item: str) -> list[list[str]]:
    """Rows that a sync step makes, seen by the body, by an async step and by sync ones side by side."""
    await ctx.run("create", create, item)
    seen = [await items_async(), await ctx.run("async", items_async)]
    return [*seen, *await asyncio.gather(*[ctx.run(f"items {n}", items) for n in range(2)])]


@durable_task(app=app, name="cases.order_with_async_step")
def order_with_async_step(ctx: DurableContext, item: str) -> list[str]:
    ctx.run("create", create, item)
    return ctx.run("items", items_async)


@durable_task(app=app, name="cases.whereabouts")
async def whereabouts(ctx: AsyncDurableContext) -> dict[str, Any]:
    """What else a body and a step find around them."""
    in_step = await ctx.run("step", lambda: [current_task.name, current_step().name, threading.get_ident()])
    return {"body": current_task.name, "step": in_step}


@durable_task(app=app, name="cases.parent")
async def parent(ctx: AsyncDurableContext, item: str) -> Any:
    """Sends another one, as async code of Django's calls what is sync."""
    return await sync_to_async(lambda: order_async.delay(item).get(disable_sync_subtasks=False))()


@durable_task(app=app, name="cases.caller")
async def caller(ctx: AsyncDurableContext, item: str) -> Any:
    return await order_async(item)  # calls it as a function


@durable_task(app=app, name="cases.empty")
async def empty(ctx: AsyncDurableContext) -> None:
    await ctx.run("next", lambda: next(iter([])))


@durable_task(app=app, name="cases.hangs")
async def hangs(ctx: AsyncDurableContext) -> list[str]:
    is_given_up = threading.Event()
    try:
        await ctx.run("hang", is_given_up.wait, RunOptions(timeout=0.1, max_attempts=1))
    except RetriesExhausted:
        is_given_up.set()
    return await ctx.run("items", items)


@durable_task(app=app, name="cases.hangs_async")
def hangs_async(ctx: DurableContext) -> list[str]:
    with suppress(RetriesExhausted):
        ctx.run("hang", asyncio.Event().wait, RunOptions(timeout=0.1, max_attempts=1))
    return ctx.run("items", items)


@durable_task(app=app, name="cases.in_time")
def in_time(ctx: DurableContext, item: str) -> list[str]:
    ctx.run("create", create, RunOptions(timeout=60), item)
    return ctx.run("items", items_async, RunOptions(timeout=60))


@durable_task(app=app, name="cases.late")
def late(ctx: DurableContext) -> None:
    def run_over() -> None:
        until = time.monotonic() + 0.1
        while time.monotonic() <= until:
            pass

    ctx.run("run over", run_over, RunOptions(timeout=0.1, max_attempts=1))


@durable_task(app=app, name="cases.refused", task_retry_policy=TWICE)
def refused(ctx: DurableContext) -> None:
    ctx.run("refuse", refuse)


@durable_task(app=app, name="cases.refused_async", task_retry_policy=TWICE)
async def refused_async(ctx: AsyncDurableContext) -> None:
    await ctx.run("refuse", refuse)


@durable_task(app=app, name="cases.exhausted")
def exhausted(ctx: DurableContext) -> None:
    ctx.run("refuse", refuse, RunOptions(max_attempts=3, initial_retry_interval=3600))


@durable_task(app=app, name="cases.refused_once")
async def refused_once(ctx: AsyncDurableContext, item: str) -> list[Any]:
    await ctx.run("create", create, item)
    executions = await ctx.run("refuse once", refuse_once, RunOptions(max_attempts=3, initial_retry_interval=3600))
    await ctx.sleep(3600)
    return [executions, await items_async()]


@durable_task(app=app, name="cases.in_a_transaction")
def in_a_transaction(ctx: DurableContext, item: str) -> None:
    with transaction.atomic():
        ctx.run("create", create, item)


@durable_task(app=app, name="cases.declined")
def declined(ctx: DurableContext) -> None:
    def decline() -> None:
        raise TerminalError("declined", 402)

    ctx.run("decline", decline)


class Cases:
    """All of them."""

    def setUp(self) -> None:
        create("before")

    def test_an_eager_task_sees_the_rows_of_the_test_and_the_test_its_rows(self) -> None:
        assert order.delay("tea").get() == ["before", "tea"]
        assert items() == ["before", "tea"]

    def test_so_does_an_async_one(self) -> None:
        assert order_async.delay("tea").get() == [["before", "tea"]] * 4
        assert items() == ["before", "tea"]

    def test_so_does_one_with_an_async_step(self) -> None:
        assert order_with_async_step.delay("tea").get() == ["before", "tea"]

    def test_so_does_one_that_is_called_as_a_function(self) -> None:
        assert order("tea") == ["before", "tea"]
        assert order_with_async_step("milk") == ["before", "milk", "tea"]
        assert order_async("oats") == [["before", "milk", "oats", "tea"]] * 4

    def test_so_does_one_that_is_sent_by_async_code(self) -> None:
        async def send() -> Any:
            return await sync_to_async(lambda: order_async.delay("tea").get())()

        assert async_to_sync(send)() == [["before", "tea"]] * 4

    async def test_so_does_one_that_is_sent_by_an_async_test(self) -> None:
        result = await sync_to_async(order_async.delay)("tea")
        assert result.result == [["before", "tea"]] * 4

    def test_so_does_one_that_another_one_sends_or_calls(self) -> None:
        assert parent.delay("tea").get() == [["before", "tea"]] * 4
        assert caller.delay("milk").get() == [["before", "milk", "tea"]] * 4

    def test_a_step_may_raise_stop_iteration(self) -> None:
        with pytest.raises(RuntimeError, match="the action raised StopIteration"):
            empty()

    def test_a_step_is_given_up_in_time(self) -> None:
        for task in (hangs, hangs_async):
            assert task.delay().get() == ["before"]

    def test_the_connection_of_the_test_is_the_only_one(self) -> None:
        mine = connection.connection
        order_async("tea")
        order.delay("milk")
        assert connection.connection is mine

    def test_celery_and_the_step_are_known_where_the_code_runs(self) -> None:
        for result in (whereabouts.delay().result, whereabouts()):
            assert result == {"body": whereabouts.name, "step": [whereabouts.name, "step", threading.get_ident()]}

    def test_retries_and_sleeps_take_no_time_and_keep_the_rows(self) -> None:
        assert refused_once.delay("tea").get() == [2, ["before", "tea"]]

    def test_the_steps_own_exception_is_that_of_the_task(self) -> None:
        for task in (refused, refused_async):
            with pytest.raises(Refused) as raised:
                task.delay().get()
            assert raised.value.args == (2,)
            with pytest.raises(Refused) as raised:
                task()
            assert raised.value.args == (1,)

    def test_so_is_a_terminal_one(self) -> None:
        with pytest.raises(TerminalError) as raised:
            declined.delay().get()
        assert raised.value.args == ("declined", 402, None)
        with pytest.raises(RetriesExhausted) as exhaustion:
            exhausted.delay().get()
        assert (exhaustion.value.attempts, exhaustion.value.last_error_type) == (3, "Refused")

    def test_a_transaction_of_the_tasks_own_is_refused_here_too(self) -> None:
        for call in (lambda: in_a_transaction.delay("tea").get(), lambda: in_a_transaction("tea")):
            with pytest.raises(InvalidStepError):
                call()
        assert items() == ["before"]

    def test_one_around_the_call_is_the_callers(self) -> None:
        with transaction.atomic():
            assert order.delay("tea").get() == ["before", "tea"]
            assert order("milk") == ["before", "milk", "tea"]
        assert items() == ["before", "milk", "tea"]


class InTestCase(Cases, TestCase):
    """In a transaction."""

    def test_delay_on_commit_sends_when_the_test_says_so(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            order.delay_on_commit("tea")
            assert items() == ["before"]
        assert items() == ["before", "tea"]


class InTransactionTestCase(Cases, TransactionTestCase):
    """In none."""

    def test_a_step_with_a_timeout_has_the_connection_of_a_request_thread(self) -> None:
        def handle_request() -> list[str]:
            try:
                with transaction.atomic():
                    create("tea")
                    assert in_time.delay("milk").get() == ["before", "milk", "tea"]
                    return in_time("oats")
            finally:
                connection.close()

        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(handle_request).result() == ["before", "milk", "oats", "tea"]
            with pytest.raises(RetriesExhausted) as exhaustion:
                threads.submit(lambda: late.delay().get()).result()
        assert exhaustion.value.last_error_type == "DurableTimeoutError"

    def test_delay_on_commit_sends_after_the_commit(self) -> None:
        with transaction.atomic():
            order.delay_on_commit("tea")
            assert items() == ["before"]
        assert items() == ["before", "tea"]
