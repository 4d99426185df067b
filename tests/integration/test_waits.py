"""Sleeps and cancellations of tasks that run in this process, with their journals in Redis."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
import redis
from celery import Celery, _state

from celery_durable import (
    InvalidStepError,
    JournalMismatchError,
    RunNotCancellableError,
    RunOptions,
    TaskCancelled,
    TerminalError,
    cancel,
)
from celery_durable.app.store import Store, store_of
from celery_durable.journal.port import Busy
from tests.integration.runs import app_at, delivery, execute, lapse, new_id, opened, state, task_of

HOUR = 3600


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with app_at(redis_url) as app:
        yield app


@pytest.fixture
def store(app: Celery) -> Store:
    return store_of(app)


@pytest.fixture
def acts() -> list[str]:
    """What steps have done."""
    return []


def elapse(client: redis.Redis, store: Store, task_id: str) -> None:
    """Let the time that a suspended run waits for be over."""
    keys = store.keys(task_id)
    for field, text in client.hgetall(keys.run).items():
        if '"until"' in text:
            client.hset(keys.run, field, json.dumps({**json.loads(text), "until": 1}))
    client.hset(keys.run, "due", 1)
    client.zadd(keys.due, {task_id: 1}, xx=True)


def entry(client: redis.Redis, store: Store, task_id: str, position: int) -> Any:
    return json.loads(client.hget(store.keys(task_id).run, f"step:{position}"))


HINT = {"headers": {"celery_durable": {"hint": 1, "retries": 0}}}
"""What a worker sends when the time of a run has come."""


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


# -- cancelled ---------------------------------------------------------------------------------------------------------


FAR = RunOptions(initial_retry_interval=HOUR, max_retry_interval=HOUR)


def fail_once(acts: list[str]) -> None:
    if "flaky" not in acts:
        acts.append("flaky")
        raise ConnectionError("away")


def compensates(acts: list[str]) -> Callable[[Any], str]:
    def body(self: Any) -> str:
        self.ctx.run("reserve", acts.append, "reserve")
        try:
            self.ctx.sleep(HOUR, "pause")
        except TaskCancelled as error:
            acts.append(f"told: {error}")
            self.ctx.run("release", acts.append, "release")
            self.ctx.run("flaky", fail_once, FAR, acts)
            raise
        return "done"

    return body


def test_a_cancelled_run_is_told_again_at_the_same_place_until_it_has_ended(
    app: Celery, store: Store, redis_client: redis.Redis, acts: list[str]
) -> None:
    task, task_id = task_of(app, compensates(acts)), new_id()
    execute(task, task_id=task_id)
    until = entry(redis_client, store, task_id, 2)["until"]

    cancel(task_id, app=app)

    due = redis_client.zscore(store.keys(task_id).due, task_id)
    assert due is not None
    assert abs(due / 1000 - time.time()) < 5
    assert execute(task, task_id=task_id, **HINT) == "RETRY"
    told = "told: the run was cancelled before 'pause'"
    assert acts == ["reserve", told, "release", "flaky"]
    cancelled = entry(redis_client, store, task_id, 2)
    assert (cancelled["name"], cancelled["state"], cancelled["until"]) == ("pause", "cancelled", until)
    assert redis_client.hget(store.keys(task_id).run, "cancel") == "raised"
    # To ask again is to ask in vain: the run waits for its retry, and is told nothing new.
    cancel(task_id, app=app)
    assert execute(task, task_id=task_id, **HINT) == "IGNORED"
    redis_client.hset(store.keys(task_id).run, "due", 1)
    assert execute(task, task_id=task_id, **HINT) == "IGNORED"
    assert acts == ["reserve", told, "release", "flaky", told]
    assert app.AsyncResult(task_id).state == "REVOKED"
    result = app.AsyncResult(task_id).result
    assert (type(result), result.status_code) == (TaskCancelled, 409)
    run = state(redis_client, store, task_id)
    assert (run["fields"]["status"], run["expires"], run["lease"], run["due"]) == ("revoked", True, None, None)


def test_a_cancelled_attempt_that_dies_is_told_again_by_the_next(
    app: Celery, store: Store, redis_client: redis.Redis
) -> None:
    task_id = new_id()
    opened(store, task_id)
    lapse(redis_client, store, task_id)
    cancel(task_id, app=app)

    for _ in range(2):
        journal = opened(store, task_id)
        assert journal.cancel_requested
        lapse(redis_client, store, task_id)

    journal.close()


@pytest.mark.parametrize("write", ["send", "renewal"])
def test_a_running_attempt_learns_of_its_cancellation_by_its_next_word(app: Celery, store: Store, write: str) -> None:
    journal = opened(store, task_id := new_id())
    cancel(task_id, app=app)
    assert not journal.cancel_requested

    if write == "send":
        journal.send({"uuid:1": "x"})
        journal.flush()
    else:
        journal.prove_lease()

    assert journal.cancel_requested
    journal.close()


def test_a_run_that_is_suspended_after_it_was_cancelled_goes_on_at_once(
    app: Celery, store: Store, redis_client: redis.Redis
) -> None:
    journal = opened(store, task_id := new_id())
    cancel(task_id, app=app)
    journal.suspend(HOUR, {}, slack=30)
    journal.close()
    assert redis_client.zscore(store.keys(task_id).due, task_id) / 1000 <= time.time() + 1
    opened(store, task_id).close()


def test_a_run_that_was_told_waits_as_any_other(app: Celery, store: Store) -> None:
    journal = opened(store, task_id := new_id())
    cancel(task_id, app=app)
    journal.send({"cancel": "raised"})
    journal.suspend(HOUR, {})
    journal.close()
    cancel(task_id, app=app)
    assert isinstance(store.journal(task_id).open(delivery(task_id)), Busy)


def test_a_run_without_a_journal_cannot_be_cancelled(app: Celery) -> None:
    with pytest.raises(RunNotCancellableError) as raised:
        cancel("unknown", app=app)
    for part in ("task unknown has no journal", "it has not begun", "app.control.revoke"):
        assert part in str(raised.value)


@pytest.mark.parametrize("status", ["succeeded", "failed", "revoked", "ignored"])
def test_a_run_that_has_ended_cannot_be_cancelled(
    app: Celery, store: Store, redis_client: redis.Redis, status: str
) -> None:
    journal = opened(store, task_id := new_id())
    journal.finish(status, {"outcome": "{}"})
    before = state(redis_client, store, task_id)

    with pytest.raises(RunNotCancellableError, match=rf"task {task_id} has ended already, at 2\S+: {status}"):
        cancel(task_id, app=app)

    assert state(redis_client, store, task_id) == before
    journal.deliver(HOUR)
    journal.close()


@pytest.mark.parametrize("task_id", ["", None, 7, b"task"], ids=repr)
def test_what_is_no_task_id_is_refused(app: Celery, task_id: Any) -> None:
    with pytest.raises((RunNotCancellableError, TypeError)):
        cancel(task_id, app=app)


def test_the_current_app_is_the_default(
    app: Celery, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(store, task_id := new_id()).close()
    monkeypatch.setattr(_state._tls, "current_app", app)  # noqa: SLF001  what app.set_current() sets for ever
    cancel(task_id)
    assert redis_client.hget(store.keys(task_id).run, "cancel") == "requested"
