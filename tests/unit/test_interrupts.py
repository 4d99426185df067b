"""User code cannot swallow what ends an attempt; and of two interrupts that meet, one ends it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from celery import states

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    RetryPolicy,
    RunOptions,
    TerminalError,
)
from celery_durable.exceptions import DurableError
from celery_durable.interrupts import (
    EndRun,
    FailAttempt,
    Fenced,
    Interrupt,
    JournalLost,
    RetryStep,
    Sleep,
    Stall,
    prevailing,
)
from tests.unit.conftest import VERBS, Action, Run
from tests.unit.tasks import SLOW, applied

ERROR = ValueError("no")
early, late = Sleep("early", 1), Sleep("late", 2)
retry, fail, over = RetryStep("step", ERROR, 5.0), FailAttempt("step", ERROR), EndRun(ERROR)
lost, fenced, stall = JournalLost(DurableError("away")), Fenced(), Stall(ERROR, {})


@pytest.mark.parametrize(
    ("held", "new", "ends"),
    [
        (early, late, early),
        (late, early, early),
        (early, retry, retry),
        (early, fail, fail),
        (early, over, over),
        (retry, over, over),
        (fail, over, over),
        (fail, early, fail),
        (retry, early, retry),
        (retry, fail, retry),
        (over, retry, over),
        (over, early, over),
        (over, EndRun(ERROR), over),
        (stall, over, stall),
        (early, lost, lost),
        (over, lost, lost),
        (stall, fenced, fenced),
        (lost, fenced, fenced),
        (fenced, lost, fenced),
        (fenced, over, fenced),
        (lost, over, lost),
    ],
    ids=lambda interrupt: type(interrupt).__name__,
)
def test_the_interrupt_that_ends_the_attempt(held: Interrupt, new: Interrupt, ends: Interrupt) -> None:
    assert prevailing(held, new) is ends


def test_of_two_failed_steps_the_next_attempt_waits_for_the_later_one() -> None:
    first, second = RetryStep("first", ERROR, 5.0), RetryStep("second", ERROR, 60.0)
    assert prevailing(first, second) is first
    assert first.delay == 60.0
    assert prevailing(first, RetryStep("third", ERROR, 1.0)).delay == 60.0  # type: ignore[attr-defined]


# -- user code that catches it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_swallowed_interrupt_is_raised_again_by_the_next_verb(run: Run, verb: str) -> None:
    ctx = run.attempt()
    with pytest.raises(RetryStep) as first:
        ctx.run("flaky", Action(OSError()), RunOptions(max_attempts=3))
    with pytest.raises(RetryStep) as again:
        VERBS[verb](ctx)
    assert again.value is first.value


@pytest.mark.parametrize("options", [(), (RunOptions(max_attempts=3),)], ids=["no options", "retry options"])
def test_no_except_exception_can_swallow_an_interrupt(run: Run, options: Any) -> None:
    ctx = run.attempt()
    with pytest.raises((RetryStep, FailAttempt)), suppress(Exception):
        ctx.run("flaky", Action(OSError()), *options)


# -- whole tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("app")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are of Python 3.11")
def test_a_retry_in_a_task_group_is_unwrapped() -> None:
    flaky, steady = Action(OSError(), 1), Action(2)

    async def body(ctx: AsyncDurableContext) -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ctx.run("flaky", flaky, SLOW)), group.create_task(ctx.run("steady", steady))]
        return [task.result() for task in tasks]

    assert applied(body).result == [1, 2]
    assert (flaky.executions, steady.executions) == (2, 1)


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("swallow", [BaseException, None], ids=["except BaseException", "bare except"])
def test_the_result_of_an_attempt_that_swallowed_its_retry_is_dropped(swallow: Any) -> None:
    flaky, seen = Action(OSError(), "done"), []

    def body(ctx: DurableContext) -> Any:
        try:
            value = ctx.run("flaky", flaky, SLOW)
        except:  # noqa: E722
            value = "swallowed"
        seen.append(value)
        return value

    assert applied(body).result == "done"
    assert seen == ["swallowed", "done"]
    assert flaky.executions == 2


@pytest.mark.usefixtures("app")
def test_another_exception_on_the_way_out_does_not_hide_the_retry() -> None:
    flaky = Action(OSError(), "done")

    def body(ctx: DurableContext) -> Any:
        try:
            return ctx.run("flaky", flaky, SLOW)
        except BaseException as interrupt:
            raise TerminalError("hidden") from interrupt

    assert applied(body).result == "done"
    assert flaky.executions == 2


class Timeout(BaseException):
    """As gevent's."""


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("kind", [Timeout, asyncio.CancelledError], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", ["body", "step"])
def test_what_is_no_exception_fails_an_attempt_and_never_reaches_the_worker(kind: Any, place: str) -> None:
    passing, lasting = Action(kind("late"), "done"), Action(kind("late"))

    def body_with(action: Action) -> Callable[[DurableContext], Any]:
        def body(ctx: DurableContext) -> Any:
            return action() if place == "body" else ctx.run("step", action)

        return body

    assert applied(body_with(passing)).result == "done"
    failed = applied(body_with(lasting), name="eager.lasting", task_retry_policy=RetryPolicy(max_attempts=2))
    assert failed.state == states.FAILURE
    assert isinstance(failed.result, Exception)
    assert str(failed.result) == f"{kind.__name__}('late')"
    assert (passing.executions, lasting.executions) == (2, 2)


@pytest.mark.usefixtures("app")
def test_a_cancelled_task_of_the_users_own_fails_an_async_attempt() -> None:
    attempts = []

    async def body(ctx: AsyncDurableContext) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            helper = asyncio.ensure_future(asyncio.sleep(60))
            helper.cancel()
            await helper
        return "done"

    assert applied(body).result == "done"
    assert attempts == [1, 2]
