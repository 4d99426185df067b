"""What is said of runs whose journals are gone, though they had not ended."""

from __future__ import annotations

import logging
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from celery import Celery

from celery_durable import JournalUnreadableError
from celery_durable.app.store import store_of
from celery_durable.delivery.message import HEADER
from celery_durable.worker.recovery import Recovery, RecoveryThread
from tests.integration.runs import app_at, execute, lapse, new_id, opened, task_of
from tests.servers import RedisServer


def sleeps(self: Any) -> None:
    self.ctx.sleep(60)


def evicted(app: Celery, client: redis.Redis, task_id: str) -> None:
    """Let the wait of a run be over, and its journal be gone, as an eviction has it."""
    keys = store_of(app).keys(task_id)
    client.delete(keys.run)
    client.zadd(keys.due, {task_id: 0}, xx=True)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.getMessage() for line in caplog.records if line.levelno == logging.ERROR]


def test_a_sleeping_run_whose_journal_was_evicted_fails_by_name(
    app: Celery, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    task, task_id = task_of(app, sleeps), new_id()
    execute(task, task_id=task_id)
    assert task.AsyncResult(task_id).state == "SUSPENDED"
    evicted(app, redis_client, task_id)

    recovery = Recovery(app)
    assert [recovery.recover(), recovery.recover()] == [(0, 0), (0, 0)]

    with pytest.raises(JournalUnreadableError, match=f"task {task_id}: its journal is gone"):
        task.AsyncResult(task_id).get(timeout=1)
    [line] = said(caplog)
    assert f"task {task_id}: its journal is gone" in line
    assert "Its state was SUSPENDED, and is FAILURE now" in line


def test_a_run_that_had_begun_may_go_on_by_its_message(
    app: Celery, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(app)
    opened(store, task_id := new_id())
    app.backend.mark_as_started(task_id)
    redis_client.delete(store.keys(task_id).run)
    lapse(redis_client, store, task_id)

    assert Recovery(app).recover() == (0, 0)

    [line] = said(caplog)
    assert "Its state was STARTED. If the broker still has a message of this run, the run begins again" in line
    assert app.AsyncResult(task_id).state == "STARTED"


def test_a_result_backend_that_is_away_keeps_nothing_from_being_said(
    app: Celery, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, task_id = task_of(app, sleeps), new_id()
    execute(task, task_id=task_id)
    evicted(app, redis_client, task_id)
    monkeypatch.setattr(app.backend, "get_task_meta", Mock(side_effect=ConnectionError("away")))

    assert Recovery(app).recover() == (0, 0)

    [line] = said(caplog)
    assert "Its state was not known (ConnectionError('away'))" in line


def test_a_run_is_missed_too_whose_journal_is_evicted_when_its_message_is_on_its_way(
    app: Celery, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    task, task_id = task_of(app, sleeps), new_id()
    execute(task, task_id=task_id)
    evicted(app, redis_client, task_id)

    assert execute(task, task_id=task_id, headers={HEADER: {"hint": 1}}) == "IGNORED"

    assert task.AsyncResult(task_id).state == "FAILURE"
    [line] = said(caplog)
    assert "Its state was SUSPENDED, and is FAILURE now" in line


def test_a_run_that_was_done_and_whose_outcome_was_not_delivered_keeps_its_state(
    app: Celery, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(app)
    opened(store, task_id := new_id()).finish("succeeded", {"outcome": "{}"})
    app.backend.mark_as_done(task_id, 42)
    redis_client.delete(store.keys(task_id).run)
    lapse(redis_client, store, task_id)

    assert Recovery(app).recover() == (0, 0)

    assert said(caplog) == []
    assert f"task {task_id}: its journal is gone, and its state is SUCCESS" in caplog.text
    assert app.AsyncResult(task_id).get(timeout=1) == 42


@pytest.mark.parametrize("retention", [0, 60])
def test_nothing_is_said_of_a_run_that_has_ended(
    app: Celery, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture, retention: float
) -> None:
    journal = opened(store_of(app), task_id := new_id())
    journal.finish("failed", {"outcome": "{}"})
    journal.deliver(retention)
    journal.flush()
    redis_client.delete(store_of(app).keys(task_id).run)

    Recovery(app).recover()

    assert said(caplog) == []


def test_an_outage_is_logged_when_it_begins_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """A worker looks every second: it does not say so each time."""
    caplog.set_level(logging.INFO, "celery_durable")
    with RedisServer() as server, app_at(server.url()) as app:
        task_of(app, sleeps)
        thread = RecoveryThread(app, Mock())
        server.kill()
        for _ in range(3):
            thread.look_once()
        server.start()
        for _ in range(2):
            thread.look_once()

    [lost, found] = [line.getMessage() for line in caplog.records if "look" in line.getMessage()]
    assert lost.startswith("cannot look for runs to recover: Redis at ")
    assert "tried again every second" in lost
    assert found == "looks for runs to recover again"
