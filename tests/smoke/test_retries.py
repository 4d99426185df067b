"""Steps and tasks that fail: how often each is executed, after which waits, and what the caller receives."""

import json
from itertools import pairwise
from typing import Any

import pytest
from celery import chain
from celery.exceptions import MaxRetriesExceededError, TimeLimitExceeded

from celery_durable import JournalMismatchError, RetriesExhausted, TerminalError
from celery_durable.operate.tasks import retry
from tests.smoke import effects
from tests.smoke.apps import crashes
from tests.smoke.nodes import DurableSetup
from tests.smoke.watching import (
    announced_delays,
    countdowns,
    journal,
    logged,
    outcome,
    steps,
    wait_for_countdowns,
    wait_until_delivered,
    wait_until_idle,
    wait_until_logged,
)
from tests.waiting import eventually


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.crashes"


def waits(name: str, task_id: str) -> list[float]:
    """Return the seconds between the executions of an action."""
    moments = [hit.at for hit in effects.hits(name, task_id)]
    return [later - earlier for earlier, later in pairwise(moments)]


# -- the policy of a step ----------------------------------------------------------------------------------------------


def test_a_failed_step_is_retried_by_its_policy_and_finished_steps_are_replayed(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    policy = {"initial_retry_interval": 0.1, "retry_interval_factor": 3, "max_retry_interval": 0.5}
    result = crashes.planned.delay(["fail", "fail", "fail", "work"], **policy)

    before, number, _ = result.get(timeout=10)

    expected = [0.1, 0.3, 0.5]
    assert number == 4
    wait_for_countdowns(worker, result.id, expected)
    actual = waits("planned", result.id)
    assert all(wait >= due for wait, due in zip(actual, expected, strict=True)), actual
    assert effects.hits("before", result.id)[0].pid == before
    assert [effects.count(name, result.id) for name in ("before", "planned", "after")] == [1, 4, 1]
    for execution, wait in enumerate(expected, start=1):
        failure = f"ConnectionError: failure {execution}"
        assert logged(
            worker, f"step 'planned' failed (execution {execution} of any number): {failure}; next try in {wait} s"
        )


def test_a_step_that_waits_for_its_retry_shows_its_own_error(durable: DurableSetup) -> None:
    durable.start_worker()
    result = crashes.planned.delay(["fail", "work"], initial_retry_interval=1)
    eventually(lambda: result.state == "RETRY")

    assert isinstance(result.result, ConnectionError)
    assert str(result.result) == "failure 1"
    assert "in by_plan" in result.traceback
    run = journal(durable.redis, result.id)
    assert run["status"] == "suspended"
    assert int(run["due"]) - 1000 == pytest.approx(effects.hits("planned")[0].at * 1000, abs=500)
    assert result.get(timeout=10)[1] == 2


def test_a_step_succeeds_on_the_third_of_four_attempts(durable: DurableSetup) -> None:
    durable.start_worker()
    result = crashes.planned.delay(["fail", "fail", "work"], max_attempts=4)

    assert result.get(timeout=10)[1] == 3
    assert effects.count("planned", result.id) == 3


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_step_that_always_fails_is_executed_exactly_as_often_as_allowed(durable: DurableSetup, attempts: int) -> None:
    worker = durable.start_worker()
    result = crashes.planned.delay(["fail"], max_attempts=attempts)

    with pytest.raises(RetriesExhausted) as raised:
        result.get(timeout=10)

    assert effects.count("planned", result.id) == raised.value.attempts == attempts
    assert raised.value.last_error_type == "ConnectionError"
    assert raised.value.last_error_message == f"failure {attempts}"
    assert "in by_plan" in raised.value.last_error_traceback
    eventually(lambda: len(countdowns(worker, result.id)) == attempts - 1, what="the retries in the log")
    assert effects.count("after", result.id) == 0
    assert result.state == "FAILURE"


def test_a_step_of_siblings_that_always_fails_is_executed_exactly_three_times(durable: DurableSetup) -> None:
    durable.start_worker()
    result = crashes.siblings.delay(["fail"])

    assert "failed 3 times" in result.get(timeout=10)[0]
    assert effects.count("planned", result.id) == 3
    assert [effects.count(name, result.id) for name in ("left", "right", "after")] == [1, 1, 1]


# -- the policy of the task --------------------------------------------------------------------------------------------


def test_a_task_that_fails_outside_of_steps_is_retried_by_its_own_policy(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = crashes.planned_body.delay(failures=2)

    assert result.get(timeout=10) == 3
    assert effects.count("step", result.id) == 1
    assert effects.count("bodies", result.id) == 3
    wait_for_countdowns(worker, result.id, [0.5, 1.0])
    first, second = waits("bodies", result.id)
    assert first >= 0.5
    assert second >= 1.0
    failed = "failed: ConnectionError: no route; next try in"
    # The first attempt has recorded a step, the second none: the count goes on.
    assert logged(worker, f"task {result.id}: attempt 1 of 70 {failed} 0.5 s")
    assert logged(worker, f"task {result.id}: attempt 2 of 70 {failed} 1 s")


def test_a_recorded_step_begins_the_count_of_failed_attempts_again(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = crashes.three_attempts.delay()

    with pytest.raises(ConnectionError, match="no route"):
        result.get(timeout=10)

    assert effects.count("first", result.id) == 3
    assert effects.count("bodies", result.id) == 3
    wait_for_countdowns(worker, result.id, [0.05, 0.1, 0.05, 0.1])
    assert announced_delays(worker, result.id) == [0.05, 0.1, 0.05, 0.1]
    assert logged(worker, f"task {result.id}: attempt 3 failed for good")
    assert journal(durable.redis, result.id)["status"] == "failed"


# -- Celery's own ways to end an attempt -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task", [crashes.retries_itself, crashes.base_class_retries_itself], ids=["decorator", "base class"]
)
def test_retries_of_a_step_do_not_count_towards_those_of_the_task(durable: DurableSetup, task: Any) -> None:
    worker = durable.start_worker()
    result = task.delay()

    with pytest.raises(MaxRetriesExceededError):
        result.get(timeout=10)

    assert effects.count("step", result.id) == 5
    assert effects.count("bodies", result.id) == 3
    wait_for_countdowns(worker, result.id, [0.05, 0.1, 0.2, 0.4, 0.05, 0.05])
    assert announced_delays(worker, result.id) == [0.05, 0.1, 0.2, 0.4], "those of the step"
    assert result.state == "FAILURE"


def test_a_retry_with_other_arguments_keeps_the_run(durable: DurableSetup) -> None:
    durable.start_worker()
    result = crashes.retries_with.delay("first")

    assert result.get(timeout=10) == ["second", "second"]
    assert effects.count("step", result.id) == 1
    assert effects.count("flaky", result.id) == 2
    assert effects.count("after the change", result.id) == 2
    assert json.loads(journal(durable.redis, result.id)["call"])["args"] == ["second"]


def test_a_retry_that_cannot_be_sent_fails_nothing(durable: DurableSetup) -> None:
    """Whatever keeps it from being sent: the message goes back to the broker, and the journal has the due time."""
    worker = durable.start_worker()
    result = crashes.flaky_with_trouble.delay(sending="never")

    assert result.get(timeout=15) == 2

    wait_until_idle(durable)
    assert [effects.count(name, result.id) for name in ("first", "flaky")] == [1, 2]
    assert effects.count("sendings") == 1
    assert logged(worker, result.id, "its retry could not be published", "no route")
    assert journal(durable.redis, result.id)["status"] == "succeeded"


def test_an_own_retry_of_an_acknowledged_message_that_is_not_sent_is_left_to_the_journal(durable: DurableSetup) -> None:
    worker = durable.start_worker(conf={"durable_lease": 1})
    result = crashes.acknowledged_early.delay(sending="away")

    assert result.get(timeout=15) == 1, "one retry"
    wait_until_idle(durable)
    assert logged(worker, result.id, "sent again, its wait is over")
    assert journal(durable.redis, result.id)["status"] == "succeeded"
    assert effects.count("step", result.id) == 1
    assert effects.count("bodies", result.id) == 2


def test_a_chain_whose_next_task_could_not_be_sent_goes_on_by_a_retry(durable: DurableSetup) -> None:
    durable.start_worker()
    last = chain(crashes.three_steps.s(), crashes.sent_with_trouble.s(sending="away")).apply_async()
    first = last.parent
    eventually(lambda: first.state == "FAILURE")
    wait_until_idle(durable)
    run = journal(durable.redis, first.id)
    assert run["status"] == "succeeded"
    assert "delivered" not in run

    assert "succeeded" in retry.delay(first.id).get(timeout=10)["note"]

    # Celery has stored the failure for the whole chain, and `last` remembers that of its parent.
    eventually(lambda: durable.app.AsyncResult(last.id).state == "SUCCESS", 20)
    earlier, _ = durable.app.AsyncResult(last.id).get(timeout=10)
    wait_until_delivered(durable, first.id)
    assert durable.app.AsyncResult(first.id).get(timeout=10) == earlier
    assert [effects.count(name) for name in ("first", "second", "third", "follow")] == [1, 1, 1, 1]
    assert journal(durable.redis, first.id)["attempt"] == "1"


def test_an_ignored_task_ends_without_a_result(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = crashes.ends_by.delay("ignore")
    wait_until_logged(worker, f"[{result.id}] ignored")
    wait_until_idle(durable)

    run = journal(durable.redis, result.id)
    assert run["status"] == "ignored"
    assert run["attempt"] == "1"
    assert result.state == "PENDING"
    assert effects.count("step", result.id) == effects.count("bodies", result.id) == 1


def test_a_rejected_task_fails(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = crashes.ends_by.delay("reject")
    eventually(lambda: result.state == "FAILURE")
    wait_until_idle(durable)

    assert journal(durable.redis, result.id)["status"] == "failed"
    assert effects.count("step", result.id) == effects.count("bodies", result.id) == 1
    assert not countdowns(worker, result.id)


def test_a_task_rejected_to_be_requeued_goes_on_at_once(durable: DurableSetup) -> None:
    durable.start_worker(conf={"durable_lease": 30})
    result = crashes.ends_by.delay("requeue")

    assert result.get(timeout=10) == 2
    assert effects.count("step", result.id) == 1
    assert effects.count("bodies", result.id) == 2


def test_a_durable_task_hands_its_id_on_to_the_durable_task_that_replaces_it(durable: DurableSetup) -> None:
    durable.start_worker()
    result = crashes.replaced.delay()

    pid, number = result.get(timeout=10)

    assert effects.hits("step", result.id)[0].pid == pid
    assert effects.count("step", result.id) == 1
    assert effects.count("step of the replacement", result.id) == number == 2
    run = journal(durable.redis, result.id)
    assert run["task"] == crashes.replacement.name
    assert run["status"] == "succeeded"


# -- errors of users ---------------------------------------------------------------------------------------------------


def test_terminal_errors_reach_their_callers_and_the_worker_stays_healthy(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=1)
    for order in ("1", "2", "3"):
        result = crashes.refused.delay(order)
        with pytest.raises(TerminalError, match="card declined") as raised:
            result.get(timeout=10)
        assert raised.value.status_code == 402
        assert raised.value.metadata == {"order": order}
        assert effects.count("charge", result.id) == 1
        assert steps(durable.redis, result.id) == [("charge", "failed", 1)]

    assert crashes.quick.delay().get(timeout=10) == "done"
    assert "retry: Retry in" not in worker.log()


def test_a_terminal_error_is_the_same_after_a_replay(durable: DurableSetup) -> None:
    durable.start_worker()
    result = crashes.compensates.delay("7")

    with pytest.raises(TerminalError, match="card declined") as raised:
        result.get(timeout=10)

    assert raised.value.args == ("card declined", 402, {"order": "7"})
    assert [hit.key for hit in effects.hits("caught")] == [str(["TerminalError", *raised.value.args])] * 2
    assert effects.count("charge", result.id) == 1
    assert effects.count("compensate", result.id) == 2


def test_another_step_than_the_recorded_one_ends_the_run(durable: DurableSetup) -> None:
    durable.start_worker()
    result = crashes.changes_its_mind.delay()

    with pytest.raises(JournalMismatchError, match=r"position: 1\n.*recorded: step 'left'\n.*asked for: step 'right'"):
        result.get(timeout=10)

    assert effects.count("bodies", result.id) == 2
    assert [effects.count(name, result.id) for name in ("left", "right", "following")] == [1, 0, 1]
    assert effects.count("seen by user code") == 0
    run = journal(durable.redis, result.id)
    assert run["status"] == "failed"
    assert {field for field in run if ":" in field} == {"uuid:1", "step:1", "step:2"}
    assert steps(durable.redis, result.id) == [("left", "done", 1), ("following", "retrying", 1)]


def test_a_recorded_step_that_the_task_does_not_reach_ends_the_run(durable: DurableSetup) -> None:
    durable.start_worker()
    result = crashes.forgets_a_step.delay()

    with pytest.raises(JournalMismatchError, match=r"position: 2\n.*recorded: step 'second'\n.*the end of the task"):
        result.get(timeout=10)

    assert [effects.count(name, result.id) for name in ("first", "bodies", "second")] == [1, 2, 1]
    assert steps(durable.redis, result.id) == [("first", "done", 1), ("second", "retrying", 1)]


# -- time limits -------------------------------------------------------------------------------------------------------


def test_a_soft_time_limit_inside_a_step_is_a_failed_execution_of_it(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = crashes.soft_limited.delay(max_attempts=2)

    assert result.get(timeout=10) == 2
    assert effects.count("limited", result.id) == 2
    assert effects.count("before", result.id) == 1
    assert logged(worker, "step 'limited' failed (execution 1 of 2): SoftTimeLimitExceeded")
    wait_for_countdowns(worker, result.id, [0.05])


def test_a_soft_time_limit_exhausts_a_step_with_one_attempt(durable: DurableSetup) -> None:
    durable.start_worker()
    result = crashes.soft_limited.delay(max_attempts=1)

    with pytest.raises(RetriesExhausted) as raised:
        result.get(timeout=10)

    assert raised.value.last_error_type == "SoftTimeLimitExceeded"
    assert raised.value.attempts == effects.count("limited", result.id) == 1


def test_a_soft_time_limit_inside_a_step_without_options_is_retried_by_the_task(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = crashes.soft_limited.delay()

    assert result.get(timeout=10) == 2
    assert effects.count("limited", result.id) == 2
    assert effects.count("before", result.id) == 1
    assert logged(worker, "attempt 1 of 70 failed: SoftTimeLimitExceeded")


def test_a_hard_time_limit_ends_the_run_and_a_retry_goes_on_from_its_journal(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=1)
    result = crashes.hard_limited.delay()
    killed = effects.wait_until_blocked("limited").pid

    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=20)

    assert result.state == "FAILURE"
    eventually(lambda: journal(durable.redis, result.id)["status"] == "failed")
    assert steps(durable.redis, result.id)[0] == ("before", "done", 1)
    wait_until_idle(durable)
    crashes.hard_limited.apply_async(task_id=result.id)
    wait_until_logged(worker, f"[{result.id}] succeeded")  # until then its state is that of the failure

    assert outcome(durable, result.id) == [killed, 2]
    assert effects.count("before", result.id) == 1
    assert effects.count("limited", result.id) == 2
