"""Where no retry is left, a run may be paused: which errors do that, and where it cannot be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_durable import ConfigurationError, DurableContext, RetryPolicy, RunOptions, durable_task
from celery_durable.config.retry import TaskRetryRules
from celery_durable.delivery.announcement import Announcement
from celery_durable.ending.redelivery import reject_delivery
from celery_durable.journal.layout import Wait
from celery_durable.journal.port import Busy
from tests.unit.conftest import Action

PAUSE = RetryPolicy(initial_retry_interval=0.01, max_attempts=2, on_exhausted="pause")
AWAY = ConnectionError("away")


def test_a_policy_fails_or_pauses_and_does_nothing_else() -> None:
    assert RetryPolicy().on_exhausted == "fail"
    with pytest.raises(ConfigurationError, match=r"^on_exhausted must be 'fail' or 'pause', got 'kill'$"):
        RetryPolicy(on_exhausted="kill")


def test_only_what_is_retried_pauses() -> None:
    rules = TaskRetryRules(PAUSE.backoff, (OSError,), (FileNotFoundError,), on_exhausted="pause")

    assert [rules.pauses_after(error) for error in (AWAY, FileNotFoundError(), ValueError())] == [True, False, False]
    assert not TaskRetryRules(PAUSE.backoff).pauses_after(AWAY)


@pytest.mark.parametrize(
    ("options", "setting", "expected"),
    [
        ({}, None, "fail"),
        ({}, PAUSE, "pause"),
        ({"task_retry_policy": PAUSE}, None, "pause"),
        ({"task_retry_policy": RetryPolicy()}, PAUSE, "fail"),
        # Celery has no word for it: its options say only when no retry is left.
        ({"max_retries": 3}, PAUSE, "pause"),
        ({"max_retries": 3}, None, "fail"),
    ],
)
def test_the_task_says_what_follows_or_else_the_app(
    app: Celery, options: dict[str, Any], setting: RetryPolicy | None, expected: str
) -> None:
    if setting is not None:
        app.conf.durable_task_retry_policy = setting

    @durable_task(name="pause.order", **options)
    def order(ctx: DurableContext) -> None:
        """It is only made."""

    assert order.retry_rules.on_exhausted == expected


@pytest.mark.usefixtures("app")
def test_an_eager_run_fails_at_once() -> None:
    action = Action(AWAY)

    @durable_task(name="pause.eager", task_retry_policy=PAUSE)
    def order(ctx: DurableContext) -> None:
        ctx.run("charge", action)

    result = order.apply()

    assert (result.state, result.result, action.executions) == ("FAILURE", AWAY, 2)


@pytest.mark.usefixtures("app")
def test_a_task_that_is_called_as_a_function_raises_its_error() -> None:
    action = Action(AWAY)

    @durable_task(name="pause.direct", task_retry_policy=PAUSE)
    def order(ctx: DurableContext) -> None:
        ctx.run("charge", action, RunOptions())

    with pytest.raises(ConnectionError, match="away"):
        order()
    assert action.executions == 1


@pytest.mark.parametrize(
    ("waits", "event"),
    [
        (Wait.PAUSE, "task-paused"),
        (Wait.STALL, "task-stalled"),
        (Wait.SLEEP, "task-suspended"),
        (Wait.RETRY, "task-suspended"),
    ],
)
def test_monitors_are_told_again_for_what_a_run_waits(waits: str, event: str) -> None:
    unused: Any = None
    request, task = SimpleNamespace(id="task-1"), SimpleNamespace(track_started=False)

    told = reject_delivery(Busy(60.0, "it is not due yet", waits), task, request, unused, fresh=True)

    assert isinstance(told, Announcement)
    assert told.event == event
