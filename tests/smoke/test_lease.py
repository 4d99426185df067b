"""An attempt that stood still beyond its lease records nothing, and starts no other step."""

import os
import signal

import pytest

from tests.smoke import effects
from tests.smoke.apps import crashes
from tests.smoke.nodes import DurableSetup
from tests.smoke.watching import countdowns, journal, steps, wait_until_delivered, wait_until_idle, wait_until_logged

TAKEN_OVER = "another attempt has taken over, or the run was revoked; this attempt ends"


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.crashes"


@pytest.mark.local_nodes(reason="stops a process by a signal")
def test_an_attempt_that_stood_still_records_nothing_of_its_step_when_it_wakes_up(durable: DurableSetup) -> None:
    worker = durable.start_worker(visibility_timeout=1)
    result = crashes.stale_inside.delay()
    stale = effects.wait_until_blocked("stale").pid
    os.kill(stale, signal.SIGSTOP)
    effects.release("stale")
    effects.wait_until_blocked("third")
    before = journal(durable.redis, result.id)
    os.kill(stale, signal.SIGCONT)
    wait_until_logged(worker, result.id, TAKEN_OVER)
    assert journal(durable.redis, result.id) == before
    effects.release("third")

    number, pid = result.get(timeout=10)

    assert number == 2
    assert pid != stale
    wait_until_idle(durable)
    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 2, 1]
    assert steps(durable.redis, result.id) == [("first", "done", 1), ("second", "done", 1), ("third", "done", 1)]
    assert result.state == "SUCCESS"


@pytest.mark.local_nodes(reason="stops a process by a signal")
def test_an_attempt_that_stood_still_changes_nothing_after_another_one_has_finished(durable: DurableSetup) -> None:
    worker = durable.start_worker(visibility_timeout=1)
    result = crashes.stale_inside.delay()
    stale = effects.wait_until_blocked("stale").pid
    os.kill(stale, signal.SIGSTOP)
    effects.release("stale")
    effects.release("third")
    value = result.get(timeout=20)
    wait_until_delivered(durable, result.id)
    before = journal(durable.redis, result.id)
    meta = durable.redis.get(f"celery-task-meta-{result.id}")
    os.kill(stale, signal.SIGCONT)
    wait_until_logged(worker, result.id, TAKEN_OVER)
    wait_until_idle(durable)

    assert value[0] == 2
    assert stale not in value
    assert journal(durable.redis, result.id) == before
    assert durable.redis.get(f"celery-task-meta-{result.id}") == meta
    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 2, 1]
    assert not countdowns(worker, result.id)


@pytest.mark.local_nodes(reason="stops a process by a signal")
def test_an_attempt_that_stood_still_between_steps_starts_no_other_step(durable: DurableSetup) -> None:
    worker = durable.start_worker(visibility_timeout=1)
    result = crashes.stale_between.delay()
    stale = effects.wait_until_blocked("stale").pid
    os.kill(stale, signal.SIGSTOP)
    effects.release("stale")
    effects.wait_until_blocked("third")
    os.kill(stale, signal.SIGCONT)
    wait_until_logged(worker, result.id, TAKEN_OVER)
    effects.release("third")

    first, second, third = result.get(timeout=10)

    assert first == stale
    assert second == third != stale
    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 1, 1]
