"""The Retry of a failed run: told from copies of its message, and what runs again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from celery_durable import TerminalError
from celery_durable.app.store import store_of
from celery_durable.delivery.message import HEADER
from celery_durable.task.retry_task import NAME
from tests.integration.runs import app_at, deliver, new_id, sent, task_of
from tests.servers import RedisServer

UNMARKED = {"exchange": "", "routing_key": "celery"}
"""As of a broker that does not say of a copy that it is one."""


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with app_at(redis_url) as app:
        sent(app)  # the broker is one for all apps of this process
        yield app
        sent(app)


def fails(self: Any) -> None:
    def charge() -> None:
        self.ran["charge"] += 1
        raise TerminalError("declined")

    self.ctx.run("charge", charge)


def made(app: Celery, body: Any) -> Any:
    task = task_of(app, body)
    task.ran, task.mended = Counter(), False
    return task


# -- a copy, or a Retry ------------------------------------------------------------------------------------------------


def test_an_unmarked_copy_of_the_message_that_began_the_run_reopens_nothing(app: Celery) -> None:
    task = made(app, fails)
    task.delay()
    [message] = sent(app)

    assert deliver(task, message, delivery_info=UNMARKED) == "FAILURE"
    assert deliver(task, message, delivery_info=UNMARKED) == "IGNORED"
    assert task.ran["charge"] == 1


def test_an_unmarked_copy_of_a_retry_reopens_the_run_once(app: Celery) -> None:
    task, task_id = made(app, fails), new_id()
    task.apply_async(task_id=task_id)
    [first] = sent(app)
    assert deliver(task, first, delivery_info=UNMARKED) == "FAILURE"

    task.apply_async(task_id=task_id)
    [again] = sent(app)
    assert [deliver(task, again, delivery_info=UNMARKED) for _ in range(2)] == ["FAILURE", "IGNORED"]
    assert deliver(task, first, delivery_info=UNMARKED) == "IGNORED"
    assert task.ran["charge"] == 2


def test_a_message_that_was_brought_back_from_where_rejected_ones_are_kept_is_a_retry(app: Celery) -> None:
    task = made(app, fails)
    task.delay()
    [message] = sent(app)
    assert deliver(task, message) == "FAILURE"

    message.headers["x-death"] = [{"reason": "rejected", "queue": "celery"}]
    assert deliver(task, message) == "FAILURE"
    message.headers["x-death"] = [{"reason": "expired", "queue": "celery_delayed_1"}]
    assert deliver(task, message) == "IGNORED"
    assert task.ran["charge"] == 2


# -- a Retry that meets an outage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("knows", [True, False], ids=["the clock of Redis is known", "is not known"])
@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_retry_that_found_no_redis_reopens_the_run_whatever_the_clocks_say(
    monkeypatch: pytest.MonkeyPatch, skew: float, knows: bool
) -> None:
    with RedisServer(appendonly=True) as server, app_at(server.url(), durable_lease=1) as app:
        sent(app)
        task, task_id = made(app, fails), new_id()
        task.apply_async(task_id=task_id)
        assert deliver(task, sent(app)[0]) == "FAILURE"
        if not knows:
            store_of(app).pool.ahead = None
        task.apply_async(task_id=task_id)
        [again] = sent(app)
        server.stop()
        assert deliver(task, again) == "RETRY"
        server.start()
        [repeated] = sent(app)
        skewed(monkeypatch, skew)

        assert deliver(task, repeated) == "FAILURE"

        assert "asked" in repeated.headers[HEADER]
        assert task.ran["charge"] == 2


def test_a_message_from_before_the_failure_that_found_no_redis_reopens_nothing(
    app: Celery, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one had begun the run, and it failed while this one waited for Redis."""
    task, task_id = made(app, fails), new_id()
    for _ in range(2):
        task.apply_async(task_id=task_id)
    first, second = sent(app)
    seconds, micros = redis_client.time()
    assert deliver(task, first) == "FAILURE"
    skewed(monkeypatch, -3600)

    second.headers[HEADER] = {"retries": 1, "asked": seconds + micros / 1e6}
    second.headers["retries"] = 1
    assert deliver(task, second) == "IGNORED"
    assert task.ran["charge"] == 1


def skewed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    import time

    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)


# -- what runs again ---------------------------------------------------------------------------------------------------


def retry(app: Celery, task: Any, task_id: str) -> str:
    """Retry a run; return the note."""
    note = app.tasks[NAME].apply((task_id,)).get()["note"]
    [message] = sent(app)
    deliver(task, message)
    return str(note)


def doing(self: Any, name: str, *, fails: bool = True) -> Any:
    async def action() -> str:
        self.ran[name] += 1
        # Whoever is called first ends last, so that its failure is found first and recorded last.
        await asyncio.sleep(0.03 if name == "a" else 0)
        if fails and not self.mended:
            raise TerminalError(name)
        return name

    return self.ctx.run(name, action)


async def in_the_body(self: Any) -> None:
    await asyncio.gather(doing(self, "a"), doing(self, "b"), doing(self, "c", fails=False), return_exceptions=False)


async def in_branches(self: Any) -> None:
    async def branch(name: str) -> Any:
        await doing(self, f"before {name}", fails=False)
        return await doing(self, name)

    results = await asyncio.gather(branch("a"), branch("b"), branch("c"), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def compensating(self: Any) -> None:
    try:
        await asyncio.gather(doing(self, "a"), doing(self, "b"))
    except TerminalError:
        await doing(self, "refund", fails=False)
        raise


@pytest.mark.parametrize("body", [in_the_body, in_branches])
def test_a_retry_runs_all_again_that_failed_side_by_side(app: Celery, redis_client: redis.Redis, body: Any) -> None:
    task, task_id = made(app, body), new_id()
    task.apply_async(task_id=task_id)
    assert deliver(task, sent(app)[0]) == "FAILURE"
    once, task.mended = Counter(task.ran), True

    assert retry(app, task, task_id) == "finished steps are replayed, the rest runs again"

    assert redis_client.hget(store_of(app).keys(task_id).run, "status") == "succeeded"
    again = {name for name, count in (task.ran - once).items() if count}
    assert again == ({"a", "b"} if body is in_the_body else {"a", "b", "c"})


def test_a_retry_replays_all_failures_that_were_compensated(app: Celery, redis_client: redis.Redis) -> None:
    task, task_id = made(app, compensating), new_id()
    task.apply_async(task_id=task_id)
    assert deliver(task, sent(app)[0]) == "FAILURE"
    once, task.mended = Counter(task.ran), True

    assert "the failure of step 'a' is replayed" in retry(app, task, task_id)

    assert redis_client.hget(store_of(app).keys(task_id).run, "status") == "failed"
    assert task.ran == once
