"""`control.revoke` ends a run for good, whatever it is doing; `expires` only keeps one from beginning."""

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import requests
from celery import chain, chord
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_durable import RunNotRetryableError
from tests.smoke import effects
from tests.smoke.apps import recovery
from tests.smoke.flower import LOGIN, Flower
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.runs import end_waits, journals, lose_messages, wait_for_messages, waiting
from tests.smoke.watching import (
    deliver_again,
    journal,
    wait_until_idle,
    wait_until_logged,
    wait_until_suspended,
    waiting_message,
)
from tests.waiting import eventually

LONG = 20
WEEK = 7 * 24 * 3600
"""Seconds for which the journal of a run is kept that did not succeed."""
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "SIGTERM": {"terminate": True, "signal": "SIGTERM"},
    "SIGKILL": {"terminate": True, "signal": "SIGKILL"},
}


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.recovery"


def wait_until_revoked(durable: DurableSetup, task_id: str) -> None:
    """Wait for the end of a run, and see that nothing of it is left to do."""
    eventually(lambda: AsyncResult(task_id, app=durable.app).state == "REVOKED", LONG, what="the state REVOKED")
    eventually(lambda: journal(durable.redis, task_id).get("delivered") == "1", what="the end of the journal")
    run = journal(durable.redis, task_id)
    assert run["status"] == "revoked"
    assert "TaskRevokedError" in run["outcome"]
    [key] = durable.redis.scan_iter(match=f"*:run:{task_id}")
    assert WEEK - 60 < durable.redis.ttl(key) <= WEEK
    assert task_id not in waiting(durable.redis)
    assert isinstance(AsyncResult(task_id, app=durable.app).result, TaskRevokedError)


def wait_until_nothing_runs(durable: DurableSetup, worker: Worker, *ids: str) -> None:
    """Restart the worker, which forgets what was revoked, and see that it finds nothing to do."""
    before = journals(durable.redis)
    worker.restart()
    recovery.quick.delay().get(timeout=10)
    wait_until_idle(durable)
    assert journals(durable.redis) == before
    assert waiting(durable.redis) == []
    for task_id in ids:
        assert AsyncResult(task_id, app=durable.app).state == "REVOKED"


# -- runs that are under way


def test_runs_end_amid_a_step_and_behind_it_nothing_happens(durable: DurableSetup) -> None:
    """By either way of acknowledging, in each way of revoking."""
    cases = [(acks, way) for acks in ("early", "late") for way in WAYS]
    worker = durable.start_worker(concurrency=len(cases))
    lasts = [chain(getattr(recovery, acks).s(held_at="second"), recovery.follow.s()).apply_async() for acks, _ in cases]
    ids = [last.parent.id for last in lasts]
    effects.wait_until_blocked("second", times=len(cases))
    for task_id, (_, way) in zip(ids, cases, strict=True):
        durable.app.control.revoke(task_id, **WAYS[way])
    for task_id in ids:
        wait_until_revoked(durable, task_id)
    before = journals(durable.redis)
    effects.release("second")
    for task_id, (_, way) in zip(ids, cases, strict=True):
        if way == "plain":
            wait_until_logged(worker, f"task {task_id}: another attempt has taken over, or the run was revoked")
        else:
            [pid] = [hit.pid for hit in effects.hits("second", task_id)]
            eventually(lambda pid=pid: pid not in worker.children())
    wait_until_nothing_runs(durable, worker, *ids)

    assert journals(durable.redis) == before
    assert effects.counts("first", "second", "third", "follow", "failures") == [6, 6, 0, 0, 0]
    assert {hit.key for hit in effects.hits("stored")} >= {f"{task_id} REVOKED" for task_id in ids}
    assert not {hit.key for hit in effects.hits("stored")} & {f"{task_id} SUCCESS" for task_id in ids}


def test_runs_that_wait_end_at_once_and_do_not_go_on(durable: DurableSetup) -> None:
    """Asleep, or backing off by the journal alone or with a message of the broker."""
    worker = durable.start_worker()
    asleep = [(recovery.sleeps.delay(), way) for way in WAYS.values()]
    backing_off = [(recovery.backs_off.delay(delay), {}) for delay in (4, 3000)]
    ids = [result.id for result, _ in (*asleep, *backing_off)]
    wait_until_suspended(durable, *ids)
    for result, way in (*asleep, *backing_off):
        durable.app.control.revoke(result.id, **way)
    for task_id in ids:
        wait_until_revoked(durable, task_id)
    end_waits(durable.redis)
    wait_until_nothing_runs(durable, worker, *ids)

    assert effects.counts("before", "after", "flaky", "failures") == [5, 0, 2, 0]


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

    assert effects.counts("first", "second", "third") == [1, 1, 0]


def test_a_chord_is_told_of_a_member_that_was_revoked(durable: DurableSetup) -> None:
    """Amid a step, killed there, and asleep."""
    durable.start_worker(concurrency=3)
    members = [
        (recovery.early.s(held_at="second"), {}),
        (recovery.early.s(held_at="second"), WAYS["SIGKILL"]),
        (recovery.sleeps.si(), {}),
    ]
    bodies = [chord([recovery.early.s(), member], recovery.total.s()).apply_async() for member, _ in members]
    others, revoked = zip(*(body.parent.results for body in bodies), strict=True)
    effects.wait_until_blocked("second", times=2)
    wait_until_suspended(durable, revoked[2].id)
    eventually(lambda: all(other.state == "SUCCESS" for other in others))
    for result, (_, way) in zip(revoked, members, strict=True):
        durable.app.control.revoke(result.id, **way)
    for result in revoked:
        wait_until_revoked(durable, result.id)
    effects.release("second")

    eventually(lambda: [body.state for body in bodies] == ["FAILURE"] * 3)
    wait_until_idle(durable)
    assert effects.counts("third", "after", "total") == [3, 0, 0]


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

    assert effects.counts("first", "second", "third") == [1, 1, 0]
    assert AsyncResult(result.id, app=durable.app).state == "REVOKED"


def test_a_revoked_run_is_not_retried(durable: DurableSetup) -> None:
    durable.start_worker()
    result = recovery.sleeps.delay()
    wait_until_suspended(durable, result.id)
    durable.app.control.revoke(result.id)
    wait_until_revoked(durable, result.id)

    with pytest.raises(RunNotRetryableError, match="REVOKED"):
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
    assert effects.counts("first") == [1]


# -- Flower


def test_a_run_is_revoked_from_flower(durable: DurableSetup, flower: Flower) -> None:
    """By what its buttons Revoke and Terminate send."""
    worker = durable.start_worker()
    asleep, amid = recovery.sleeps.delay(), recovery.early.delay(held_at="second")
    wait_until_suspended(durable, asleep.id)
    effects.wait_until_blocked("second")
    for task_id, terminate in ((asleep.id, "false"), (amid.id, "true")):
        url = f"http://127.0.0.1:{flower.port}/api/task/revoke/{task_id}?terminate={terminate}"
        requests.post(url, auth=LOGIN, timeout=10).raise_for_status()
    wait_until_revoked(durable, asleep.id)
    wait_until_revoked(durable, amid.id)
    effects.release("second")
    wait_until_nothing_runs(durable, worker, amid.id)

    assert effects.counts("before", "after", "first", "second", "third") == [1, 0, 1, 1, 0]


# -- expiry


def test_a_message_that_expires_before_its_run_begins_begins_none(durable: DurableSetup, acks: str) -> None:
    result = getattr(recovery, acks).apply_async(expires=0.2)
    eventually(lambda: has_expired(durable))
    durable.start_worker()

    eventually(lambda: AsyncResult(result.id, app=durable.app).state == "REVOKED")
    wait_until_idle(durable)
    assert journal(durable.redis, result.id) == {}
    assert effects.counts("first") == [0]


def has_expired(durable: DurableSetup) -> bool:
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
    result = recovery.late.apply_async(kwargs={"held_at": "second"}, expires=60)
    message = waiting_message(durable)
    victim = durable.start_worker(concurrency=1)
    effects.wait_until_blocked("second")
    victim.kill()
    lose_messages(durable)
    # As if the minute were over: however long the worker took to start, the run has begun before.
    message["headers"]["expires"] = (datetime.now(timezone.utc) - timedelta(seconds=1)).isoformat()
    deliver_again(durable, message)
    worker = durable.start_worker(concurrency=1)
    effects.wait_until_blocked("second", times=2)
    effects.release("second")

    assert len(result.get(timeout=LONG)) == 3
    wait_until_idle(durable)
    assert "expired" not in worker.log()
    assert effects.counts("first", "second", "third") == [1, 2, 1]
    wait_for_messages(durable, 0, 0)
