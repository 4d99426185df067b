"""A second message under the id of a run: nothing fires twice, and nothing of another run is touched."""

from typing import Any

import pytest
from celery import chain

from celery_durable import TerminalError
from tests.smoke import effects
from tests.smoke.apps import crashes
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import (
    deliver_again,
    journal,
    wait_until_delivered,
    wait_until_idle,
    wait_until_logged,
    waiting_message,
)
from tests.waiting import eventually

FORGOTTEN = "another attempt holds the lease; this message is forgotten"
FINISHED = "already finished at"


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.crashes"


def stored(durable: DurableSetup, task_id: str) -> str | None:
    """Return what the result backend holds, as it is."""
    return durable.redis.get(f"celery-task-meta-{task_id}")


def wait_for_the_end_of_all(durable: DurableSetup) -> None:
    """Wait until no message is left, and until one that a last task may have sent would have been executed."""
    wait_until_idle(durable)
    crashes.quick.delay().get(timeout=10)
    wait_until_idle(durable)


def test_a_duplicate_of_a_finished_chain_member_does_not_start_the_next_one_again(durable: DurableSetup) -> None:
    last = chain(crashes.three_steps.s(), crashes.follow.s()).apply_async()
    message = waiting_message(durable)
    worker = durable.start_worker(concurrency=1)
    value = last.get(timeout=10)
    before = stored(durable, last.parent.id)
    wait_until_delivered(durable, last.parent.id)
    deliver_again(durable, message)
    wait_until_logged(worker, f"task {last.parent.id} {FINISHED}", "use a new task_id to run again")
    wait_for_the_end_of_all(durable)

    assert [effects.count(name) for name in ("first", "second", "third")] == [1, 1, 1]
    assert effects.count("follow") == 1
    assert last.get() == value
    assert last.parent.state == "SUCCESS"
    assert stored(durable, last.parent.id) == before
    assert worker.log().count("crashes.follow[") == 2, "received once and succeeded once"


def test_a_duplicate_of_a_failed_run_calls_its_errback_no_second_time(durable: DurableSetup) -> None:
    result = crashes.refused.apply_async(("order 7",), link_error=crashes.note_error.s())
    message = waiting_message(durable)
    worker = durable.start_worker(concurrency=1, conf={"task_track_started": True})
    with pytest.raises(TerminalError) as first:
        result.get(timeout=10)
    wait_until_delivered(durable, result.id)
    before = durable.app.AsyncResult(result.id)
    before_traceback = before.traceback
    deliver_again(durable, message)
    wait_until_logged(worker, f"task {result.id} {FINISHED}")
    wait_for_the_end_of_all(durable)

    after = durable.app.AsyncResult(result.id)
    assert after.state == "FAILURE"
    assert type(after.result) is type(first.value)
    assert after.result.args == first.value.args == ("card declined", 402, {"order": "order 7"})
    assert "card declined" in after.traceback
    assert "card declined" in before_traceback
    assert effects.count("charge") == 1
    assert effects.hits("errbacks")[0].key == f"{result.id} TerminalError"
    assert effects.count("errbacks") == 1


def test_a_first_delivery_that_was_held_up_does_not_reopen_what_the_second_has_ended(durable: DurableSetup) -> None:
    """Its process stood still for longer than the visibility timeout, before it had opened the run."""
    worker = durable.start_worker(visibility_timeout=1)
    result = crashes.held_before_its_run.delay()
    effects.wait_until_blocked("before its run")

    with pytest.raises(TerminalError):
        result.get(timeout=20)
    wait_until_delivered(durable, result.id)
    effects.release("before its run")

    wait_until_logged(worker, f"task {result.id} {FINISHED}")
    wait_for_the_end_of_all(durable)
    assert effects.count("charge") == 1
    assert journal(durable.redis, result.id)["attempt"] == "1"
    assert result.state == "FAILURE"


def test_a_duplicate_of_a_live_run_changes_nothing(durable: DurableSetup) -> None:
    last = chain(crashes.three_steps.s(held_at="second"), crashes.follow.s()).apply_async()
    message = waiting_message(durable)
    worker = durable.start_worker()
    pid = effects.wait_until_blocked("second").pid
    deliver_again(durable, message)
    wait_until_logged(worker, last.parent.id, "another attempt holds the lease; this message is forgotten")
    effects.release("second")

    assert last.get(timeout=10)[0] == [pid] * 3
    wait_for_the_end_of_all(durable)
    assert [effects.count(name) for name in ("first", "second", "third", "follow")] == [1, 1, 1, 1]
    assert journal(durable.redis, last.parent.id)["attempt"] == "1"


def test_a_duplicate_of_a_suspended_run_waits_as_long_as_the_run(durable: DurableSetup) -> None:
    result = crashes.slow_retry.delay()
    message = waiting_message(durable)
    worker = durable.start_worker()
    eventually(lambda: result.state == "RETRY")
    deliver_again(durable, message)
    wait_until_logged(worker, f"[{result.id}] received", times=3)

    assert result.get(timeout=10)[1] == 2
    wait_for_the_end_of_all(durable)
    first, second = effects.hits("flaky", result.id)
    assert second.at - first.at >= 1
    assert effects.count("first", result.id) == 1
    assert journal(durable.redis, result.id)["attempt"] == "2"


def test_a_duplicate_of_an_ignored_run_is_forgotten(durable: DurableSetup) -> None:
    result = crashes.ends_by.delay("ignore")
    message = waiting_message(durable)
    worker = durable.start_worker(concurrency=1)
    wait_until_logged(worker, f"[{result.id}] ignored")
    deliver_again(durable, message)
    wait_until_logged(worker, f"[{result.id}] ignored", times=2)

    assert effects.count("bodies", result.id) == 1
    assert result.state == "PENDING"


def assert_refused(durable: DurableSetup, worker: Worker, task_id: str, why: str, before: str | None) -> None:
    wait_until_logged(worker, f"task {task_id} refused: the id belongs to a run of {why}")
    wait_for_the_end_of_all(durable)
    assert stored(durable, task_id) == before


@pytest.mark.parametrize("ended", ["SUCCESS", "FAILURE"])
def test_the_id_of_a_finished_run_is_refused_to_another_task(durable: DurableSetup, ended: str) -> None:
    worker = durable.start_worker(concurrency=1)
    result: Any = crashes.three_steps.delay() if ended == "SUCCESS" else crashes.refused.delay("order 7")
    result.get(timeout=10, propagate=False)
    assert result.state == ended
    before, journal_before = stored(durable, result.id), journal(durable.redis, result.id)
    crashes.other_task.apply_async(task_id=result.id)

    assert_refused(durable, worker, result.id, journal_before["task"], before)
    assert effects.count("other") == 0
    assert journal(durable.redis, result.id) == journal_before | {"delivered": "1"}


def test_the_id_of_a_live_run_is_refused_to_another_task_and_to_other_arguments(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = crashes.held_task.delay("7")
    effects.wait_until_blocked("held")
    crashes.other_task.apply_async(task_id=result.id)
    wait_until_logged(worker, f"task {result.id} refused", "crashes.held_task; send it")
    crashes.held_task.apply_async(("8",), task_id=result.id)
    wait_until_logged(worker, f"task {result.id} refused", "crashes.held_task with other arguments; send it")
    assert stored(durable, result.id) is None
    effects.release("held")

    assert result.get(timeout=10) == "order 7"
    wait_for_the_end_of_all(durable)
    assert effects.count("held") == 1
    assert effects.count("other") == 0
    assert result.state == "SUCCESS"


def test_a_refused_message_leaves_the_state_of_a_failed_run_though_starts_are_tracked(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=1, conf={"task_track_started": True})
    result = crashes.refused.delay("order 7")
    result.get(timeout=10, propagate=False)
    wait_until_delivered(durable, result.id)
    before = durable.app.AsyncResult(result.id).result
    crashes.refused.apply_async(("order 8",), task_id=result.id)
    wait_until_logged(worker, f"task {result.id} refused", "with other arguments")
    wait_for_the_end_of_all(durable)

    after = durable.app.AsyncResult(result.id)
    assert after.state == "FAILURE"
    assert after.result.args == before.args
    assert effects.count("charge") == 1


def test_a_duplicate_of_a_task_that_was_replaced_is_refused(durable: DurableSetup) -> None:
    result = crashes.replaced.delay()
    message = waiting_message(durable)
    worker = durable.start_worker(concurrency=1)
    value = result.get(timeout=10)
    wait_until_delivered(durable, result.id)
    before = stored(durable, result.id)
    deliver_again(durable, message)

    assert_refused(durable, worker, result.id, crashes.replacement.name, before)
    assert effects.count("step", result.id) == 1
    assert effects.count("step of the replacement", result.id) == 2
    assert result.get() == value


# -- the broker delivers a message again -------------------------------------------------------------------------------


def test_a_step_longer_than_the_visibility_timeout_is_executed_once(durable: DurableSetup) -> None:
    worker = durable.start_worker(visibility_timeout=1)
    result = crashes.three_steps.delay(held_at="second")
    pid = effects.wait_until_blocked("second").pid
    wait_until_logged(worker, FORGOTTEN)
    wait_until_idle(durable)
    assert result.state == "PENDING"
    effects.release("second")

    assert result.get(timeout=10) == [pid] * 3
    wait_until_idle(durable)
    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 1, 1]
    assert journal(durable.redis, result.id)["attempt"] == "1"
    assert result.state == "SUCCESS"


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_two_messages_of_one_run_after_a_retry_was_published_and_not_acknowledged(
    durable: DurableSetup, victim: str
) -> None:
    worker = durable.start_worker(visibility_timeout=2)
    result = crashes.published_twice.delay()
    publisher = effects.wait_until_blocked("published").pid
    # Its message is unacknowledged, and the retry begins at once in the other process.
    effects.wait_until_blocked("third")
    if victim == "child":
        worker.kill_child(publisher)
    else:
        worker.kill()
        worker.restart()
        effects.wait_until_blocked("third", times=2)
    wait_until_logged(worker, FORGOTTEN)
    effects.release("third")

    first, number, _ = result.get(timeout=20)

    assert (first, number) == (publisher, 2)
    wait_until_idle(durable)
    assert effects.count("first", result.id) == 1
    assert effects.count("planned", result.id) == 2
    assert effects.count("third", result.id) == (1 if victim == "child" else 2)
    assert result.state == "SUCCESS"
