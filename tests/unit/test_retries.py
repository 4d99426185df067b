"""Steps and tasks that fail are executed as often as their policies say; what is finished is replayed."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import Celery, states

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    RetryableError,
    RetryPolicy,
    TerminalError,
)
from tests.unit.conftest import Action
from tests.unit.tasks import SLOW, applied, body_of, failure_of

pytestmark = pytest.mark.usefixtures("app")


def test_finished_steps_are_replayed_over_the_retries_of_a_step() -> None:
    first, flaky, attempts = Action(1), Action(OSError(), OSError(), 2), []

    def body(ctx: DurableContext) -> list[Any]:
        attempts.append(ctx.attempt)
        return [ctx.run("first", first), ctx.run("flaky", flaky, SLOW), str(ctx.uuid())]

    began = time.monotonic()
    result = applied(body)
    assert result.state == states.SUCCESS
    assert result.result[:2] == [1, 2]
    assert (first.executions, flaky.executions, attempts) == (1, 3, [1, 2, 3])
    assert time.monotonic() - began < 5  # eager mode never waits


def test_finished_steps_are_replayed_over_the_retries_of_the_task() -> None:
    step, body_runs, drawn = Action(1), Action(ValueError(), ValueError(), "done"), []

    def body(ctx: DurableContext) -> Any:
        drawn.append((ctx.uuid(), ctx.random().random(), ctx.time(), ctx.now()))
        ctx.run("step", step)
        return body_runs()

    assert applied(body).result == "done"
    assert (step.executions, body_runs.executions) == (1, 3)
    assert len(drawn) == 3
    assert len(set(drawn)) == 1


def test_an_async_task_is_retried_and_replayed_likewise() -> None:
    first, flaky, readings = Action(1), Action(OSError(), 2), []

    async def call(action: Action) -> Any:
        return action()

    async def body(ctx: AsyncDurableContext) -> list[int]:
        readings.append((await ctx.time(), await ctx.now(), ctx.uuid()))
        return [await ctx.run("first", call, first), await ctx.run("flaky", call, SLOW, flaky)]

    assert applied(body).result == [1, 2]
    assert (first.executions, flaky.executions) == (1, 2)
    assert len(set(readings)) == 1


def test_the_default_policy_allows_seventy_attempts_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    action = Action(OSError("away"))
    error = failure_of(applied(body_of(action)), OSError)
    assert str(error) == "away"
    assert action.executions == 70
    assert "attempt 1 of 70 failed" in caplog.text


@pytest.mark.parametrize(
    ("options", "executions"),
    [
        ({"task_retry_policy": RetryPolicy(max_attempts=3)}, 3),
        ({"max_retries": 3}, 4),
        ({"max_retries": 0}, 1),
        ({"retry_kwargs": {"max_retries": 1}}, 2),
        ({"autoretry_for": (KeyError,)}, 1),
        ({"autoretry_for": (OSError,), "max_retries": 2}, 3),
        ({"dont_autoretry_for": (OSError,)}, 1),
        ({"task_retry_policy": RetryPolicy(max_duration=0.2)}, 1),
    ],
    ids=str,
)
def test_the_policy_of_the_task_decides_how_often_it_runs(options: dict[str, Any], executions: int) -> None:
    action = Action(OSError("away"))
    failure_of(applied(body_of(action), **options), OSError)
    assert action.executions == executions


def test_the_policy_of_the_app_is_the_default(app: Celery) -> None:
    app.conf.durable_task_retry_policy = RetryPolicy(max_attempts=2)
    action = Action(OSError("away"))
    failure_of(applied(body_of(action)), OSError)
    assert action.executions == 2


def progress(options: dict[str, Any]) -> int:
    """How often a body runs that fails always, and records a step in each of its first three attempts."""
    action = Action(OSError("away"))

    def body(ctx: DurableContext) -> None:
        for number in range(min(ctx.attempt, 3)):
            ctx.run(f"step {number}", lambda: None)
        action()

    failure_of(applied(body, **options), OSError)
    return action.executions


def test_a_recorded_step_resets_the_count_of_failed_attempts() -> None:
    # Attempts 1, 2 and 3 record a step each; the third starts the count of three that spends the policy.
    assert progress({"task_retry_policy": RetryPolicy(max_attempts=3)}) == 5


def test_celerys_max_retries_is_not_reset_by_progress() -> None:
    assert progress({"max_retries": 2}) == 3


def test_failures_under_a_policy_of_a_step_do_not_count_for_the_task() -> None:
    flaky, body_runs = Action(OSError(), OSError(), 1), Action(ValueError("one"), "done")

    def body(ctx: DurableContext) -> Any:
        ctx.run("flaky", flaky, SLOW)
        return body_runs()

    assert applied(body, task_retry_policy=RetryPolicy(max_attempts=2)).result == "done"
    assert (flaky.executions, body_runs.executions) == (3, 2)


def test_a_step_without_options_is_retried_by_the_task() -> None:
    action = Action(OSError("away"))

    def body(ctx: DurableContext) -> Any:
        return ctx.run("step", action)

    assert str(failure_of(applied(body, max_retries=2), OSError)) == "away"
    assert action.executions == 3


def test_compensations_run_once() -> None:
    pay, refund, bodies = Action(OSError()), Action("refunded"), Action(ValueError(), "done")

    def body(ctx: DurableContext) -> Any:
        try:
            ctx.run("pay", pay, SLOW)
        except TerminalError:
            ctx.run("refund", refund)
        return bodies()

    assert applied(body).result == "done"
    assert (pay.executions, refund.executions, bodies.executions) == (3, 1, 2)


def test_a_retryable_error_of_the_body_is_retried() -> None:
    action = Action(RetryableError("busy", retry_after=3600), "done")
    assert applied(body_of(action)).result == "done"
    assert action.executions == 2
