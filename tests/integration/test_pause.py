"""Runs that are paused, because no retry is left: nobody but a person lets them go on."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from celery import Celery
from celery.worker import state as worker_state

from celery_durable import (
    RetryPolicy,
    RunNotRetryableError,
    RunOptions,
    TaskCancelled,
    TerminalError,
    cancel,
    happenings,
)
from celery_durable.app.store import Store
from celery_durable.exceptions import JournalUnavailableError, RunNotWakeableError
from celery_durable.journal.entries import done_entry
from celery_durable.journal.layout import Wait
from celery_durable.operate.runs import Runs
from celery_durable.worker.recovery import Recovery
from celery_durable.worker.revocation import Revocations
from tests.integration.runs import (
    HINT,
    deliver,
    durable_task_of,
    entry,
    execute,
    ids,
    look,
    new_id,
    opened,
    sent,
    server_ms,
    state,
)

pytestmark = pytest.mark.usefixtures("empty_broker")

CENTURY_MS = 100 * 365 * 24 * 3600 * 1000


def paused_task(app: Celery, body: Any, attempts: int = 1) -> Any:
    """Make a task that is paused after so many failed attempts in a row."""
    policy = RetryPolicy(initial_retry_interval=0.01, max_attempts=attempts, on_exhausted="pause")
    return made(app, body, task_retry_policy=policy)


def made(app: Celery, body: Any, **options: Any) -> Any:
    task = durable_task_of(app, body, bind=True, **options)
    task.ran, task.broken = Counter(), {"charge"}
    return task


def order(self: Any, ctx: Any) -> str:
    """What is broken fails; a cancellation is answered by a compensation."""

    def work(name: str) -> str:
        self.ran[name] += 1
        if name in self.broken:
            raise ConnectionError(f"no route for {name}")
        return name

    ctx.run("reserve", work, "reserve")
    try:
        return ctx.run("charge", work, "charge")
    except TaskCancelled:
        ctx.run("release", work, "release")
        raise


def paused(task: Any) -> str:
    """Pause a run of this task, at its first attempt; return its id."""
    task_id = new_id()
    assert execute(task, task_id=task_id) == "IGNORED"
    assert Runs(task.app).get(task_id).state == "PAUSED"
    return task_id


def goes_on(task: Any, store: Store, task_id: str) -> Any:
    """Execute what a worker sends when it has found the run; return the state."""
    assert ids(store, task.name) == [task_id]
    return execute(task, task_id=task_id, **HINT)


# -- what it is --------------------------------------------------------------------------------------------------------


def test_a_run_without_retries_is_paused_and_says_why(
    app: Celery, store: Store, runs: Runs, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "celery_durable")
    task, task_id = paused_task(app, order, attempts=2), new_id()

    assert [execute(task, task_id=task_id), execute(task, task_id=task_id, **HINT)] == ["RETRY", "IGNORED"]

    assert task.ran == {"reserve": 1, "charge": 2}
    shown = app.AsyncResult(task_id)
    assert (shown.state, shown.info["error"]) == ("PAUSED", "ConnectionError: no route for charge")
    held = state(redis_client, store, task_id)
    fields = held["fields"]
    assert (fields["status"], fields["waits"], held["lease"], held["expires"]) == ("suspended", "pause", None, False)
    assert held["due"] == int(fields["due"]) > server_ms(redis_client) + CENTURY_MS
    run = runs.get(task_id)
    assert (run.state, run.error, run.until, run.ended) == ("PAUSED", shown.info["error"], None, None)
    assert run.waits_for == "somebody to retry it or to cancel it, as no retry is left: 'charge'"
    assert [attempt.how for attempt in run.attempts] == ["RETRY", "PAUSED"]
    assert [(listed.id, listed.error) for listed in runs.list(state="PAUSED")] == [(task_id, run.error)]
    assert runs.counts() == {"PAUSED": 1}
    [line] = [line for line in caplog.records if "paused" in line.getMessage()]
    assert line.levelno == logging.ERROR
    assert line.getMessage().startswith(f"task {task_id}: attempt 2 failed, and no retry is left: it is paused until")


def test_observers_are_told_that_it_is_paused(app: Celery) -> None:
    task, told = paused_task(app, order), Mock()
    happenings.observe(told)
    try:
        paused(task)
    finally:
        happenings.forget(told)

    [run] = [run for happening, run, _ in (call.args for call in told.call_args_list) if happening == "run_suspended"]
    assert (run.state, run.until) == ("PAUSED", None)
    assert run.waits_for == "somebody to retry it or to cancel it, as no retry is left"


def test_an_error_that_the_task_expects_is_logged_as_one(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "celery_durable")
    task = paused_task(app, order)
    task.throws = (ConnectionError,)

    paused(task)

    [line] = [line for line in caplog.records if "paused" in line.getMessage()]
    assert (line.levelno, line.exc_info) == (logging.INFO, None)


@pytest.mark.parametrize("error", [TerminalError("declined"), "own options"])
def test_what_the_policy_does_not_retry_is_a_failure(app: Celery, runs: Runs, error: Any) -> None:
    def body(self: Any, ctx: Any) -> None:
        def charge() -> None:
            raise error if isinstance(error, Exception) else ConnectionError("away")

        ctx.run("charge", charge, RunOptions(max_attempts=1) if error == "own options" else RunOptions())

    task_id = new_id()

    assert execute(paused_task(app, body), task_id=task_id) == "FAILURE"
    assert runs.get(task_id).state == "FAILURE"


# -- nothing lets it go on by itself -----------------------------------------------------------------------------------


def test_no_message_begins_an_attempt(app: Celery, store: Store, redis_client: redis.Redis) -> None:
    task = paused_task(app, order, attempts=2)
    task_id = task.apply_async().id
    [first] = sent(app)
    assert deliver(task, first) == "RETRY"
    [retry] = sent(app)
    assert deliver(task, retry) == "IGNORED"
    before = state(redis_client, store, task_id)
    task.apply_async(task_id=task_id)
    [new] = sent(app)

    marked = {"delivery_info": {"exchange": "", "routing_key": "celery", "redelivered": True}}
    for message in (first, retry, new):
        assert deliver(task, message) == "IGNORED"
        assert deliver(task, message, **marked) == "IGNORED"
    assert execute(task, task_id=task_id, **HINT) == "IGNORED"

    assert task.ran == {"reserve": 1, "charge": 2}
    assert state(redis_client, store, task_id) == before
    assert sent(app) == []


def test_no_worker_finds_it_and_no_sweep_takes_it_away(
    app: Celery, store: Store, runs: Runs, redis_client: redis.Redis
) -> None:
    task = paused_task(app, order)
    task_id = paused(task)
    before = state(redis_client, store, task_id)

    recovery = Recovery(app)
    assert [recovery.recover() for _ in range(2)] == [(0, 0), (0, 0)]
    store.index.sweep()

    assert state(redis_client, store, task_id) == before
    assert runs.counts() == {"PAUSED": 1}
    [far] = [claims.next_due for claims in look(store, task.name) if claims.next_due is not None]
    assert far * 1000 > CENTURY_MS
    assert recovery.pause <= 1


def test_nobody_can_wake_it(app: Celery, store: Store, runs: Runs, redis_client: redis.Redis) -> None:
    task_id = paused(paused_task(app, order))
    before = state(redis_client, store, task_id)

    with pytest.raises(RunNotWakeableError, match=f"^task {task_id} is paused, and waits for no time: retry it, or"):
        runs.wake(task_id)

    assert state(redis_client, store, task_id) == before


# -- Retry -------------------------------------------------------------------------------------------------------------


def test_a_retry_goes_on_with_fresh_budgets(app: Celery, store: Store, runs: Runs, redis_client: redis.Redis) -> None:
    task = paused_task(app, order)
    task_id = paused(task)

    assert runs.retry(task_id, by="ann") == "finished steps are replayed, the rest runs again"

    assert runs.get(task_id).state == "RETRY"
    assert goes_on(task, store, task_id) == "IGNORED"
    assert (task.ran, runs.get(task_id).state) == ({"reserve": 1, "charge": 2}, "PAUSED")
    assert entry(redis_client, store, task_id, 2)["attempts"] == 1
    task.broken.clear()
    runs.retry(task_id, by="bob")
    assert goes_on(task, store, task_id) == "SUCCESS"
    assert task.ran == {"reserve": 1, "charge": 3}
    run = runs.get(task_id)
    assert [attempt.how for attempt in run.attempts] == ["PAUSED", "PAUSED", "SUCCESS"]
    assert [(action.what, action.by) for action in run.actions] == [("retry", "ann"), ("retry", "bob")]
    assert state(redis_client, store, task_id)["fields"].keys().isdisjoint({"paused", "waits", "due"})
    assert runs.counts() == {"SUCCESS": 1}


def test_the_task_that_retries_does_so_once_however_often_its_message_comes(
    app: Celery, store: Store, redis_client: redis.Redis
) -> None:
    task = paused_task(app, order)
    task_id, request = paused(task), new_id()

    assert execute(app.tasks["celery_durable.retry"], task_id, task_id=request) == "SUCCESS"
    assert app.AsyncResult(request).result["note"] == "finished steps are replayed, the rest runs again"
    assert goes_on(task, store, task_id) == "IGNORED"
    assert execute(app.tasks["celery_durable.retry"], task_id, task_id=request) == "SUCCESS"

    assert ids(store, task.name) == []
    assert task.ran == {"reserve": 1, "charge": 2}
    assert sent(app) == []


def test_who_has_retried_a_paused_run_is_kept_together_with_that(
    app: Celery, store: Store, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = paused(paused_task(app, order))

    def away(*_args: Any) -> None:
        raise JournalUnavailableError("Redis is away")

    monkeypatch.setattr(store.runs, "note", away)
    runs.retry(task_id, by="ann")

    run = runs.get(task_id)
    assert [(action.what, action.by) for action in run.actions] == [("retry", "ann")]
    assert [attempt.how for attempt in run.attempts] == ["PAUSED"], "that is how it was left"


def test_the_state_of_a_pause_shows_nothing_that_is_redacted(app: Celery) -> None:
    policy = RetryPolicy(initial_retry_interval=0.01, max_attempts=1, on_exhausted="pause")
    task, task_id = made(app, order, task_retry_policy=policy, redact=lambda _task, _where, _value: "***"), new_id()

    execute(task, task_id=task_id)

    assert app.AsyncResult(task_id).info["error"] == "***"


def test_two_retries_in_a_row_are_one_and_the_second_is_refused(app: Celery, store: Store, runs: Runs) -> None:
    task = paused_task(app, order)
    task_id = paused(task)
    runs.retry(task_id)

    with pytest.raises(RunNotRetryableError, match=f"^task {task_id} has not ended in FAILURE, it is RETRY"):
        runs.retry(task_id)

    assert goes_on(task, store, task_id) == "IGNORED"
    assert task.ran["charge"] == 2


def test_a_retry_that_comes_too_late_is_refused(
    app: Celery, store: Store, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paused when its journal was read, and another retry was faster."""
    task_id = paused(paused_task(app, order))
    before = store.runs.load(task_id)
    runs.retry(task_id)

    monkeypatch.setattr(store.runs, "load", lambda _task_id: before)
    with pytest.raises(RunNotRetryableError, match=f"^task {task_id} is not paused any more: somebody has retried or"):
        runs.retry(task_id)


def test_a_retry_of_an_attempt_that_is_over_changes_nothing(app: Celery, store: Store) -> None:
    task = paused_task(app, order)
    task_id = paused(task)

    assert not store.runs.unpause(task_id, "late", "7", ("step:1",))
    assert ids(store, task.name) == []
    assert store.runs.unpause(task_id, "right", "1", ())
    assert store.runs.unpause(task_id, "right", "1", ("step:1",)), "its reply was lost, and it is sent again"
    task.broken.clear()
    assert goes_on(task, store, task_id) == "SUCCESS"
    assert task.ran["reserve"] == 1


def test_a_retry_takes_no_step_back_that_has_ended_late(
    app: Celery, store: Store, runs: Runs, redis_client: redis.Redis
) -> None:
    """Its action did not end in time, and it returns just when somebody retries the run."""
    task_id = paused(paused_task(app, order))
    late = done_entry("charge", 1, 1, 1, {}, "1")
    redis_client.hset(store.keys(task_id).run, "step:2", late)

    assert store.runs.unpause(task_id, "retry", "1", ("step:2",))

    assert redis_client.hget(store.keys(task_id).run, "step:2") == late


def test_the_budget_of_celerys_options_is_fresh_too(app: Celery, runs: Runs) -> None:
    """It counts the retries that the message says, also those of the user's own."""
    app.conf.durable_task_retry_policy = RetryPolicy(on_exhausted="pause")
    task = made(app, order, max_retries=1, default_retry_delay=0)
    task_id = task.apply_async().id

    def deliver_all() -> list[str]:
        return [deliver(task, message) for message in sent(app)]

    assert [deliver_all() for _ in range(3)] == [["RETRY"], ["IGNORED"], []]
    assert runs.get(task_id).state == "PAUSED"
    runs.retry(task_id)
    assert Recovery(app).recover() == (1, 0)
    assert [deliver_all() for _ in range(3)] == [["RETRY"], ["IGNORED"], []]

    assert task.ran == {"reserve": 1, "charge": 4}


# -- cancel, revoke ----------------------------------------------------------------------------------------------------


def test_a_cancellation_compensates_and_does_not_execute_the_step_again(
    app: Celery, store: Store, runs: Runs, redis_client: redis.Redis
) -> None:
    task = paused_task(app, order)
    task_id = paused(task)

    runs.cancel(task_id, by="ann")

    assert runs.get(task_id).state == "RETRY"
    assert goes_on(task, store, task_id) == "IGNORED"
    assert runs.get(task_id).state == "REVOKED"
    assert type(app.AsyncResult(task_id).result) is TaskCancelled
    assert task.ran == {"reserve": 1, "charge": 1, "release": 1}
    assert entry(redis_client, store, task_id, 2)["state"] == "cancelled"


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_a_compensation_that_has_no_retry_left_pauses_and_goes_on(
    app: Celery, store: Store, runs: Runs, verb: str
) -> None:
    task = paused_task(app, order)
    task.broken.add("release")
    task_id = paused(task)
    cancel(task_id, app=app)
    assert goes_on(task, store, task_id) == "IGNORED"
    assert runs.get(task_id).state == "PAUSED"
    task.broken.clear()

    getattr(runs, verb)(task_id)

    assert goes_on(task, store, task_id) == "IGNORED"
    assert runs.get(task_id).state == "REVOKED"
    assert task.ran == {"reserve": 1, "charge": 1, "release": 2}


def test_a_cancellation_that_the_last_attempt_does_not_know_of_is_not_lost(
    app: Celery, store: Store, runs: Runs
) -> None:
    """It is asked for while the step fails for the last time."""

    def body(self: Any, ctx: Any) -> None:
        def charge() -> None:
            self.ran["charge"] += 1
            cancel(ctx.task_id, app=app)
            raise ConnectionError("away")

        ctx.run("charge", charge)

    task, task_id = paused_task(app, body), new_id()
    assert execute(task, task_id=task_id) == "IGNORED"

    assert runs.get(task_id).state == "RETRY"
    assert goes_on(task, store, task_id) == "IGNORED"
    assert (runs.get(task_id).state, task.ran) == ("REVOKED", {"charge": 1})


def test_a_cancelled_run_whose_code_does_not_ask_for_it_fails(app: Celery, store: Store, runs: Runs) -> None:
    """It uses its context no more. Else it would be paused, and cancelled, for ever."""

    def body(self: Any, ctx: Any) -> None:
        self.ran["body"] += 1
        raise ConnectionError("away")

    task = paused_task(app, body)
    task_id = paused(task)

    cancel(task_id, app=app)

    assert goes_on(task, store, task_id) == "FAILURE"
    assert (runs.get(task_id).state, task.ran) == ("FAILURE", {"body": 2})


def test_a_revocation_ends_it(
    app: Celery, store: Store, runs: Runs, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = paused_task(app, order)
    task_id = paused(task)
    monkeypatch.setattr(worker_state, "revoked", {task_id})
    revocations = Revocations(app, Mock(hostname="w1"))

    for _ in range(2):
        revocations.end_revoked_runs()

    assert app.AsyncResult(task_id).state == runs.get(task_id).state == "REVOKED"
    held = state(redis_client, store, task_id)
    assert (held["lease"], held["due"], held["expires"]) == (None, None, True)
    assert task.ran == {"reserve": 1, "charge": 1}
    assert runs.counts() == {"REVOKED": 1}


# -- older versions ----------------------------------------------------------------------------------------------------


def test_a_cancellation_by_an_older_version_lets_it_go_on(
    app: Celery, store: Store, runs: Runs, redis_client: redis.Redis
) -> None:
    """It writes what it writes for any run that waits."""
    task = paused_task(app, order)
    task_id = paused(task)
    keys, now = store.keys(task_id), server_ms(redis_client)
    redis_client.hset(keys.run, mapping={"cancel": "requested", "due": now})
    redis_client.zadd(keys.due, {task_id: now})

    assert goes_on(task, store, task_id) == "IGNORED"

    assert runs.get(task_id).state == "REVOKED"
    assert task.ran == {"reserve": 1, "charge": 1, "release": 1}


def test_what_an_older_version_leaves_in_the_journal_does_not_pause_it(store: Store, redis_client: redis.Redis) -> None:
    """It begins an attempt, and does not say that the run waits for something else now."""
    task_id = new_id()
    journal = opened(store, task_id)
    journal.suspend(timedelta(hours=1).total_seconds(), {"paused": json.dumps({"error": {}})}, waits=Wait.PAUSE)
    redis_client.hset(store.keys(task_id).run, "due", int(time.time() * 1000) - 1000)

    opened(store, task_id, fresh=False)
