"""Cancelled runs on real workers: their code is told once, wherever they are, and compensates once."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from celery import chain, chord
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_durable import RunNotCancellableError, RunNotRetryableError, TaskCancelled, cancel
from celery_durable.operate.tasks import retry
from tests.processes import PROJECT
from tests.smoke import effects
from tests.smoke.apps import cancellation as orders
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import (
    due_set,
    entries,
    journal,
    received,
    run_key,
    steps,
    wait_until_delivered,
    wait_until_idle,
    wait_until_suspended,
)
from tests.waiting import eventually

LONG = 30
"""Seconds for what has to wait for a restart, on a busy machine."""

WAITS = ["asleep", "backing off in Redis", "backing off in the broker", "between attempts"]


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.cancellation"


def told(task_id: str) -> list[str]:
    """What the code of the run was told, each time that its body came there."""
    return [hit.key.removeprefix(f"{task_id} ") for hit in effects.hits("told") if hit.key.startswith(task_id)]


def is_cancelled(result: AsyncResult) -> TaskCancelled:
    """Wait for the end of a run whose cancellation left its body; return what its caller receives."""
    with pytest.raises(TaskCancelled) as raised:
        result.get(timeout=15)
    assert raised.value.status_code == 409
    assert result.state == "REVOKED"
    assert type(AsyncResult(result.id, app=result.app).result) is TaskCancelled
    return raised.value


def ended(durable: DurableSetup, task_id: str, status: str) -> None:
    """The journal has its TTL, and nothing carries the run on."""
    wait_until_delivered(durable, task_id)
    run = journal(durable.redis, task_id)
    assert (run["status"], run["cancel"]) == (status, "raised")
    client = durable.redis
    assert client.ttl(run_key(client, task_id)) > 0
    due = due_set(client, task_id)
    leases = due.removesuffix("due") + "leases"
    assert client.zscore(due, task_id) is client.zscore(leases, task_id) is None


# -- wherever it is ----------------------------------------------------------------------------------------------------


def test_a_running_step_is_let_finish_and_the_next_operation_is_cancelled(durable: DurableSetup) -> None:
    durable.start_worker()
    result = orders.order.delay("in a step")
    effects.wait_until_blocked("charge")

    cancel(result.id, app=durable.app)
    effects.release("charge")

    assert str(is_cancelled(result)) == "the run was cancelled before 'ship'"
    assert told(result.id) == ["409 the run was cancelled before 'ship'"]
    assert effects.counts("reserve", "charge", "ship", "release", "notify", key=result.id) == [1, 1, 0, 1, 1]
    states = [(name, state) for name, state, _ in steps(durable.redis, result.id)]
    assert states == [
        *[("reserve", "done"), ("charge", "done"), ("ship", "cancelled")],
        *[("release", "done"), ("notify", "done")],
    ]
    ended(durable, result.id, "revoked")
    assert journal(durable.redis, result.id)["attempt"] == "1"


def test_a_step_that_fails_after_the_cancellation_is_not_retried(durable: DurableSetup) -> None:
    durable.start_worker()
    result = orders.order.delay("in a step that fails")
    effects.wait_until_blocked("charge")

    cancel(result.id, app=durable.app)
    effects.release("charge")

    assert str(is_cancelled(result)) == "the run was cancelled before 'charge'"
    assert len(told(result.id)) == 1
    assert effects.counts("reserve", "charge", "ship", "release", "notify", key=result.id) == [1, 1, 0, 1, 1]
    assert steps(durable.redis, result.id)[1] == ("charge", "cancelled", 1)
    wait_until_idle(durable)
    assert result.state == "REVOKED"


def test_runs_that_wait_wake_for_their_cancellation(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=1)
    runs = {place: orders.order.delay(place) for place in WAITS}
    due = {}
    for place, result in runs.items():
        wait_until_suspended(durable, result.id)
        due[place] = int(journal(durable.redis, result.id)["due"])

    for result in runs.values():
        cancel(result.id, app=durable.app)

    for place, result in runs.items():
        is_cancelled(result)
        assert int(journal(durable.redis, result.id)["opened"]) < due[place]
        assert len(told(result.id)) == 1
        assert effects.counts("reserve", "ship", "release", "notify", key=result.id) == [1, 0, 1, 1]
        assert effects.counts("flaky", key=result.id) == [int("backing off" in place)]
        ended(durable, result.id, "revoked")
        assert received(worker, result.id) == (3 if "broker" in place else 2)


def test_a_step_that_fails_for_ever_inside_the_worker_is_cancelled(durable: DurableSetup) -> None:
    durable.start_worker()
    result = orders.impatient.delay()
    eventually(lambda: effects.count("flaky", result.id) >= 2)

    cancel(result.id, app=durable.app)

    is_cancelled(result)
    assert steps(durable.redis, result.id) == [("flaky", "cancelled", effects.count("flaky", result.id))]
    ended(durable, result.id, "revoked")


def test_a_run_that_sleeps_while_no_worker_lives_is_cancelled_by_the_next_one(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = orders.order.delay("asleep")
    wait_until_suspended(durable, result.id)
    wait_until_idle(durable)
    worker.kill()

    cancel(result.id, app=durable.app)
    worker.restart()

    is_cancelled(result)
    assert effects.counts("reserve", "release", "notify", key=result.id) == [1, 1, 1]


def test_a_run_that_waits_with_other_arguments_is_cancelled_with_them(durable: DurableSetup) -> None:
    durable.start_worker()
    result = orders.asks_again.delay("first")
    wait_until_suspended(durable, result.id)

    cancel(result.id, app=durable.app)

    is_cancelled(result)
    assert told(result.id) == ["second 409 the run was cancelled before 'ship'"]
    assert effects.counts("reserve", "ship", key=result.id) == [1, 0]
    ended(durable, result.id, "revoked")


# -- how it ends -------------------------------------------------------------------------------------------------------


def test_a_cancellation_that_is_caught_is_a_success(durable: DurableSetup) -> None:
    durable.start_worker()
    results = [orders.order.delay(place, "return") for place in ("in a step", "asleep")]
    effects.wait_until_blocked("charge")
    wait_until_suspended(durable, results[1].id)

    for result in results:
        cancel(result.id, app=durable.app)
    effects.release("charge")

    for result in results:
        assert result.get(timeout=15) == "compensated"
        assert result.state == "SUCCESS"
        assert effects.counts("ship", "release", "notify", key=result.id) == [0, 1, 1]
        ended(durable, result.id, "succeeded")


def test_a_run_that_ignores_its_result_is_cancelled_unseen(durable: DurableSetup) -> None:
    durable.start_worker()
    result = orders.unseen.delay()
    wait_until_suspended(durable, result.id)

    cancel(result.id, app=durable.app)

    ended(durable, result.id, "revoked")
    assert effects.counts("release", key=result.id) == [1]
    assert result.state == "PENDING"


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_compensations_run_once_though_the_worker_dies_amid_them(durable: DurableSetup, victim: str) -> None:
    worker = durable.start_worker()
    result = orders.order.delay("asleep", "held")
    wait_until_suspended(durable, result.id)
    cancel(result.id, app=durable.app)
    pid = effects.wait_until_blocked("notify").pid
    if victim == "child":
        worker.kill_child(pid)
    else:
        worker.kill()
        worker.restart()
    effects.wait_until_blocked("notify", times=2, deadline=LONG)
    effects.release("notify")

    is_cancelled(result)
    # The code is told in each attempt that comes there, at the same place by the same words; nothing more is cancelled.
    assert told(result.id) == ["409 the run was cancelled before 'pause'"] * 2
    assert effects.counts("reserve", "ship", "release", "notify", key=result.id) == [1, 0, 1, 2]
    assert [entry["state"] for entry in entries(durable.redis, result.id)] == ["done", "cancelled", "done", "done"]
    ended(durable, result.id, "revoked")


def test_tasks_of_the_base_class_are_cancelled(durable: DurableSetup) -> None:
    durable.start_worker()
    results = [orders.base_class_order.delay(), orders.retried_by_celery.delay()]
    for result in results:
        wait_until_suspended(durable, result.id)

    for result in results:
        cancel(result.id, app=durable.app)

    for result, seen in zip(results, (1, 0), strict=True):
        is_cancelled(result)
        assert len(told(result.id)) == seen
        assert effects.counts("reserve", "release", key=result.id) == [seen, seen]
        ended(durable, result.id, "revoked")
        assert journal(durable.redis, result.id)["attempt"] == "2"


def test_one_of_a_gather_is_cancelled_and_all_the_others_go_on(durable: DurableSetup) -> None:
    durable.start_worker()
    result = orders.async_order.delay()
    effects.wait_until_blocked("left")
    eventually(lambda: effects.count("right", result.id))

    cancel(result.id, app=durable.app)
    effects.release("left")

    assert result.get(timeout=15) == ["left", "TaskCancelled", "right"]
    assert set(told(result.id)) == {"409 the run was cancelled before 'sleep'"}
    assert effects.counts("left", "right", "release", key=result.id) == [1, 1, 1]
    ended(durable, result.id, "succeeded")


def test_of_several_sleeps_one_is_cancelled(durable: DurableSetup) -> None:
    durable.start_worker()
    result = orders.async_order_that_raises.delay()
    wait_until_suspended(durable, result.id)

    cancel(result.id, app=durable.app)

    assert str(is_cancelled(result)) == "the run was cancelled before 'left'"
    assert [entry["state"] for entry in entries(durable.redis, result.id)] == ["cancelled", "sleeping"]
    ended(durable, result.id, "revoked")


def test_a_running_step_can_know(durable: DurableSetup) -> None:
    durable.start_worker(concurrency=2)
    results = [orders.watches.delay(), orders.watches_async.delay()]
    eventually(lambda: effects.count("watching") == 2)
    began = time.monotonic()

    for result in results:
        cancel(result.id, app=durable.app)

    # Nothing else of the context was asked for, so there was nothing to cancel.
    assert [result.get(timeout=15) for result in results] == ["stopped early"] * 2
    assert time.monotonic() - began < 8
    assert {result.state for result in results} == {"SUCCESS"}


# -- canvas ------------------------------------------------------------------------------------------------------------


def test_a_chord_with_a_cancelled_member_fails_once(durable: DurableSetup) -> None:
    durable.start_worker()
    body = orders.plain.s().on_error(orders.on_error.s())
    result = chord([orders.quick.s(), orders.base_class_order.s()], body).delay()
    member = result.parent[1]
    wait_until_suspended(durable, member.id)

    cancel(member.id, app=durable.app)

    is_cancelled(member)
    with pytest.raises(Exception, match="the run was cancelled before 'sleep'"):
        result.get(timeout=15)
    eventually(lambda: effects.count("on_error"))  # it is called after the result was stored
    wait_until_idle(durable)
    assert effects.count("plain") == 0
    assert effects.count("on_error") == 1


def test_a_chain_ends_with_its_cancelled_member(durable: DurableSetup) -> None:
    durable.start_worker()
    last = chain(orders.base_class_order.si(), orders.plain.si()).delay()
    wait_until_suspended(durable, last.parent.id)

    cancel(last.parent.id, app=durable.app)

    is_cancelled(last.parent)
    with pytest.raises(TaskCancelled):
        last.get(timeout=15)
    wait_until_idle(durable)
    assert effects.count("plain") == 0


# -- again, and too late -----------------------------------------------------------------------------------------------


def test_to_cancel_again_changes_nothing(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = orders.order.delay("asleep", "held")
    wait_until_suspended(durable, result.id)
    for _ in range(3):
        cancel(result.id, app=durable.app)
    effects.wait_until_blocked("notify")
    cancel(result.id, app=durable.app)
    effects.release("notify")

    is_cancelled(result)
    assert told(result.id) == ["409 the run was cancelled before 'pause'"]
    assert effects.counts("release", "notify", key=result.id) == [1, 1]
    assert received(worker, result.id) == 2


def test_runs_that_cannot_be_cancelled_say_why(durable: DurableSetup) -> None:
    waiting = orders.quick.delay()
    for task_id in ("unknown", waiting.id):
        with pytest.raises(RunNotCancellableError, match=rf"task {task_id} has no journal: is the id right"):
            cancel(task_id, app=durable.app)
    durable.start_worker()
    assert waiting.get(timeout=15) == "quick"
    cancelled = orders.order.delay("asleep")
    wait_until_suspended(durable, cancelled.id)
    cancel(cancelled.id, app=durable.app)
    is_cancelled(cancelled)
    for task_id, status in ((waiting.id, "SUCCESS"), (cancelled.id, "REVOKED")):
        wait_until_delivered(durable, task_id)
        before = journal(durable.redis, task_id)
        with pytest.raises(RunNotCancellableError, match=rf"task {task_id} has ended already, at 2\S+: {status}"):
            cancel(task_id, app=durable.app)
        assert journal(durable.redis, task_id) == before


def test_a_cancelled_run_cannot_be_retried_and_its_id_says_so(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = orders.order.delay("asleep")
    wait_until_suspended(durable, result.id)
    cancel(result.id, app=durable.app)
    is_cancelled(result)

    with pytest.raises(RunNotRetryableError, match="has not ended in FAILURE, it is REVOKED: nothing to retry"):
        retry.delay(result.id).get(timeout=15)
    orders.order.apply_async(("asleep",), task_id=result.id)

    eventually(lambda: received(worker, result.id) == 3)
    wait_until_idle(durable)
    is_cancelled(AsyncResult(result.id, app=durable.app))
    assert effects.counts("reserve", "release", key=result.id) == [1, 1]
    assert f"task {result.id} already finished" in worker.log()


# -- remote control ----------------------------------------------------------------------------------------------------


def asleep(durable: DurableSetup) -> AsyncResult:
    result = orders.order.delay("asleep")
    wait_until_suspended(durable, result.id)
    return result


def test_a_run_is_cancelled_by_remote_control(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = asleep(durable)

    def broadcast(task_id: str) -> Any:
        arguments = {"task_id": task_id}
        return durable.app.control.broadcast("durable_cancel", arguments=arguments, reply=True, timeout=5, limit=1)

    assert broadcast(result.id) == [{worker.hostname(): {"ok": f"run {result.id} is to be cancelled"}}]
    is_cancelled(result)
    (refused,) = broadcast("unknown")
    assert "task unknown has no journal" in refused[worker.hostname()]["error"]


def test_a_run_is_cancelled_from_the_command_line(durable: DurableSetup) -> None:
    durable.start_worker()
    result = asleep(durable)
    broker, backend = (durable.app.conf[name] for name in ("broker_url", "result_backend"))

    answer = subprocess.run(
        [
            *[sys.executable, "-m", "celery", "-A", "tests.smoke.apps.cancellation", "-b", broker],
            *["--result-backend", backend, "control", "--json", "durable_cancel", result.id],
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert f"run {result.id} is to be cancelled" in json.dumps(json.loads(answer.stdout))
    is_cancelled(result)


# -- revoke, which is something else -----------------------------------------------------------------------------------


def suspended_worker(durable: DurableSetup) -> tuple[Worker, AsyncResult]:
    return durable.start_worker(), asleep(durable)


def test_a_revoked_run_ends_without_compensation(durable: DurableSetup) -> None:
    _, result = suspended_worker(durable)

    durable.app.control.revoke(result.id)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=15)
    assert journal(durable.redis, result.id)["status"] == "revoked"
    assert told(result.id) == []
    assert effects.counts("reserve", "release", "notify", key=result.id) == [1, 0, 0]
    key = run_key(durable.redis, result.id)
    eventually(lambda: durable.redis.ttl(key) > 0, what="its delivery, a moment after the result")
    with pytest.raises(RunNotCancellableError, match="REVOKED"):
        cancel(result.id, app=durable.app)
