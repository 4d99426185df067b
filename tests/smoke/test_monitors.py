"""What monitors are told of a run: the state that they read in the events of Celery is what becomes of it."""

from typing import Any

import pytest
from celery.result import AsyncResult

from celery_durable import TaskCancelled, TerminalError, cancel
from celery_durable.delivery.message import HEADER
from tests.smoke import effects
from tests.smoke.apps import monitors
from tests.smoke.monitor import Monitor
from tests.smoke.nodes import DurableSetup
from tests.smoke.watching import (
    deliver_again,
    elapse,
    journal,
    wait_until_delivered,
    wait_until_suspended,
    waiting_message,
)
from tests.waiting import eventually

pytestmark = pytest.mark.local_nodes(reason="the monitor runs in this process")


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.monitors"


ASLEEP = ["received RECEIVED", "started STARTED", "suspended SUSPENDED"]


def asleep(durable: DurableSetup, monitor: Monitor, task: Any = monitors.sleeper, *args: Any) -> AsyncResult:
    result = task.apply_async(args or ("bed",), link_error=monitors.errback.s())
    monitor.wait_for(result, *ASLEEP)
    wait_until_suspended(durable, result.id)
    return result


def hooks(result: AsyncResult) -> list[str]:
    return [hit.key.partition(" ")[2] for hit in effects.hits("hook") if hit.key.startswith(result.id)]


def signalled(result: AsyncResult) -> list[str]:
    return [hit.key.partition(" ")[2] for hit in effects.hits("signal") if hit.key.startswith(result.id)]


# -- a run that waits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_sleeper_reads_suspended_then_started_then_success(
    durable: DurableSetup, monitor: Monitor, pool: str
) -> None:
    durable.start_worker(pool=pool, extra=["-E"])
    result = asleep(durable, monitor)

    elapse(durable, result.id)
    effects.wait_until_blocked("go on")
    if pool != "solo":  # whose worker says nothing as long as a task runs
        monitor.wait_for(result, "started STARTED")
    effects.release("go on")

    assert result.get(timeout=20) == "done"
    monitor.wait_for(result, "received SUSPENDED", "started STARTED", "succeeded SUCCESS")
    assert monitor.history(result)[:3] == ASLEEP
    assert len(monitor.history(result)) == 6


def test_a_retry_that_the_journal_carries_reads_retry_then_started(durable: DurableSetup, monitor: Monitor) -> None:
    durable.start_worker(extra=["-E"])
    result = monitors.backs_off.delay()
    monitor.wait_for(result, "received RECEIVED", "started STARTED", "retried RETRY")
    wait_until_suspended(durable, result.id)

    elapse(durable, result.id)
    monitor.wait_for(result, "started STARTED")
    effects.release("go on")

    monitor.wait_for(result, "started STARTED", "succeeded SUCCESS")
    assert [monitor.counted(result, kind) for kind in ("retried", "failed", "succeeded")] == [1, 0, 1]


def test_a_message_that_comes_too_early_leaves_a_sleeper_suspended(durable: DurableSetup, monitor: Monitor) -> None:
    durable.start_worker(extra=["-E"])
    result = asleep(durable, monitor)

    monitors.sleeper.apply_async(("bed",), task_id=result.id, headers={HEADER: {"hint": 1}})

    monitor.wait_for(result, "received SUSPENDED", "started STARTED", "suspended SUSPENDED")
    assert journal(durable.redis, result.id)["attempt"] == "1"


def test_a_run_that_waits_for_another_build_reads_stalled(durable: DurableSetup, monitor: Monitor) -> None:
    first, second = (
        {"conf": {"durable_build": name}, "env": {"STEP": f"step of {name}"}, "extra": ["-E"]} for name in ("b1", "b2")
    )
    worker = durable.start_worker(**first)
    result = monitors.deployed.delay()
    monitor.wait_for(result, *ASLEEP)
    wait_until_suspended(durable, result.id)
    worker.stop()

    durable.start_worker(**second)
    elapse(durable, result.id)
    monitor.wait_for(result, "received SUSPENDED", "started STARTED", "stalled STALLED")

    durable.app.control.revoke(result.id)
    eventually(lambda: monitor.history(result)[-1] == "revoked REVOKED", what="the end")


def test_where_events_are_off_nothing_is_sent(durable: DurableSetup, monitor: Monitor) -> None:
    durable.start_worker()
    result = monitors.sleeper.delay("bed")
    wait_until_suspended(durable, result.id)
    cancel(result.id, app=durable.app)

    with pytest.raises(TaskCancelled):
        result.get(timeout=20)
    wait_until_delivered(durable, result.id)
    eventually(lambda: signalled(result), what="the signal")
    assert monitor.history(result) == []


# -- a run that ends by the hand of an operator ------------------------------------------------------------------------


CANCELLED = [
    "on_failure TaskCancelled ['bed'] TaskCancelled",
    "after_return REVOKED TaskCancelled ['bed']",
]


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_cancelled_sleeper_ends_as_revoked_for_all_who_watch(
    durable: DurableSetup, monitor: Monitor, pool: str
) -> None:
    durable.start_worker(pool=pool, extra=["-E"])
    result = asleep(durable, monitor)

    cancel(result.id, app=durable.app)

    with pytest.raises(TaskCancelled):
        result.get(timeout=20)
    monitor.wait_for(result, "started STARTED", "revoked REVOKED")
    eventually(lambda: signalled(result), what="the signal")
    assert hooks(result) == CANCELLED
    assert signalled(result) == ["task_revoked False None False"]
    assert [monitor.counted(result, kind) for kind in ("revoked", "failed", "succeeded")] == [1, 0, 0]
    # As of a revoked task in Celery: whoever ends it knows.
    assert effects.count("errback") == 0


def test_a_run_that_is_cancelled_amid_a_step_ends_as_revoked(durable: DurableSetup, monitor: Monitor) -> None:
    durable.start_worker(extra=["-E"])
    result = monitors.stepper.delay("bed")
    effects.wait_until_blocked("step")
    cancel(result.id, app=durable.app)

    effects.release("step")

    monitor.wait_for(result, "received RECEIVED", "started STARTED", "revoked REVOKED")
    eventually(lambda: signalled(result), what="the signal")
    assert hooks(result) == CANCELLED


@pytest.mark.parametrize("by", ["id", "stamp"])
def test_a_revoked_sleeper_reads_revoked_and_its_hooks_are_not_called(
    durable: DurableSetup, monitor: Monitor, by: str
) -> None:
    """As of a task in Celery that is revoked before it runs again."""
    durable.start_worker(extra=["-E"])
    signature = monitors.sleeper.s()
    signature.stamp(order="o-1")
    result = asleep(durable, monitor, signature)

    if by == "id":
        durable.app.control.revoke(result.id)
    else:
        durable.app.control.revoke_by_stamped_headers({"order": "o-1"})

    monitor.wait_for(result, *ASLEEP, "revoked REVOKED")
    eventually(lambda: signalled(result), what="the signal")
    assert signalled(result) == ["task_revoked False None False"]
    assert hooks(result) == []


# -- a run that has failed, or ended, and more messages ----------------------------------------------------------------


def test_a_failed_run_that_is_retried_reads_started_then_success_and_failed_no_more(
    durable: DurableSetup, monitor: Monitor
) -> None:
    durable.start_worker(extra=["-E"])
    result = monitors.refused.delay()
    monitor.wait_for(result, "started STARTED", "failed FAILURE")
    wait_until_delivered(durable, result.id)
    assert monitor.state.tasks[result.id].exception == "TerminalError('not yet', 503, None)"

    durable.app.tasks["celery_durable.retry"].delay(result.id)
    monitor.wait_for(result, "received FAILURE", "started STARTED")
    effects.release("go on")

    monitor.wait_for(result, "succeeded SUCCESS")
    watched = monitor.state.tasks[result.id]
    assert (watched.failed, watched.exception, watched.traceback) == (None, None, None)


@pytest.mark.parametrize("task", [monitors.quick, monitors.refused], ids=["succeeded", "failed"])
def test_a_copy_of_the_message_of_a_run_that_is_over_changes_nothing(
    durable: DurableSetup, monitor: Monitor, task: Any
) -> None:
    result = task.delay()
    message = waiting_message(durable)
    durable.start_worker(extra=["-E"])
    state = "SUCCESS" if task is monitors.quick else "FAILURE"
    kind = "succeeded" if task is monitors.quick else "failed"
    monitor.wait_for(result, "started STARTED", f"{kind} {state}")
    wait_until_delivered(durable, result.id)
    before = monitor.state.tasks[result.id].as_dict()

    deliver_again(durable, message)

    monitor.wait_for(result, f"received {state}", "started STARTED", f"{state} {state}")
    after = monitor.state.tasks[result.id].as_dict()
    assert monitor.counted(result, kind) == 1
    for fact in ("state", "exception", "result"):
        assert after[fact] == before[fact]
    assert (after["failed"] is None) == (before["failed"] is None)
    if task is monitors.refused:
        with pytest.raises(TerminalError):
            result.get(timeout=10)
