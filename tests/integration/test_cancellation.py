"""A run that is cancelled is told so by its journal, until it has ended."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery import Celery, _state

from celery_durable import (
    RunNotCancellableError,
    RunOptions,
    TaskCancelled,
    cancel,
)
from celery_durable.app.store import Store
from celery_durable.journal.layout import Wait
from celery_durable.journal.port import Busy, Opened
from tests.integration.runs import (
    HINT,
    delivery,
    died,
    ended,
    entry,
    execute,
    id_of,
    ids,
    lapse,
    new_id,
    opened,
    state,
    task_of,
    written,
)

HOUR = 3600


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
    for part in ("task unknown has no journal", "has not begun", "app.control.revoke"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("status", "shown"),
    [("succeeded", "SUCCESS"), ("failed", "FAILURE"), ("revoked", "REVOKED"), ("ignored", "IGNORED")],
)
def test_a_run_that_has_ended_cannot_be_cancelled(
    app: Celery, store: Store, redis_client: redis.Redis, status: str, shown: str
) -> None:
    journal = opened(store, task_id := new_id())
    journal.finish(status, {"outcome": "{}"})
    before = state(redis_client, store, task_id)

    with pytest.raises(RunNotCancellableError, match=rf"task {task_id} has ended already, at 2\S+: {shown}"):
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


# -- in the journal ----------------------------------------------------------------------------------------------------


def test_a_running_attempt_hears_of_its_cancellation_with_its_next_write(
    store: Store, redis_client: redis.Redis
) -> None:
    journal = opened(store, task_id := new_id())
    before = state(redis_client, store, task_id)

    assert store.runs.cancel(task_id) == ("running", 0)

    before["fields"]["cancel"] = "requested"
    assert state(redis_client, store, task_id) == before
    assert not journal.cancel_requested
    journal.send({"step:1": "entry"})
    journal.flush()
    assert journal.cancel_requested


def test_a_running_attempt_hears_of_its_cancellation_with_its_next_renewal(store: Store) -> None:
    journal = opened(store, task_id := new_id())
    store.runs.cancel(task_id)

    journal.prove_lease()

    assert journal.cancel_requested


def test_the_next_attempt_knows_of_a_cancellation(store: Store, redis_client: redis.Redis) -> None:
    died(redis_client, store, task_id := new_id())
    assert store.runs.cancel(task_id) == ("running", 0)

    assert opened(store, task_id).cancel_requested


def test_a_run_that_waits_wakes_up_at_once_to_be_cancelled(store: Store, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id()).suspend(60, {})
    assert ids(store) == []

    assert store.runs.cancel(task_id) == ("suspended", 0)

    assert ids(store) == [task_id]
    assert opened(store, task_id, wake_up=True).cancel_requested


def test_to_cancel_twice_sends_a_run_once(store: Store, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id()).suspend(60, {})
    store.runs.cancel(task_id)
    assert ids(store) == [task_id]
    before = state(redis_client, store, task_id)

    assert store.runs.cancel(task_id) == ("suspended", 0)

    assert state(redis_client, store, task_id) == before


def test_a_request_to_cancel_lets_a_paused_run_go_on_once(store: Store) -> None:
    """Its code compensates, and is paused again: somebody has to say once more that it goes on."""
    opened(store, task_id := new_id()).suspend(3600, {}, waits=Wait.PAUSE)
    store.runs.cancel(task_id, "ann", "request")
    assert ids(store) == [task_id]
    written(journal := opened(store, task_id, wake_up=True), {"cancel": "raised"})
    journal.suspend(3600, {}, waits=Wait.PAUSE)

    assert store.runs.cancel(task_id, "ann", "request") == ("suspended", 0)
    assert ids(store) == []
    assert store.runs.cancel(task_id, "ann", "another") == ("suspended", 0)
    assert ids(store) == [task_id]


def test_a_run_that_is_to_be_cancelled_does_not_begin_a_wait(store: Store, redis_client: redis.Redis) -> None:
    journal = opened(store, task_id := new_id())
    store.runs.cancel(task_id)

    journal.suspend(60, {}, slack=30)

    assert ids(store) == [task_id]
    assert isinstance(store.journal(task_id).open(delivery(task_id, wake_up=True)), Opened)


def test_a_run_that_was_told_waits_again(store: Store) -> None:
    journal = opened(store, task_id := new_id())
    store.runs.cancel(task_id)
    journal.send({"cancel": "raised"})
    journal.flush()
    assert store.runs.cancel(task_id) == ("running", 0), "once"

    journal.suspend(60, {})

    assert ids(store) == []
    assert isinstance(store.journal(task_id).open(delivery(task_id)), Busy)


@pytest.mark.parametrize("delivered", [True, False])
def test_a_run_that_has_ended_is_not_cancelled(store: Store, redis_client: redis.Redis, delivered: bool) -> None:
    task_id = id_of(ended(store, delivered=delivered))
    before = state(redis_client, store, task_id)

    assert store.runs.cancel(task_id) == ("succeeded", int(before["fields"]["ended"]))
    assert state(redis_client, store, task_id) == before


def test_a_run_that_has_not_begun_is_not_cancelled(store: Store, redis_client: redis.Redis) -> None:
    assert store.runs.cancel(new_id()) == ("unknown", 0)
    assert redis_client.dbsize() == 0
