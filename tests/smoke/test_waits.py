"""Sleeps and far retries on real workers: Redis keeps them, and neither a message nor a worker is held meanwhile."""

import time
from datetime import datetime
from typing import Any

import pytest
import redis
from celery import chain, chord
from celery.exceptions import MaxRetriesExceededError
from celery.result import AsyncResult

from celery_durable import InvalidStepError, RetriesExhausted
from tests.smoke import effects
from tests.smoke.apps import waits
from tests.smoke.nodes import BROKER_DB, DurableSetup, Worker
from tests.smoke.watching import (
    deliver_again,
    due,
    due_set,
    elapse,
    entries,
    journal,
    received,
    run_key,
    steps,
    wait_for_countdowns,
    wait_until_idle,
    wait_until_suspended,
    waiting_message,
)
from tests.waiting import eventually

LONG = 30
"""Seconds for what has to wait for a restart, on a busy machine."""

HOUR = 3600
DAY = 24 * HOUR

BY_REDIS = {"durable_max_broker_delay": 0.1}
"""The settings by which every retry of these tests is a far one."""


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.waits"


def counts(task_id: str) -> list[int]:
    """How often the steps before and after the wait of a run were executed."""
    return [effects.count(name, task_id) for name in ("before", "after")]


def asleep_until(durable: DurableSetup, task_id: str) -> int:
    """The recorded time at which the sleep of a run is over (ms); it goes on then, and not before."""
    (until,) = (entry["until"] for entry in entries(durable.redis, task_id) if entry["state"] == "sleeping")
    assert until <= int(journal(durable.redis, task_id)["due"]) < until + 1000
    return until


def waits_in_broker(durable: DurableSetup) -> bool:
    """Tell whether the only run is carried by a message that a worker holds until it is due."""
    with durable.broker_server.client(BROKER_DB) as client:
        return client.hlen("unacked") == 1


# -- asleep ------------------------------------------------------------------------------------------------------------


def test_sleeping_runs_hold_no_message_and_no_worker_and_wake_once(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=1)
    results = [task.delay(2) for task in (waits.sleeps, waits.base_class_sleeps, waits.sleeps_async)]
    for result in results:
        wait_until_suspended(durable, result.id)
    wait_until_idle(durable)
    until = {result.id: asleep_until(durable, result.id) for result in results}

    for result in results:
        assert result.state == "SUSPENDED"
        assert datetime.fromisoformat(result.info["until"]).timestamp() * 1000 == pytest.approx(until[result.id], abs=1)
    assert waits.quick.delay().get(timeout=10) == "done"
    assert {journal(durable.redis, result.id)["status"] for result in results} == {"suspended"}

    assert [result.get(timeout=10) for result in results] == [2] * 3
    wait_until_idle(durable)
    for result in results:
        run = journal(durable.redis, result.id)
        assert run["attempt"] == "2"
        assert int(run["opened"]) >= until[result.id]
        assert received(worker, result.id) == 2
        assert counts(result.id) == [1, 1]
        assert result.state == "SUCCESS"
        assert run.keys().isdisjoint({"due", "resent"})


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent", "eventlet"])
def test_a_run_sleeps_in_every_pool(durable: DurableSetup, pool: str) -> None:
    worker = durable.start_worker(pool=pool, concurrency=1)
    results = [waits.sleeps.delay(0.4) for _ in range(3)]

    assert [result.get(timeout=10) for result in results] == [2] * 3
    wait_until_idle(durable)
    assert [received(worker, result.id) for result in results] == [2] * 3
    assert [counts(result.id) for result in results] == [[1, 1]] * 3


def test_a_run_wakes_where_it_was_sent_to_though_another_worker_sees_it_and_it_has_expired(
    durable: DurableSetup,
) -> None:
    other = durable.start_worker(queues=["other"], wait=False)
    worker = durable.start_worker()
    other.wait_ready()
    results = [waits.sleeps.apply_async((1.2,), queue="other", expires=1, priority=3) for _ in range(6)]

    assert [result.get(timeout=10) for result in results] == [2] * 6
    assert [received(other, result.id) for result in results] == [2] * 6
    assert " received" not in worker.log()


def test_several_sleeps_one_after_the_other_wake_once_each(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = waits.sleeps.delay(0.3, 0, 0.3, 0.3)

    assert result.get(timeout=10) == 4
    assert counts(result.id) == [1, 4]
    assert received(worker, result.id) == 4
    assert [state for _, state, _ in steps(durable.redis, result.id)] == ["done", *["sleeping", "done"] * 4]


def test_several_sleeps_at_a_time_each_wake_the_run_when_they_are_over(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = waits.sleeps_async.delay(1.2, 0.4, HOUR)
    eventually(lambda: journal(durable.redis, result.id).get("attempt") == "3")
    wait_until_suspended(durable, result.id)
    assert counts(result.id) == [1, 0]

    elapse(durable, result.id)

    assert result.get(timeout=10) == 4
    assert received(worker, result.id) == 4
    assert counts(result.id) == [1, 1]


def test_a_sleep_within_the_inline_limit_stays_in_the_worker(durable: DurableSetup) -> None:
    worker = durable.start_worker(conf={"durable_inline_retry_limit": 0.5})
    result = waits.sleeps.delay(0.3)

    assert result.get(timeout=10) == 1
    assert received(worker, result.id) == 1


def test_the_state_of_a_tracked_task_is_suspended_while_it_sleeps(durable: DurableSetup) -> None:
    durable.start_worker()
    result = waits.tracked.delay()
    wait_until_suspended(durable, result.id)
    wait_until_idle(durable)
    assert result.state == "SUSPENDED"

    elapse(durable, result.id)
    effects.wait_until_blocked("tracked")

    assert result.state == "STARTED"
    effects.release("tracked")
    assert result.get(timeout=10) == "done"


def test_a_message_that_comes_too_early_does_not_wake_the_run(durable: DurableSetup) -> None:
    worker = durable.start_worker(wait=False)
    result = waits.sleeps.delay(HOUR)
    message = waiting_message(durable)
    wait_until_suspended(durable, result.id, deadline=LONG)
    wait_until_idle(durable)

    deliver_again(durable, message)
    eventually(lambda: received(worker, result.id) == 2)
    wait_until_idle(durable)

    assert journal(durable.redis, result.id)["attempt"] == "1"
    assert result.state == "SUSPENDED"
    elapse(durable, result.id)
    assert result.get(timeout=10) == 2
    assert counts(result.id) == [1, 1]


def test_a_bad_duration_ends_the_run_and_keeps_its_journal(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    for duration in (-1, "soon", True, 11 * 365 * DAY):
        result = waits.refused.delay(duration)

        with pytest.raises(InvalidStepError, match=f"task {result.id}: the duration of ctx.sleep must be"):
            result.get(timeout=10)

        assert received(worker, result.id) == 1
        assert journal(durable.redis, result.id)["status"] == "failed"
        assert steps(durable.redis, result.id) == [("before", "done", 1)]
    assert effects.count("swallowed") == 0


# -- long, and many ----------------------------------------------------------------------------------------------------


def test_a_sleep_of_thirty_days_wakes_once_when_they_are_over(durable: DurableSetup) -> None:
    worker = durable.start_worker(visibility_timeout=1)
    result = waits.sleeps.delay(30 * DAY)
    wait_until_suspended(durable, result.id)
    run = journal(durable.redis, result.id)
    slept_for = (int(run["due"]) - int(run["created"])) / 1000
    assert 30 * DAY <= slept_for < 30 * DAY + 30
    assert asleep_until(durable, result.id) - int(run["created"]) >= 30 * DAY * 1000
    assert durable.redis.zscore(due_set(durable.redis, result.id), result.id) == int(run["due"])
    assert durable.redis.ttl(run_key(durable.redis, result.id)) == -1
    wait_until_idle(durable)

    elapse(durable, result.id)

    assert result.get(timeout=10) == 2
    wait_until_idle(durable)
    assert received(worker, result.id) == 2
    assert counts(result.id) == [1, 1]


def test_a_sleep_beyond_the_visibility_timeout_wakes_once(durable: DurableSetup) -> None:
    workers = [durable.start_worker(visibility_timeout=1, wait=False) for _ in range(2)]
    for worker in workers:
        worker.wait_ready()
    result = waits.sleeps.delay(3)

    assert result.get(timeout=15) == 2
    wait_until_idle(durable)
    assert sum(received(worker, result.id) for worker in workers) == 2
    assert counts(result.id) == [1, 1]


def test_hundreds_of_sleepers_cost_no_message_and_wake_once_each(durable: DurableSetup) -> None:
    # With a short lease those that wait for long in the queue would be sent again.
    worker = durable.start_worker(conf={"durable_lease": 60})
    with durable.app.pool.acquire() as connection, durable.app.amqp.Producer(connection) as producer:
        results = [waits.sleeps.apply_async((HOUR,), producer=producer) for _ in range(400)]
    eventually(lambda: len(asleep(durable.redis)) == len(results), 60, what="all to be asleep")
    wait_until_idle(durable)
    assert asleep(durable.redis) == {result.id for result in results}

    for result in results:
        elapse(durable, result.id)
    assert [result.get(timeout=60) for result in results] == [2] * len(results)

    wait_until_idle(durable)
    assert not asleep(durable.redis)
    assert worker.log().count(" received") == 2 * len(results)
    for name in ("before", "after"):
        keys = [hit.key for hit in effects.hits(name)]
        assert sorted(keys) == sorted(result.id for result in results)


def asleep(client: redis.Redis) -> set[str]:
    """The ids of all runs that wait for their time."""
    return {task_id for key in client.scan_iter(match="*:due", count=1000) for task_id in client.zrange(key, 0, -1)}


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart_redis", [False, True], ids=["workers", "workers and Redis"])
def test_runs_whose_worker_is_killed_while_they_wait_go_on_after_the_restart(
    durable: DurableSetup, restart_redis: bool
) -> None:
    worker = durable.start_worker(conf=BY_REDIS)
    sleeper = waits.sleeps.delay(1.5)
    retried = waits.flaky.delay(2, initial_retry_interval=1.5, retry_interval_factor=1, max_attempts=3)
    for result in (sleeper, retried):
        wait_until_suspended(durable, result.id)
    last = max(due(durable, result.id) for result in (sleeper, retried))
    wait_until_idle(durable)
    worker.kill()
    if restart_redis:
        durable.broker_server.kill()
        durable.broker_server.start()
    eventually(lambda: time.time() > last.timestamp(), what="the end of the waits")
    worker.restart()

    assert durable.app.AsyncResult(sleeper.id).get(timeout=LONG) == 2
    assert durable.app.AsyncResult(retried.id).get(timeout=LONG) == [3, 2]
    wait_until_idle(durable)
    assert [received(worker, result.id) for result in (sleeper, retried)] == [2, 3]
    assert counts(sleeper.id) == [1, 1]
    assert [effects.count(name, retried.id) for name in ("before", "flaky")] == [1, 3]


def test_of_many_workers_one_wakes_the_run(durable: DurableSetup) -> None:
    workers = [durable.start_worker(concurrency=1, wait=False) for _ in range(3)]
    for worker in workers:
        worker.wait_ready()
    results = [waits.sleeps.delay(HOUR) for _ in range(20)]
    for result in results:
        wait_until_suspended(durable, result.id)
    wait_until_idle(durable)

    for result in results:
        elapse(durable, result.id)

    assert [result.get(timeout=15) for result in results] == [2] * 20
    wait_until_idle(durable)
    assert sum(worker.log().count(" received") for worker in workers) == 40


# -- canvas ------------------------------------------------------------------------------------------------------------


def test_members_of_chains_and_chords_sleep(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    last = chain(waits.numbers.s(1), waits.numbers.s(), waits.numbers.s()).delay()
    result = chord([waits.numbers.s(number) for number in range(3)], waits.total.s()).delay()

    assert last.get(timeout=15) == 4
    assert result.get(timeout=15) == 6
    assert [received(worker, one.id) for one in (last, last.parent, last.parent.parent, result)] == [2] * 4
    assert effects.count("before") == effects.count("after") == 6
    assert effects.count("total") == 1


# -- retries -----------------------------------------------------------------------------------------------------------


def test_a_sleep_does_not_count_as_a_retry(durable: DurableSetup) -> None:
    durable.start_worker()
    assert waits.sleeps_and_retries.delay().get(timeout=15) == [2, 2, 2]


def test_a_far_retry_of_a_step_waits_in_redis(durable: DurableSetup) -> None:
    worker = durable.start_worker(conf=BY_REDIS)
    result = waits.flaky.delay(1, initial_retry_interval=HOUR, max_retry_interval=HOUR)
    wait_until_suspended(durable, result.id)
    wait_until_idle(durable)
    eventually(lambda: result.state == "RETRY")
    assert str(result.info) == "failure 1"
    wait_for_countdowns(worker, result.id, [HOUR])
    assert due(durable, result.id).timestamp() - time.time() == pytest.approx(HOUR, abs=30)
    assert waits.quick.delay().get(timeout=10) == "done"

    elapse(durable, result.id)

    assert result.get(timeout=10) == [2, 1]
    wait_until_idle(durable)
    assert received(worker, result.id) == 2
    assert [effects.count(name, result.id) for name in ("before", "flaky")] == [1, 2]


def test_far_retries_are_counted(durable: DurableSetup) -> None:
    worker = durable.start_worker(conf=BY_REDIS)
    options = {"initial_retry_interval": 0.3, "retry_interval_factor": 1, "max_attempts": 4}
    steps_of = [waits.flaky.delay(3, **options), waits.flaky.delay(99, **options)]
    policy_of = [waits.fails.delay(2), waits.fails.delay(99)]
    own = [waits.retries_itself.delay("word", 2, countdown=0.3), waits.retries_itself.delay("word", 99, countdown=0.3)]

    assert steps_of[0].get(timeout=15) == [4, 3]
    assert policy_of[0].get(timeout=15) == 3
    assert own[0].get(timeout=15)["retries"] == 2
    with pytest.raises(RetriesExhausted) as raised:
        steps_of[1].get(timeout=15)
    with pytest.raises(ConnectionError, match="no route"):
        policy_of[1].get(timeout=15)
    with pytest.raises(MaxRetriesExceededError):
        own[1].get(timeout=15)

    wait_until_idle(durable)
    assert raised.value.attempts == 4
    for results, counted, times in ((steps_of, "flaky", 4), (policy_of, "bodies", 3), (own, "bodies", 3)):
        assert [effects.count(counted, result.id) for result in results] == [times] * 2
        assert [received(worker, result.id) for result in results] == [times] * 2
        assert [effects.count("before", result.id) for result in results] == [1, 1]
    wait_for_countdowns(worker, steps_of[0].id, [0.3] * 3)


@pytest.mark.parametrize(
    ("conf", "visibility_timeout", "near", "far"),
    [
        ({}, 3600, 59, 61),
        ({"durable_max_broker_delay": 10}, 3600, 9, 11),
        ({"durable_max_broker_delay": 600}, 20, 9, 11),
    ],
    ids=["default", "set", "half the visibility timeout at most"],
)
def test_a_near_retry_waits_in_the_broker_and_a_far_one_in_redis(
    durable: DurableSetup, conf: dict[str, Any], visibility_timeout: float, near: float, far: float
) -> None:
    worker = durable.start_worker(conf=conf, visibility_timeout=visibility_timeout)
    result = waits.flaky.delay(1, initial_retry_interval=far, max_retry_interval=far)
    wait_until_suspended(durable, result.id)
    wait_until_idle(durable)
    assert received(worker, result.id) == 1

    result = waits.flaky.delay(1, initial_retry_interval=near, max_retry_interval=near)
    eventually(lambda: received(worker, result.id) == 2)
    eventually(lambda: waits_in_broker(durable))
    assert journal(durable.redis, result.id)["status"] == "suspended"


# -- self.retry() ------------------------------------------------------------------------------------------------------

ITSELF = (waits.retries_itself, waits.base_class_retries_itself)


def retried(durable: DurableSetup, results: list[AsyncResult], worker: Worker) -> list[dict[str, Any]]:
    """Let the time of far retries come; return what the next attempts see."""
    for result in results:
        wait_until_suspended(durable, result.id)
    wait_until_idle(durable)
    for result in results:
        eventually(lambda result=result: result.state == "RETRY")
        assert received(worker, result.id) == 1
        elapse(durable, result.id)
    seen = [result.get(timeout=10) for result in results]
    wait_until_idle(durable)
    assert [received(worker, result.id) for result in results] == [2] * len(results)
    for result in results:
        assert [effects.count(name, result.id) for name in ("before", "bodies")] == [1, 2]
    return seen


def test_a_retry_of_ones_own_waits_in_redis(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    results = [task.delay("first", 1, countdown=HOUR) for task in ITSELF]

    seen = retried(durable, results, worker)

    assert seen == [{"word": "first", "retries": 1, "queue": "celery", "colour": None}] * 2


def test_a_retry_of_ones_own_goes_on_with_other_arguments_queue_and_headers(durable: DurableSetup) -> None:
    worker = durable.start_worker(queues=["celery", "other"])
    changes = {"args": ("second", 1), "queue": "other", "headers": {"colour": "red"}}
    results = [task.delay("first", 1, countdown=HOUR, **changes) for task in ITSELF]

    seen = retried(durable, results, worker)

    assert seen == [{"word": "second", "retries": 1, "queue": "other", "colour": "red"}] * 2
