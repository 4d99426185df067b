"""The retry that a task asks for itself, by ``self.retry()``, passes through."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from unittest import mock

import pytest
from celery import Celery
from celery.exceptions import Ignore

from celery_durable import (
    DurableContext,
    DurableTask,
    RunOptions,
    durable_task,
)
from tests.unit.conftest import Action
from tests.unit.tasks import SLOW, applied

pytestmark = pytest.mark.usefixtures("app")


def test_a_users_own_retry_passes_through() -> None:
    step, bodies = Action(1), []

    def body(self: Any, ctx: DurableContext) -> str:
        ctx.run("step", step)
        bodies.append(ctx.attempt)
        if len(bodies) == 1:
            raise self.retry(countdown=3600)
        return "done"

    assert applied(body, bind=True).get() == "done"
    assert (bodies, step.executions) == ([1, 2], 1)


def test_step_retries_do_not_count_for_a_users_own_retry(app: Celery) -> None:
    flaky, bodies = Action(OSError(), OSError(), 1), []

    @app.task(base=DurableTask, bind=True, name="eager.own_retry")
    def fetch(self: Any) -> None:
        self.ctx.run("flaky", flaky, SLOW)
        bodies.append(self.ctx.attempt)
        raise self.retry(exc=KeyError("again"), max_retries=1, countdown=0)

    with suppress(KeyError):
        fetch.apply()
    assert (bodies, flaky.executions) == ([3, 4], 3)


def test_a_users_own_retry_from_within_a_step_is_no_failure_of_the_step(caplog: pytest.LogCaptureFixture) -> None:
    executions = []

    def act(task: Any) -> str:
        executions.append(task.request.retries)
        if len(executions) < 3:
            raise task.retry(countdown=60, max_retries=5)
        return "done"

    def body(self: Any, ctx: DurableContext) -> str:
        return ctx.run("step", act, RunOptions(max_attempts=1000), self)

    assert applied(body, bind=True).result == "done"
    assert executions == [0, 1, 2]
    assert "failed (execution" not in caplog.text


def test_a_retry_passes_on_what_was_said_and_no_more() -> None:
    """The ``retry`` of another base class may know fewer parameters, and tests of users replace Celery's."""
    app = Celery("all", task_cls=DurableTask, set_as_current=False)

    @app.task(bind=True)
    def plain(self: Any) -> None:
        self.retry(exc=OSError("down"), countdown=3)

    with mock.patch("celery.app.task.Task.retry", side_effect=Ignore) as retry:
        plain.apply()
    retry.assert_called_once_with(exc=mock.ANY, countdown=3)
    app.close()


@pytest.mark.parametrize("base", [False, True], ids=["decorator", "base class"])
def test_a_retry_of_its_own_stands_though_the_body_swallows_it(app: Celery, base: bool) -> None:
    bodies = Action(None)

    def body(self: Any, ctx: Any = None) -> str:
        bodies()
        number = self.ctx.run("step", Action(1))
        if bodies.executions == 1:
            with suppress(BaseException):
                self.retry(countdown=0)
            return "swallowed"
        return f"went on after step {number}"

    task = app.task(base=DurableTask, bind=True)(body) if base else durable_task(bind=True)(body)
    assert task.apply().result == "went on after step 1"
    assert bodies.executions == 2
