"""`control.revoke` ends a run for good, whatever it is doing; `expires` only keeps one from beginning."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from celery import chain, chord
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_durable import RunNotRetryableError
from tests.smoke import effects
from tests.smoke.apps import recovery
from tests.smoke.nodes import BACKEND_DB, BROKER_DB, DurableSetup, Worker
from tests.smoke.runs import end_waits, lose_messages, messages, wait_until_suspended, waiting
from tests.smoke.test_flower import LOGIN, Flower
from tests.smoke.watching import deliver_again, journal, wait_until_idle, wait_until_logged, waiting_message
from tests.waiting import eventually

LONG = 20
WEEK = 7 * 24 * 3600
"""Seconds for which the journal of a run is kept that did not succeed."""
TERMINATIONS = {
    "SIGTERM": {"terminate": True, "signal": "SIGTERM"},
    "SIGKILL": {"terminate": True, "signal": "SIGKILL"},
}
WAYS: dict[str, dict[str, Any]] = {"plain": {}, **TERMINATIONS}


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.recovery"


@pytest.fixture(params=["early", "late"])
def acks(request: pytest.FixtureRequest) -> str:
    """When messages are acknowledged."""
    return request.param


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """How to revoke."""
    return WAYS[request.param]


def counts(*names: str) -> list[int]:
    return [effects.count(name) for name in names]


def wait_until_revoked(durable: DurableSetup, task_id: str) -> None:
    """Wait for the end of a run, and see that nothing of it is left to do."""
    eventually(lambda: AsyncResult(task_id, app=durable.app).state == "REVOKED", LONG, what="the state REVOKED")
    eventually(lambda: journal(durable.redis, task_id).get("status") == "revoked", what="the end of the journal")
    run = journal(durable.redis, task_id)
    assert run["delivered"] == "1"
    assert "TaskRevokedError" in run["outcome"]
    [key] = durable.redis.scan_iter(match=f"*:run:{task_id}")
    assert WEEK - 60 < durable.redis.ttl(key) <= WEEK
    assert task_id not in waiting(durable.redis)
    with pytest.raises(TaskRevokedError):
        AsyncResult(task_id, app=durable.app).get(timeout=5)


def wait_until_nothing_runs(durable: DurableSetup, worker: Worker, task_id: str) -> None:
    """Restart the worker, which forgets what was revoked, and see that it finds nothing to do."""
    before = journal(durable.redis, task_id)
    worker.restart()
    recovery.quick.delay().get(timeout=10)
    wait_until_idle(durable)
    assert journal(durable.redis, task_id) == before
    assert waiting(durable.redis) == []
    assert AsyncResult(task_id, app=durable.app).state == "REVOKED"


# -- runs that are under way


def test_a_run_ends_amid_a_step_and_behind_it_nothing_happens(
    durable: DurableSetup, acks: str, way: dict[str, Any]
) -> None:
    worker = durable.start_worker()
    last = chain(getattr(recovery, acks).s(held_at="second"), recovery.follow.s()).apply_async()
    task_id = last.parent.id
    held = effects.wait_until_blocked("second").pid
    durable.app.control.revoke(task_id, **way)
    wait_until_revoked(durable, task_id)
    before = journal(durable.redis, task_id)
    effects.release("second")
    if way:
        eventually(lambda: held not in worker.children())
    else:
        wait_until_logged(worker, f"task {task_id}: another attempt has taken over, this one ends")
    wait_until_nothing_runs(durable, worker, task_id)

    assert journal(durable.redis, task_id) == before
    assert counts("first", "second", "third", "follow", "failures") == [1, 1, 0, 0, 0]
    assert {hit.key for hit in effects.hits("stored", f"{task_id} SUCCESS")} == set()
    assert last.state == "PENDING"


def test_a_run_that_sleeps_ends_at_once_and_does_not_wake_up(durable: DurableSetup, way: dict[str, Any]) -> None:
    worker = durable.start_worker()
    result = recovery.sleeps.delay()
    wait_until_suspended(durable.redis, result.id)
    assert result.state == "SUSPENDED"
    durable.app.control.revoke(result.id, **way)
    wait_until_revoked(durable, result.id)
    end_waits(durable.redis)
    wait_until_nothing_runs(durable, worker, result.id)

    assert counts("before", "after", "failures") == [1, 0, 0]


@pytest.mark.parametrize("delay", [3, 3000], ids=["the broker's", "the journal's"])
def test_a_run_that_backs_off_ends_at_once_and_does_not_go_on(durable: DurableSetup, delay: float) -> None:
    worker = durable.start_worker()
    result = recovery.backs_off.delay(delay)
    wait_until_suspended(durable.redis, result.id)
    eventually(lambda: result.state == "RETRY")
    durable.app.control.revoke(result.id)
    wait_until_revoked(durable, result.id)
    wait_until_nothing_runs(durable, worker, result.id)

    assert counts("before", "flaky", "failures") == [1, 1, 0]


def test_a_run_ends_whose_worker_and_message_are_gone(durable: DurableSetup) -> None:
    """It has lost its place in the broker, and nobody has found it yet."""
    conf = {"durable_lease": 60}
    victim = durable.start_worker(conf=conf)
    result = recovery.early.delay(held_at="second")
    effects.wait_until_blocked("second")
    victim.kill()
    lose_messages(durable)
    worker = durable.start_worker(conf=conf)
    durable.app.control.revoke(result.id)
    wait_until_revoked(durable, result.id)
    effects.release("second")
    wait_until_nothing_runs(durable, worker, result.id)

    assert counts("first", "second", "third") == [1, 1, 0]


def test_a_chord_is_told_of_a_member_that_was_revoked(durable: DurableSetup, way: dict[str, Any]) -> None:
    durable.start_worker()
    body = chord([recovery.early.s(), recovery.early.s(held_at="second")], recovery.total.s()).apply_async()
    member = body.parent.results[1].id
    effects.wait_until_blocked("second")
    eventually(lambda: body.parent.results[0].state == "SUCCESS")
    durable.app.control.revoke(member, **way)
    wait_until_revoked(durable, member)
    effects.release("second")

    eventually(lambda: body.state == "FAILURE")
    wait_until_idle(durable)
    assert counts("third", "total") == [1, 0]


def test_a_chord_is_told_of_a_sleeping_member_that_was_revoked(durable: DurableSetup) -> None:
    durable.start_worker()
    body = chord([recovery.early.s(), recovery.sleeps.si()], recovery.total.s()).apply_async()
    member = body.parent.results[1].id
    wait_until_suspended(durable.redis, member)
    eventually(lambda: body.parent.results[0].state == "SUCCESS")
    durable.app.control.revoke(member)
    wait_until_revoked(durable, member)

    eventually(lambda: body.state == "FAILURE")
    assert counts("after", "total") == [0, 0]


# -- afterwards


def test_a_copy_of_a_revoked_runs_message_begins_nothing(durable: DurableSetup) -> None:
    result = recovery.late.delay(held_at="second")
    message = waiting_message(durable)
    worker = durable.start_worker()
    effects.wait_until_blocked("second")
    durable.app.control.revoke(result.id, terminate=True, signal="SIGKILL")
    wait_until_revoked(durable, result.id)
    effects.release("second")
    worker.restart()
    deliver_again(durable, message)
    wait_until_logged(worker, f"task {result.id} already finished")
    wait_until_idle(durable)

    assert counts("first", "second", "third") == [1, 1, 0]
    assert AsyncResult(result.id, app=durable.app).state == "REVOKED"


def test_a_revoked_run_is_not_retried(durable: DurableSetup) -> None:
    durable.start_worker()
    result = recovery.sleeps.delay()
    wait_until_suspended(durable.redis, result.id)
    durable.app.control.revoke(result.id)
    wait_until_revoked(durable, result.id)

    with pytest.raises(RunNotRetryableError, match="revoked"):
        durable.app.tasks["celery_durable.retry"].delay(result.id).get(timeout=10)


def test_a_task_that_is_revoked_before_it_begins_is_what_it_is_in_celery(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=1)
    recovery.early.delay(held_at="second")
    effects.wait_until_blocked("second")
    result = recovery.late.delay()
    wait_until_logged(worker, f"[{result.id}] received")
    durable.app.control.revoke(result.id)
    wait_until_logged(worker, f"Tasks flagged as revoked: {result.id}")
    effects.release("second")

    eventually(lambda: AsyncResult(result.id, app=durable.app).state == "REVOKED")
    wait_until_idle(durable)
    assert journal(durable.redis, result.id) == {}
    assert counts("first") == [1]


# -- Flower


@pytest.fixture
def flower(durable: DurableSetup, tmp_path: Path) -> Iterator[Flower]:
    env = {
        "CELERY_BROKER_URL": durable.broker_server.url(BROKER_DB),
        "CELERY_RESULT_BACKEND": durable.broker_server.url(BACKEND_DB),
    }
    flower = Flower("-A", "tests.smoke.apps.recovery", log=tmp_path / "flower.log", env={**os.environ, **env})
    flower.wait_ready()
    yield flower
    flower.end()


def test_a_run_is_revoked_from_flower(durable: DurableSetup, flower: Flower) -> None:
    """By what its buttons Revoke and Terminate send."""
    worker = durable.start_worker()
    asleep, amid = recovery.sleeps.delay(), recovery.early.delay(held_at="second")
    wait_until_suspended(durable.redis, asleep.id)
    effects.wait_until_blocked("second")
    for task_id, terminate in ((asleep.id, "false"), (amid.id, "true")):
        url = f"http://127.0.0.1:{flower.port}/api/task/revoke/{task_id}?terminate={terminate}"
        requests.post(url, auth=LOGIN, timeout=10).raise_for_status()
    wait_until_revoked(durable, asleep.id)
    wait_until_revoked(durable, amid.id)
    effects.release("second")
    wait_until_nothing_runs(durable, worker, amid.id)

    assert counts("before", "after", "first", "second", "third") == [1, 0, 1, 1, 0]


# -- expiry


def test_a_message_that_expires_before_its_run_begins_begins_none(durable: DurableSetup, acks: str) -> None:
    result = getattr(recovery, acks).apply_async(expires=0.2)
    eventually(lambda: result.date_done is None and has_expired(durable))
    durable.start_worker()

    eventually(lambda: AsyncResult(result.id, app=durable.app).state == "REVOKED")
    wait_until_idle(durable)
    assert journal(durable.redis, result.id) == {}
    assert counts("first") == [0]


def has_expired(durable: DurableSetup) -> bool:
    from datetime import datetime, timezone

    expires = datetime.fromisoformat(waiting_message(durable)["headers"]["expires"])
    return expires < datetime.now(timezone.utc)


@pytest.mark.parametrize("name", ["backs_off", "sleeps"])
def test_a_run_that_has_begun_does_not_expire(durable: DurableSetup, name: str) -> None:
    durable.start_worker()
    result = getattr(recovery, name).apply_async((1.5,), expires=1)

    assert result.get(timeout=LONG) in (2, "awake")
    assert journal(durable.redis, result.id)["attempt"] == "2"


def test_a_copy_of_an_expired_message_does_not_end_the_run_that_has_begun(durable: DurableSetup) -> None:
    """The worker that had begun it dies, and the broker delivers its message again."""
    result = recovery.late.apply_async(kwargs={"held_at": "second"}, expires=2)
    message = waiting_message(durable)
    victim = durable.start_worker(concurrency=1)
    effects.wait_until_blocked("second")
    victim.kill()
    lose_messages(durable)
    deliver_again(durable, message)
    eventually(lambda: has_expired(durable))
    worker = durable.start_worker(concurrency=1)
    effects.wait_until_blocked("second", times=2)
    effects.release("second")

    assert len(result.get(timeout=LONG)) == 3
    wait_until_idle(durable)
    assert "expired" not in worker.log()
    assert counts("first", "second", "third") == [1, 2, 1]
    assert messages(durable) == (0, 0)
