"""Sleeps of tasks that run in this process, with their journals in Redis."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import redis
from celery import Celery

from celery_durable import (
    InvalidStepError,
    JournalMismatchError,
    TerminalError,
)
from celery_durable.app.store import Store
from tests.integration.runs import HINT, entry, execute, new_id, state, task_of

HOUR = 3600


def elapse(client: redis.Redis, store: Store, task_id: str) -> None:
    """Let the time that a suspended run waits for be over."""
    keys = store.keys(task_id)
    for field, text in client.hgetall(keys.run).items():
        if '"until"' in text:
            client.hset(keys.run, field, json.dumps({**json.loads(text), "until": 1}))
    client.hset(keys.run, "due", 1)
    client.zadd(keys.due, {task_id: 1}, xx=True)


def naps(acts: list[str], duration: Any = HOUR) -> Callable[[Any], list[Any]]:
    """Make a body that sleeps between two steps."""

    def body(self: Any) -> list[Any]:
        self.ctx.run("before", acts.append, "before")
        self.ctx.sleep(duration, "pause")
        self.ctx.run("after", acts.append, "after")
        return [self.ctx.attempt, self.request.retries]

    return body


# -- asleep ------------------------------------------------------------------------------------------------------------


def test_the_log_says_at_which_sleep_a_run_is_suspended_and_until_when(
    app: Celery, acts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Celery itself says of such an attempt that it was ignored."""
    caplog.set_level(logging.INFO, "celery_durable")
    task, task_id = task_of(app, naps(acts)), new_id()

    execute(task, task_id=task_id)

    until = app.AsyncResult(task_id).info["until"]
    assert [line.getMessage() for line in caplog.records if "sleeps" in line.getMessage()] == [
        f"task {task_id}: sleeps at 'pause' until {until}"
    ]


def test_a_sleeping_run_has_a_due_time_and_no_lease(
    app: Celery, store: Store, redis_client: redis.Redis, acts: list[str]
) -> None:
    task, task_id, began = task_of(app, naps(acts)), new_id(), time.time()

    assert execute(task, task_id=task_id) == "IGNORED"

    run = state(redis_client, store, task_id)
    until = entry(redis_client, store, task_id, 2)["until"]
    assert began + HOUR - 1 < until / 1000 < time.time() + HOUR + 1
    assert until <= int(run["fields"]["due"]) <= until + 1000
    assert run["due"] == int(run["fields"]["due"])
    assert (run["fields"]["status"], run["lease"], run["expires"]) == ("suspended", None, False)
    assert json.loads(run["fields"]["resume"]) == {"retries": 0, "header": {}}
    shown = app.AsyncResult(task_id)
    assert shown.state == "SUSPENDED"
    assert datetime.fromisoformat(shown.info["until"]).timestamp() == pytest.approx(until / 1000)


def test_a_run_that_ignores_its_result_sleeps_unseen(app: Celery, acts: list[str]) -> None:
    task, task_id = task_of(app, naps(acts), ignore_result=True), new_id()
    assert execute(task, task_id=task_id) == "IGNORED"
    assert app.AsyncResult(task_id).state == "PENDING"


def test_a_run_goes_on_when_its_time_has_come_and_not_before(
    app: Celery, store: Store, redis_client: redis.Redis, acts: list[str]
) -> None:
    task, task_id = task_of(app, naps(acts)), new_id()
    execute(task, task_id=task_id)
    recorded = entry(redis_client, store, task_id, 2)
    keys, due = store.keys(task_id), redis_client.hget(store.keys(task_id).run, "due")

    redis_client.zadd(keys.due, {task_id: float(due) + HOUR})
    assert execute(task, task_id=task_id, **HINT) == "IGNORED"

    assert acts == ["before"]
    assert entry(redis_client, store, task_id, 2) == recorded
    # The message that was to come then may have been this one.
    assert redis_client.zscore(keys.due, task_id) == float(due)
    elapse(redis_client, store, task_id)
    assert execute(task, task_id=task_id, retries=3, **HINT) == "SUCCESS"
    assert acts == ["before", "after"]
    run = state(redis_client, store, task_id)
    assert (run["fields"]["status"], run["fields"]["attempt"], run["due"]) == ("succeeded", "2", None)


def test_an_attempt_that_is_too_early_by_its_own_clock_sleeps_on(
    app: Celery, store: Store, redis_client: redis.Redis, acts: list[str]
) -> None:
    """The due time of a run was rewritten, that of its sleep was not."""
    task, task_id = task_of(app, naps(acts)), new_id()
    execute(task, task_id=task_id)
    recorded, keys = entry(redis_client, store, task_id, 2), store.keys(task_id)
    redis_client.hset(keys.run, "due", 1)

    assert execute(task, task_id=task_id, **HINT) == "IGNORED"

    assert acts == ["before"]
    assert entry(redis_client, store, task_id, 2) == recorded
    run = state(redis_client, store, task_id)
    assert run["fields"]["attempt"] == "2"
    assert recorded["until"] <= run["due"] <= recorded["until"] + 1000


@pytest.mark.parametrize("duration", [-1, float("nan"), "60", True, 10**400, 4000 * 86_400], ids=lambda d: repr(d)[:30])
def test_a_bad_duration_ends_the_run_and_keeps_its_journal(
    app: Celery, store: Store, redis_client: redis.Redis, acts: list[str], duration: Any
) -> None:
    task, task_id = task_of(app, naps(acts, duration)), new_id()

    assert execute(task, task_id=task_id) == "FAILURE"

    result = app.AsyncResult(task_id).result
    assert type(result) is InvalidStepError
    assert f"task {task_id}: the duration of ctx.sleep must be" in str(result)
    run = state(redis_client, store, task_id)
    assert (run["fields"]["status"], run["expires"], run["due"]) == ("failed", True, None)
    assert {field for field in run["fields"] if field.startswith("step:")} == {"step:1"}


def test_another_operation_than_the_recorded_sleep_ends_the_run(
    app: Celery, store: Store, redis_client: redis.Redis, acts: list[str]
) -> None:
    verbs: list[Callable[[Any], Any]] = [lambda ctx: ctx.sleep(HOUR, "x"), lambda ctx: ctx.run("x", acts.append, "x")]

    def body(self: Any) -> None:
        verbs.pop(0)(self.ctx)

    task, task_id = task_of(app, body), new_id()
    execute(task, task_id=task_id)
    recorded = entry(redis_client, store, task_id, 1)
    elapse(redis_client, store, task_id)

    assert execute(task, task_id=task_id, **HINT) == "FAILURE"

    error = app.AsyncResult(task_id).result
    assert type(error) is JournalMismatchError
    assert "recorded: sleep 'x'" in str(error)
    assert "asked for: step 'x'" in str(error)
    assert acts == []
    assert entry(redis_client, store, task_id, 1) == {**recorded, "until": 1}


# -- side by side ------------------------------------------------------------------------------------------------------


async def refused_beside_a_sleep(self: Any) -> None:
    def refuse() -> None:
        raise TerminalError("refused")

    await asyncio.gather(self.ctx.sleep(HOUR), self.ctx.run("refuse", refuse))


async def returns_before_its_sleep(self: Any) -> str:
    nap = asyncio.ensure_future(self.ctx.sleep(HOUR))
    await self.ctx.run("step", lambda: 1)
    nap.add_done_callback(lambda nap: nap.cancelled() or nap.exception())
    return "done"


@pytest.mark.parametrize(
    ("body", "ending"), [(refused_beside_a_sleep, "FAILURE"), (returns_before_its_sleep, "SUCCESS")]
)
def test_a_sleep_does_not_outlive_the_body(app: Celery, body: Any, ending: str) -> None:
    assert execute(task_of(app, body), task_id=new_id()) == ending


def test_a_message_that_begins_nothing_leaves_the_state_of_a_sleeper(app: Celery, acts: list[str]) -> None:
    """Celery stores STARTED for it."""
    app.conf.task_track_started = True
    task, task_id = task_of(app, naps(acts)), new_id()
    execute(task, task_id=task_id)
    until = app.AsyncResult(task_id).info["until"]

    assert execute(task, task_id=task_id, **HINT) == "IGNORED"

    shown = app.AsyncResult(task_id)
    assert shown.state == "SUSPENDED"
    between = datetime.fromisoformat(shown.info["until"]) - datetime.fromisoformat(until)
    assert abs(between.total_seconds()) < 1
    assert acts == ["before"]
