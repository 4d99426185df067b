"""Shutdowns of every kind: tasks end, or their leases are given back at once; no run is lost, and none waits."""

from typing import Any

import pytest
from celery.result import AsyncResult

from tests.smoke import effects
from tests.smoke.apps import recovery
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.runs import end_waits, journals, wait_for_messages, waiting
from tests.smoke.test_pools import POOLS, why_not
from tests.smoke.watching import journal, wait_until_idle, wait_until_suspended
from tests.waiting import eventually

LEASE = 60
SOON = 15
"""Seconds within which the next worker goes on; a lease that had to lapse, or a message to come back, takes longer."""
STEPS = ("first", "second", "third")

COLD: dict[str, dict[str, Any]] = {
    "cold": {"signal": "SIGQUIT"},
    "soft": {"signal": "SIGQUIT", "conf": {"worker_soft_shutdown_timeout": 0.5}},
    "remapped": {"signal": "SIGTERM", "env": {"REMAP_SIGTERM": "SIGQUIT"}},
    "remapped and soft": {
        "signal": "SIGTERM",
        "env": {"REMAP_SIGTERM": "SIGQUIT"},
        "conf": {"worker_soft_shutdown_timeout": 0.5},
    },
}


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.recovery"


@pytest.fixture(params=["prefork", "solo", "threads", "gevent"])
def pool(request: pytest.FixtureRequest) -> str:
    if request.param == "gevent" and (reason := why_not(request.param)):
        pytest.skip(f"{request.param} does not work here: {reason}")
    return request.param


def start(durable: DurableSetup, pool: str = "prefork", **options: Any) -> Worker:
    chosen = {**POOLS[pool], **options}
    chosen["env"] = {"DURABLE_TEST_LEASE": str(LEASE), **chosen.get("env", {})}
    return durable.start_worker(**chosen)


def start_held(pool: str = "prefork", *tasks: Any) -> list[AsyncResult]:
    """Start tasks that are held in their second step: one that was acknowledged early, one that is not, if both fit."""
    tasks = tasks or (recovery.early, recovery.late)[: POOLS[pool]["concurrency"]]
    held = [task.delay(held_at="second") for task in tasks]
    effects.wait_until_blocked("second", times=len(held))
    return held


def pid_of(result: AsyncResult, execution: int = 1) -> int:
    """Return the process of the second step."""
    return effects.hits("second", result.id)[execution - 1].pid


# -- tasks that end before


def test_a_warm_shutdown_lets_tasks_end_and_keeps_the_waits(durable: DurableSetup, pool: str) -> None:
    worker = start(durable, pool)
    asleep = recovery.sleeps.delay()
    wait_until_suspended(durable, asleep.id)
    held = start_held(pool)
    worker.kill("SIGTERM")
    eventually(lambda: "Warm shutdown" in worker.log())
    effects.release("second")
    worker.wait()

    assert [result.get(timeout=5) for result in held] == [[pid_of(result)] * 3 for result in held]
    assert effects.counts(*STEPS) == [len(held)] * 3
    assert waiting(durable.redis) == [asleep.id]
    assert journal(durable.redis, asleep.id)["status"] == "suspended"
    wait_for_messages(durable, 0, 0)


def test_a_soft_shutdown_lets_tasks_end_that_take_no_longer(durable: DurableSetup) -> None:
    worker = start(durable, conf={"worker_soft_shutdown_timeout": 8})
    held = start_held()
    worker.kill("SIGQUIT")
    eventually(lambda: "Initiating Soft Shutdown" in worker.log())
    effects.release("second")

    assert [result.get(timeout=SOON) for result in held] == [[pid_of(result)] * 3 for result in held]
    assert effects.counts(*STEPS) == [2, 2, 2]
    assert {run["attempt"] for run in journals(durable.redis).values()} == {"1"}


@pytest.mark.parametrize("others", ["threads", "solo"])
def test_a_cold_shutdown_of_a_pool_that_cannot_kill_lets_tasks_end(durable: DurableSetup, others: str) -> None:
    worker = start(durable, others)
    held = start_held(others)
    worker.kill("SIGQUIT")
    eventually(lambda: "Hitting Ctrl+C again will terminate" in worker.log())
    start(durable)
    effects.release("second")
    eventually(lambda: not worker.running, 20, what="the end of the worker")

    assert [result.get(timeout=SOON) for result in held] == [[pid_of(result)] * 3 for result in held]
    assert effects.counts(*STEPS, "failures") == [len(held)] * 3 + [0]
    assert {run["attempt"] for run in journals(durable.redis).values()} == {"1"}


# -- tasks that do not


@pytest.mark.parametrize("way", COLD)
def test_a_cold_shutdown_gives_leases_back_at_once(durable: DurableSetup, way: str) -> None:
    options = dict(COLD[way])
    signal = options.pop("signal")
    go_on_elsewhere(durable, "prefork", signal, **options)


def test_a_cold_shutdown_of_greenlets_gives_leases_back_too(durable: DurableSetup) -> None:
    if reason := why_not("gevent"):
        pytest.skip(f"gevent does not work here: {reason}")
    # Of one that was acknowledged early Celery tells the result backend, in an event loop that must not wait.
    go_on_elsewhere(durable, "gevent", "SIGQUIT", recovery.late, recovery.late)


def go_on_elsewhere(durable: DurableSetup, pool: str, signal: str, *tasks: Any, **options: Any) -> None:
    """End a worker amid steps: the next one begins those again, though leases and messages would last for long."""
    worker = start(durable, pool, **options)
    held = start_held(pool, *tasks)
    worker.kill(signal)
    eventually(lambda: not worker.running, 20, what="the end of the worker")
    assert waiting(durable.redis, "leases") == []
    assert waiting(durable.redis, "due") == sorted(result.id for result in held)
    heir = start(durable)
    effects.wait_until_blocked("second", times=4, deadline=SOON)
    effects.release("second")

    for result in held:
        assert result.get(timeout=SOON) == [pid_of(result), *[pid_of(result, execution=2)] * 2]
        assert pid_of(result, execution=2) in heir.children()
    wait_until_idle(durable)
    assert effects.counts(*STEPS, "failures") == [2, 4, 2, 0]
    runs = journals(durable.redis).values()
    assert {(run["attempt"], run["recoveries"]) for run in runs} == {("2", "0")}, "to be shut down is not to die"


def test_many_runs_survive_a_cold_shutdown(durable: DurableSetup) -> None:
    """Amid a step, waiting for a retry, asleep, and received but not begun."""
    worker = start(durable, concurrency=4)
    asleep = [recovery.sleeps.delay() for _ in range(3)]
    waiting_for_retry = [recovery.backs_off.delay(delay) for delay in (4, 3000)]
    ids = [result.id for result in (*asleep, *waiting_for_retry)]
    wait_until_suspended(durable, *ids)
    amid = [getattr(recovery, acks).delay(held_at="second") for acks in ("early", "late") * 2]
    effects.wait_until_blocked("second", times=4)
    unbegun = [recovery.quick.delay() for _ in range(3)]
    worker.kill("SIGQUIT")
    eventually(lambda: not worker.running, 20, what="the end of the worker")
    effects.release("second")
    end_waits(durable.redis)
    start(durable, concurrency=4)

    assert [len(result.get(timeout=SOON)) for result in amid] == [3] * 4
    assert [result.get(timeout=SOON) for result in asleep] == ["awake"] * 3
    assert [result.get(timeout=SOON) for result in waiting_for_retry] == [2, 2]
    assert [result.get(timeout=SOON) for result in unbegun] == ["done"] * 3
    wait_until_idle(durable)
    assert effects.counts(*STEPS) == [4, 8, 4]
    assert effects.counts("before", "after", "flaky") == [5, 3, 4]
    assert {run["attempt"] for run in journals(durable.redis).values()} == {"2"}
    eventually(lambda: waiting(durable.redis) == [])


def test_children_that_are_replaced_after_each_task_lose_nothing(durable: DurableSetup) -> None:
    start(durable, conf={"worker_max_tasks_per_child": 1})
    results = [recovery.backs_off.delay(0.05) for _ in range(5)]

    assert [result.get(timeout=30) for result in results] == [2] * 5
    wait_until_idle(durable)
    assert effects.counts("before", "flaky") == [5, 10]
    runs = journals(durable.redis)
    assert {(run["attempt"], run["recoveries"]) for run in runs.values()} == {("2", "0")}
    pids = [hit.pid for hit in effects.hits("flaky")]
    assert len(set(pids)) == 10, "each attempt in a child of its own"
    assert len(runs) == 5
