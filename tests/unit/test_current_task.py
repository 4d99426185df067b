"""Celery's current task is the one whose body or step asks, on the event loop too."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
from celery import current_task, signals
from celery._state import get_current_worker_task

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    durable_task,
)
from celery_durable.drivers.loop import wait_for
from tests.receivers import receiver

pytestmark = pytest.mark.usefixtures("app")


def origins(publishing: mock.Mock) -> list[tuple[str, str]]:
    """Parent and root of each message that was published."""
    headers = [call.kwargs["headers"] for call in publishing.call_args_list]
    return [(each["parent_id"], each["root_id"]) for each in headers]


def test_celerys_current_task_is_that_of_each_async_body_and_of_its_steps() -> None:
    @durable_task(name="eager.child")
    def child(ctx: DurableContext) -> None: ...

    def known() -> list[str]:
        child.delay()
        return [current_task.name, current_task.request.id]

    async def known_async() -> list[str]:
        return known()

    @durable_task(name="eager.parent")
    async def parent(ctx: AsyncDurableContext) -> list[Any]:
        return [known(), *await asyncio.gather(ctx.run("sync", known), ctx.run("async", known_async))]

    with receiver(signals.before_task_publish) as publishing:
        results = [parent.apply() for _ in range(2)]

    assert [result.result for result in results] == [[["eager.parent", result.id]] * 3 for result in results]
    ids = [result.id for result in results for _ in range(3)]
    assert origins(publishing) == [(one, one) for one in ids]


def test_what_a_task_that_is_called_as_a_function_sends_is_sent_by_the_workers_task() -> None:
    @durable_task(name="eager.child")
    def child(ctx: DurableContext) -> None: ...

    @durable_task(name="eager.called")
    async def called(ctx: AsyncDurableContext) -> str:
        child.delay()
        return str(current_task.name)

    @durable_task(name="eager.caller")
    async def caller(ctx: AsyncDurableContext) -> Any:
        return await called()  # type: ignore[misc]

    with receiver(signals.before_task_publish) as publishing:
        result = caller.apply()

    assert result.result == "eager.called"
    assert origins(publishing) == [(result.id, result.id)]


def test_outside_of_a_task_there_is_none_on_the_event_loop() -> None:
    async def known() -> tuple[bool, Any]:
        return bool(current_task), get_current_worker_task()

    assert wait_for(known()) == (False, None)


FAST_LOCALS = """
from celery import Celery, current_task
from celery._state import _task_stack

app = Celery("fast", task_cls="celery_durable:DurableTask")

@app.task(bind=True, name="fast.named")
async def named(self):
    return current_task.name

print(named.apply().result, _task_stack.top)
"""


def test_celerys_faster_thread_locals_are_those_of_the_event_loop() -> None:
    """They bind what they give out to the thread that asks."""
    env = {**os.environ, "USE_FAST_LOCALS": "1"}
    ended = subprocess.run([sys.executable, "-c", FAST_LOCALS], check=False, capture_output=True, text=True, env=env)

    assert (ended.stdout, ended.stderr, ended.returncode) == ("fast.named None\n", "", 0)
