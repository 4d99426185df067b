"""The Retry of a failed run: told from copies of its message, and what runs again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import pytest
import redis
from celery import Celery

from celery_durable import RunNotRetryableError, TerminalError
from celery_durable.app.store import store_of
from celery_durable.delivery.message import HEADER
from celery_durable.journal.entries import done_entry, open_entry, started_entry
from tests.integration.runs import app_at, deliver, execute, new_id, opened, sent, task_of
from tests.servers import RedisServer

pytestmark = pytest.mark.usefixtures("empty_broker")

NAME = "celery_durable.retry"

UNMARKED = {"exchange": "", "routing_key": "celery"}
"""As of a broker that does not say of a copy that it is one."""


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


def test_two_requests_before_the_first_one_arrives_reopen_the_run_once(app: Celery) -> None:
    task, task_id = made(app, fails), new_id()
    execute(task, task_id=task_id)
    for _ in range(2):
        app.tasks[NAME].apply((task_id,)).get()

    assert [deliver(task, message) for message in sent(app)] == ["FAILURE", "IGNORED"]
    assert task.ran["charge"] == 2

    app.tasks[NAME].apply((task_id,)).get()
    assert [deliver(task, message) for message in sent(app)] == ["FAILURE"]
    assert task.ran["charge"] == 3


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
            store_of(app).pool.clock_ahead = None
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


# -- what `celery_durable.retry` says ----------------------------------------------------------------------------------


CALL = '{"args":[],"kwargs":{},"options":{"task_id":"any"}}'


def work(self: Any) -> None:
    """Do nothing."""


def failed(name: str, at: int) -> str:
    return open_entry(name, "failed", 1, at=at, error={"metadata": {"at": 10_000}})


def done(name: str, at: int) -> str:
    return done_entry(name, 1, at, 1, {}, '{"at":10000}')


def cancelled_wait(at: int) -> str:
    return open_entry("pause", "cancelled", 0, at=at, error={"status_code": 409}, until=10_000)


def sleeping(until: int) -> str:
    return open_entry("pause", "sleeping", 0, until=until)


@pytest.mark.parametrize(
    "steps",
    [
        {"9": done("a", 1), "10": failed("b", 2)},
        {"9": failed("a", 1), "10": done("b", 2)},
        {"9": failed("a", 3), "10": failed("b", 2)},
        {"1.1": done("a", 1), "1.2": failed("b", 3), "2.1": done("c", 2)},
        {"1.1": failed("a", 1), "2.1": done("b", 2)},
        {"1.1": failed("a", 2), "2.1": failed("b", 1)},
        {"1.1": failed("a", 2), "2.1": failed("b", 2), "10.1": failed("c", 2)},
        {"1": done("a", 1), "1.1": failed("b", 2)},
        {"1": done("a", 2), "1.1": failed("b", 2)},
        {"1": failed("a", 1), "1.1": done("b", 2)},
        {"1": failed("a", 3), "1.1": done("b", 2)},
        {"1.1": failed("a", 2), "2.1": sleeping(3)},
        {"1.1": failed("a", 2), "2.1": sleeping(1)},
        {"1.1": failed("a", 2), "2.1": cancelled_wait(1)},
        {"1.1": failed("a", 2), "2.1": started_entry("b", 1, 10_000)},
        {"1": failed("a", 2), "2": started_entry("b", 1, 10_000)},
        {"1.1": open_entry("a", "failed", 1)},
    ],
    ids=" ".join,
)
def test_the_note_says_which_failures_are_replayed(
    app: Celery, redis_client: redis.Redis, steps: dict[str, str]
) -> None:
    task, store, task_id = task_of(app, work), store_of(app), new_id()
    journal = opened(store, task_id, task=task.name, call=CALL)
    journal.send({f"step:{place}": text for place, text in steps.items()})
    journal.finish("failed", {"outcome": "{}"})
    journal.deliver(60)
    journal.prove_lease()

    note = app.tasks[NAME].apply((task_id,)).get()["note"]

    opened(store, task_id, task=task.name, reopen="this")
    kept = redis_client.hgetall(store.keys(task_id).run)
    names = [text.split('"')[3] for place, text in steps.items() if '"failed"' in kept.get(f"step:{place}", "")]
    assert [name for name in "abc" if f"failure of step {name!r}" in note] == names[:1]
    assert ("restart is needed" in note) == bool(names)


@pytest.mark.parametrize("wrong", [5, None, "", ["id"]], ids=repr)
def test_an_id_that_is_no_text_is_refused(app: Celery, wrong: Any) -> None:
    with pytest.raises(RunNotRetryableError, match="the id of a task is a text, got"):
        app.tasks[NAME].apply((wrong,)).get()


def test_a_run_whose_saved_call_is_damaged_is_refused(app: Celery, redis_client: redis.Redis) -> None:
    task, task_id = made(app, fails), new_id()
    assert execute(task, task_id=task_id) == "FAILURE"
    redis_client.hset(store_of(app).keys(task_id).run, "call", "{")

    with pytest.raises(RunNotRetryableError, match=f"^task {task_id}: its saved call cannot be read by this app: JSON"):
        app.tasks[NAME](task_id)

    assert sent(app) == []


def test_a_request_that_is_refused_is_no_error_of_the_worker(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """Who asked gets the error; in the log it is one line."""
    caplog.set_level(logging.INFO)
    refused = app.tasks[NAME].apply(("unknown",))

    assert isinstance(refused.result, RunNotRetryableError)
    [line] = [line for line in caplog.records if "task unknown has no journal" in line.getMessage()]
    assert line.levelno == logging.INFO
    assert not line.exc_info


def test_a_run_that_was_refused_for_its_serializer_goes_on_once_the_app_accepts_that(
    app: Celery, redis_client: redis.Redis
) -> None:
    def keep(self: Any) -> Any:
        return self.ctx.run("keep", lambda: [1])

    task, store, task_id = task_of(app, keep, durable_serializer="pickle"), store_of(app), new_id()

    assert execute(task, task_id=task_id) == "FAILURE"
    kept = redis_client.hgetall(store.keys(task_id).run)
    assert (kept["status"], "step:1" in kept) == ("failed", False)

    app.conf.accept_content = ["json", "pickle"]
    del task.__dict__["durable_attempt_settings"]  # as in a new process
    assert app.tasks[NAME].apply((task_id,)).get()["task"] == task.name
    assert execute(task, task_id=task_id) == "SUCCESS"
