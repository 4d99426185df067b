"""Eager mode: one journal over Celery's eager retries, which nothing is kept of; exceptions that propagate."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    DurableTask,
    RetryPolicy,
    TerminalError,
    durable_task,
)
from celery_durable.invocation.eager_journals import _journals as _eager_journals
from tests.unit.conftest import Action
from tests.unit.tasks import SLOW

pytestmark = pytest.mark.usefixtures("app")


def test_nothing_of_a_finished_run_is_kept_in_eager_mode() -> None:
    action = Action(1)

    @durable_task
    def count(ctx: DurableContext) -> Any:
        return ctx.run("count", action)

    assert count.apply(task_id="same").result == count.apply(task_id="same").result == 1
    assert action.executions == 2


@pytest.mark.parametrize(
    "ending", [Ignore(), Reject("no", requeue=False), TerminalError("no"), OSError("away"), None], ids=repr
)
@pytest.mark.parametrize("throw", [False, True])
def test_no_ending_leaves_a_journal_in_eager_mode(ending: Any, throw: bool) -> None:
    action = Action(1)

    @durable_task(name="eager.ending")
    def end(ctx: DurableContext) -> None:
        ctx.run("count", action)
        if ending is not None:
            raise ending

    for executions in (1, 2):
        with suppress(Exception):
            end.apply(task_id="same", throw=throw)
        assert action.executions == executions
        assert _eager_journals == {}


def test_a_task_that_calls_itself_as_a_function_waits_for_nothing_in_eager_mode() -> None:
    @durable_task(name="eager.countdown", bind=True)
    def count_down(self: Any, ctx: DurableContext, number: int) -> float:
        began = time.monotonic()
        ctx.sleep(5)
        return time.monotonic() - began + (self.run(number - 1) if number else 0.0)

    assert count_down.apply((2,)).get() < 4


def test_a_task_that_calls_itself_as_a_function_stores_no_retry_in_eager_mode(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[str] = []
    monkeypatch.setattr(app.backend, "store_result", lambda _id, _result, state, **_: stored.append(state))
    action = Action(1)

    @durable_task(name="eager.again", bind=True, max_retries=3)
    def again(self: Any, ctx: DurableContext, number: int) -> Any:
        if number:
            return self.run(number - 1)
        ctx.run("count", action)
        raise self.retry(countdown=1) if action.executions < 3 else TerminalError("enough")

    assert isinstance(again.apply((1,)).result, TerminalError)
    assert action.executions == 3
    assert stored == []
    assert _eager_journals == {}


@pytest.mark.parametrize("by_setting", [False, True], ids=["throw=True", "task_eager_propagates"])
def test_retries_come_before_an_exception_propagates(app: Celery, by_setting: bool) -> None:
    app.conf.task_eager_propagates = by_setting
    throw = {} if by_setting else {"throw": True}
    once, always = Action(ValueError("busy"), "done"), Action(*[ValueError(n) for n in range(4)])

    @durable_task(name="eager.by_step")
    def by_step(ctx: DurableContext, action: Action) -> Any:
        return ctx.run("work", action, SLOW)

    @durable_task(name="eager.by_policy", task_retry_policy=RetryPolicy(max_attempts=3))
    async def by_policy(ctx: AsyncDurableContext, action: Action) -> Any:
        return await ctx.run("work", action)

    assert by_step.apply((once,), **throw).get() == "done"
    assert once.executions == 2
    with pytest.raises(ValueError, match="2"):
        by_policy.apply((always,), **throw)
    assert always.executions == 3
    assert _eager_journals == {}


@pytest.mark.parametrize("uses_context", [True, False])
def test_celerys_own_retries_come_first_where_there_is_a_run(app: Celery, uses_context: bool) -> None:
    """Plain Celery lets its `Retry` propagate, and so does a task that never touches its context."""
    action = Action(ValueError("busy"), "done")

    @app.task(base=DurableTask, bind=True, autoretry_for=(ValueError,), name="eager.auto", default_retry_delay=0)
    def auto(self: Any) -> Any:
        if uses_context:
            self.ctx.uuid()
        return action()

    if uses_context:
        assert auto.apply(throw=True).get() == "done"
    else:
        with pytest.raises(Retry):
            auto.apply(throw=True)
    assert action.executions == 1 + uses_context
    assert _eager_journals == {}
