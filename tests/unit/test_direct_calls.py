"""A durable task that is called as a function: with a journal in memory, and without retries."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from celery_durable import (
    AsyncDurableContext,
    ContextInStepError,
    DurableContext,
    EntryNotRecordableError,
    InvalidStepError,
    RunOptions,
    durable_task,
)
from tests.unit.conftest import Action
from tests.unit.tasks import SLOW

pytestmark = pytest.mark.usefixtures("app")


def test_a_direct_call_returns_what_the_function_returns() -> None:
    @durable_task
    def add(ctx: DurableContext, a: int, b: int = 0) -> int:
        return ctx.run("add", lambda: a + b)

    assert add(1) == 1
    assert add(1, b=2) == 3


def test_a_direct_call_of_an_async_task_returns_its_result() -> None:
    @durable_task
    async def add(ctx: AsyncDurableContext, a: int) -> int:
        async def one() -> int:
            return 1

        return a + await ctx.run("one", one)

    assert add(1) == 2


@pytest.mark.parametrize("awaited", [False, True])
def test_a_value_that_follows_a_swallowed_interrupt_does_not_count(awaited: bool) -> None:
    """Also where a coroutine calls the task, and awaits it."""

    @durable_task
    async def careless(ctx: AsyncDurableContext) -> str:
        with suppress(BaseException):
            await ctx.run("no action", None)  # type: ignore[call-overload]
        return "value"

    async def call() -> Any:
        return await careless()

    with pytest.raises(InvalidStepError, match="no action"):
        asyncio.run(call()) if awaited else careless()


@pytest.mark.parametrize(
    "options", [(), (SLOW,), (RunOptions(non_retryable=OSError),)], ids=["none", "retry", "non_retryable"]
)
def test_a_direct_call_raises_what_the_step_raised_without_a_retry(options: Any) -> None:
    action = Action(OSError("away"))

    @durable_task
    def fetch(ctx: DurableContext) -> Any:
        return ctx.run("fetch", action, *options)

    with pytest.raises(OSError, match="away"):
        fetch()
    assert action.executions == 1


def test_direct_calls_share_nothing() -> None:
    action = Action(1)

    @durable_task
    def count(ctx: DurableContext) -> tuple[str, int]:
        ctx.run("count", action)
        return ctx.task_id, ctx.attempt

    (first, attempt), (second, again) = count(), count()
    assert first != second
    assert (attempt, again) == (1, 1)
    assert action.executions == 2


def test_a_direct_call_checks_the_step_like_a_worker() -> None:
    @durable_task
    def nested(ctx: DurableContext) -> Any:
        return ctx.run("outer", lambda: ctx.run("inner", lambda: 1))

    with pytest.raises(ContextInStepError):
        nested()

    @durable_task
    def degraded(ctx: DurableContext) -> Any:
        return ctx.run("make", object)

    with pytest.raises(EntryNotRecordableError):
        degraded()


@pytest.mark.parametrize("call", [(), (1, 2)], ids=["too few", "too many"])
def test_a_direct_call_with_wrong_arguments_is_a_type_error(call: tuple[int, ...]) -> None:
    @durable_task
    def add(ctx: DurableContext, a: int) -> int:
        return a

    with pytest.raises(TypeError):
        add(*call)


def test_with_bind_the_task_comes_before_the_context() -> None:
    @durable_task(bind=True)
    def who(self: Any, ctx: DurableContext, word: str) -> list[Any]:
        return [self.name, ctx.run("say", lambda: word)]

    assert who("hello") == [who.name, "hello"]
    assert who.apply(("hello",)).result == [who.name, "hello"]
