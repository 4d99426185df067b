"""``Ignore`` and ``Reject`` end a run, wherever they are raised."""

from __future__ import annotations

import asyncio

import pytest
from celery import states
from celery.exceptions import Ignore, Reject

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    durable_task,
)
from tests.unit.conftest import Action
from tests.unit.tasks import SLOW, applied, body_of, needs_task_groups

pytestmark = pytest.mark.usefixtures("app")


def test_ignore_and_reject_end_the_run() -> None:
    for error in (Ignore(), Reject("no", requeue=False)):
        action = Action(error)
        assert durable_task(name=f"eager.{type(error).__name__}")(body_of(action)).apply().state in (
            states.IGNORED,
            states.REJECTED,
        )
        assert action.executions == 1


@pytest.mark.parametrize("error", [Ignore("not needed"), Reject("no", requeue=False)], ids=repr)
def test_ignore_and_reject_end_the_run_from_within_a_step_too(error: Exception) -> None:
    action = Action(error)

    def body(ctx: DurableContext) -> None:
        ctx.run("step", action, SLOW)

    result = applied(body)

    assert result.state == (states.IGNORED if isinstance(error, Ignore) else states.REJECTED)
    assert action.executions == 1


@needs_task_groups
@pytest.mark.parametrize("error", [Ignore("not needed"), Reject("no", requeue=False)], ids=repr)
def test_ignore_and_reject_end_the_run_from_within_a_task_group(error: Exception) -> None:
    action = Action(error)

    async def say() -> None:
        action()

    async def body(ctx: AsyncDurableContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(say())

    assert applied(body).state == (states.IGNORED if isinstance(error, Ignore) else states.REJECTED)
    assert action.executions == 1
