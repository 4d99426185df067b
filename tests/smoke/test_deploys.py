"""Workers with old and with new code side by side: each run ends in code that fits what it has recorded."""

import json

import pytest

from celery_durable import JournalMismatchError, TaskCancelled, cancel
from tests.smoke import effects
from tests.smoke.apps import deploys
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import elapse, entries, journal, logged, run_key, steps, wait_until_suspended
from tests.waiting import eventually

LONG = 90
RUNS = 12
MANY_PAUSES = 400
"""Seconds for a run that one of two workers can go on with: which of them takes it is like the toss of a coin."""
SLEEPS = '{"name":"sleep","state":"sleeping","attempts":0,"until":9999999999999}'


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.deploys"


def start(durable: DurableSetup, version: str, **conf: object) -> Worker:
    return durable.start_worker(env={"VERSION": version}, conf=conf)


def begun_by_old_code(durable: DurableSetup) -> str:
    """Return the id of a run whose sleep is over, begun by an old worker that is gone."""
    old = start(durable, "1")
    task_id = str(deploys.renamed.delay(3600).id)
    wait_until_suspended(durable, task_id)
    old.stop()
    elapse(durable, task_id)
    return task_id


def state(durable: DurableSetup, task_id: str) -> str:
    return str(durable.app.AsyncResult(task_id).state)


def wait_until_stalled(durable: DurableSetup, task_id: str, times: int = 1) -> None:
    def stalled() -> bool:
        fact = json.loads(journal(durable.redis, task_id).get("stalled") or "{}")
        return state(durable, task_id) == "STALLED" and fact.get("times", 0) >= times

    eventually(stalled, 30, what=f"{times} stalled attempts")


def outcome(durable: DurableSetup, task_id: str) -> object:
    """Return what the run ended with; without a subscription that a restart of the server would have ended."""
    result = durable.app.AsyncResult(task_id)
    eventually(result.ready, LONG, what="the end of the run")
    return result.get(timeout=5, propagate=False)


@pytest.mark.timeout(500)
def test_runs_move_between_old_and_new_code_until_each_has_ended(durable: DurableSetup) -> None:
    start(durable, "1")
    results = [deploys.order.delay(2) for _ in range(RUNS)]
    for result in results:
        wait_until_suspended(durable, result.id)
    start(durable, "2")

    done = [result.get(timeout=MANY_PAUSES) for result in results]

    for result, versions in zip(results, done, strict=True):
        names = [entry["name"] for entry in entries(durable.redis, result.id) if entry["name"] != "sleep"]
        assert names in (["reserve", "charge"], ["reserve", "check", "charge"])
        assert len(versions) == len(names)
        assert [effects.count(name, result.id) for name in names] == [1] * len(names)


def test_a_stalled_run_outlives_its_worker_and_redis_and_is_taken_by_code_that_fits(durable: DurableSetup) -> None:
    task_id = begun_by_old_code(durable)
    recorded = steps(durable.redis, task_id)
    new = start(durable, "2")
    wait_until_stalled(durable, task_id)
    new.kill()
    durable.broker_server.kill()
    durable.broker_server.start()
    new.restart()
    wait_until_stalled(durable, task_id, times=2)
    assert steps(durable.redis, task_id) == recorded

    start(durable, "1")

    assert outcome(durable, task_id) == ["1", "1"]
    assert [effects.count(name, task_id) for name in ("reserve", "reserve stock", "charge")] == [1, 0, 1]
    assert logged(new, "task " + task_id, "at 1 the journal has step 'reserve'", "asks for step 'reserve stock'")


def test_a_stall_that_is_over_is_a_failure_though_workers_and_redis_died(durable: DurableSetup) -> None:
    task_id = begun_by_old_code(durable)
    new = start(durable, "2", durable_stall_timeout=5)
    wait_until_stalled(durable, task_id)
    new.kill()
    durable.broker_server.kill()
    durable.broker_server.start()
    new.restart()

    error = outcome(durable, task_id)

    assert type(error) is JournalMismatchError
    assert "recorded: step 'reserve'\n  asked for: step 'reserve stock'\n  by build: " in str(error)
    assert steps(durable.redis, task_id) == [("reserve", "done", 1), ("sleep", "sleeping", 0)]
    new.stop()
    start(durable, "1")
    durable.app.send_task("celery_durable.retry", args=[task_id]).get(timeout=LONG)
    eventually(lambda: state(durable, task_id) == "SUCCESS", LONG, what="the run to go on")
    assert effects.count("charge", task_id) == 1


def test_cancel_reaches_the_code_of_a_stalled_run_when_it_comes(durable: DurableSetup) -> None:
    task_id = begun_by_old_code(durable)
    durable.redis.hset(run_key(durable.redis, task_id), "step:2", SLEEPS)
    start(durable, "2")
    wait_until_stalled(durable, task_id)
    cancel(task_id, durable.app)
    start(durable, "1")

    assert type(outcome(durable, task_id)) is TaskCancelled
    assert state(durable, task_id) == "REVOKED"
    assert [effects.count(name, task_id) for name in ("undo", "charge")] == [1, 0]


def test_revoke_ends_a_stalled_run_at_once(durable: DurableSetup) -> None:
    task_id = begun_by_old_code(durable)
    start(durable, "2")
    wait_until_stalled(durable, task_id)

    durable.app.control.revoke(task_id)

    eventually(lambda: state(durable, task_id) == "REVOKED", 20, what="the run to be revoked")
    assert journal(durable.redis, task_id)["status"] == "revoked"
