"""Every pool of Celery: retry and replay, async tasks, many runs at a time, leases, the death of the worker."""

import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.smoke import effects
from tests.smoke.apps import pools
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import wait_for_renewals
from tests.waiting import eventually

LONG = 40
"""Seconds for a run that survives a death or a few retries, on a busy machine."""

POOLS: dict[str, dict[str, Any]] = {
    "prefork": {"concurrency": 2},
    "prefork, spawned": {"concurrency": 2, "conf": {"worker_pool_start_method": "spawn"}},
    "solo": {"pool": "solo", "concurrency": 1},
    "threads": {"pool": "threads", "concurrency": 4},
    "gevent": {"pool": "gevent", "concurrency": 4},
    "eventlet": {"pool": "eventlet", "concurrency": 4},
}

RESTORING = {
    "visibility_timeout": 1,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 1,
    # In green pools kombu looks for unacknowledged messages only when a BRPOP outlasts the 2 s of Celery's loop; with
    # the default of 1 s a worker without other tasks never does, whatever the task.
    "polling_interval": 5,
}
"""So that a message that a worker took with it is delivered again soon."""


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.pools"


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    if request.param in ("gevent", "eventlet") and (reason := why_not(request.param)):
        pytest.skip(f"{request.param} does not work here: {reason}")
    return request.param


@cache
def why_not(library: str) -> str:
    """Why this Python cannot be patched by a library, or an empty string."""
    patch = {
        "gevent": "from gevent import monkey; monkey.patch_all()",
        "eventlet": "import eventlet as e; e.monkey_patch()",
    }
    program = f"{patch[library]}; import socket, threading"
    tried = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    return tried.stderr.strip().rpartition("\n")[2] if tried.returncode else ""


def start(durable: DurableSetup, pool: str, *, lease: float = 30, **options: Any) -> Worker:
    chosen = {**POOLS[pool], **options}
    chosen["conf"] = {"durable_lease": lease, **chosen.get("conf", {})}
    return durable.start_worker(**chosen)


def test_retries_replay_in_every_pool(durable: DurableSetup, pool: str) -> None:
    """Several runs at a time, in `def` and `async def` tasks: none sees another's context or steps."""
    start(durable, pool)
    results = [task.delay() for _ in range(3) for task in (pools.order, pools.order_async)]

    found = {result.id: result.get(timeout=LONG) for result in results}
    for task_id, (first, second, _, charged) in found.items():
        assert first == second == task_id
        assert charged == 3
    assert len({drawn for _, _, drawn, _ in found.values()}) == 6
    assert effects.executions("reserve") == [2] * 6
    assert effects.executions("charge") == [3] * 6
    assert effects.executions("found") == [2] * 6


def test_limits_are_exact_in_every_pool(durable: DurableSetup, pool: str) -> None:
    start(durable, pool)
    result = pools.exhausted.delay()

    assert result.get(timeout=LONG) == 4
    assert effects.count("fail", result.id) == 4


def test_steps_of_an_async_task_run_side_by_side_in_every_pool(durable: DurableSetup, pool: str) -> None:
    start(durable, pool)

    assert pools.steps_side_by_side.delay().get(timeout=LONG) == ["a", "b", "c"]
    assert effects.executions("met") == [1, 1, 1]


@pytest.mark.parametrize("task", ["held", "held_async"])
def test_as_many_steps_wait_at_a_time_as_the_pool_has_slots(durable: DurableSetup, pool: str, task: str) -> None:
    """A step that waits holds up nobody else, and its lease is renewed meanwhile."""
    start(durable, pool, lease=1)
    slots = POOLS[pool]["concurrency"]
    results = [getattr(pools, task).delay() for _ in range(slots)]
    effects.wait_until_blocked("held", times=slots)
    wait_for_renewals(durable, slots)
    effects.release("held")

    assert [result.get(timeout=LONG) for result in results] == [1] * slots
    assert effects.executions("before") == effects.executions("held") == [1] * slots


@pytest.mark.parametrize("task", ["held", "held_async"])
def test_a_run_goes_on_after_the_worker_was_killed_in_a_step(durable: DurableSetup, pool: str, task: str) -> None:
    worker = start(durable, pool, lease=1, conf={**POOLS[pool].get("conf", {}), "broker_transport_options": RESTORING})
    result = getattr(pools, task).delay()
    effects.wait_until_blocked("held")
    worker.kill()
    effects.release("held")
    worker.restart()

    assert result.get(timeout=LONG) == 2
    assert effects.count("before", result.id) == 1
    assert effects.count("held", result.id) == 2


def test_a_warm_shutdown_lets_a_run_end_in_every_pool(durable: DurableSetup, pool: str) -> None:
    worker = start(durable, pool)
    result = pools.held.delay()
    effects.wait_until_blocked("held")
    worker.kill("SIGTERM")
    eventually(lambda: "Warm shutdown" in worker.log())
    effects.release("held")
    worker.wait()

    assert result.get(timeout=5) == 1
    assert effects.executions("before") == effects.executions("held") == [1]
