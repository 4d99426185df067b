"""kill -9 of a process of the pool, and of a whole worker: finished steps stay finished, the rest is done."""

from typing import Any

import pytest
from celery import chain

from celery_durable import RecoveryLimitExceeded, RetriesExhausted
from tests.smoke import effects
from tests.smoke.apps import crashes
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import journal, steps, wait_until_idle, wait_until_logged
from tests.waiting import eventually

LONG = 40
"""Seconds for a run that survives a death: Celery may notice one late, and a lease has to lapse."""
QUICK_RECOVERY: dict[str, Any] = {"visibility_timeout": 1, "conf": {"durable_lease": 1}}
"""For workers whose processes die: the broker delivers again before Celery notices the death, which takes up to 5 s."""


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.crashes"


@pytest.fixture(params=["child", "worker"])
def victim(request: pytest.FixtureRequest) -> str:
    return request.param


def kill(worker: Worker, victim: str, child: int) -> None:
    """End one process of the pool, or the whole worker, which is then started again."""
    if victim == "child":
        worker.kill_child(child)
    else:
        worker.kill()
        worker.restart()


def test_a_run_killed_between_steps_goes_on_behind_its_last_step(durable: DurableSetup, victim: str) -> None:
    worker = durable.start_worker(visibility_timeout=2)
    result = crashes.three_steps.delay(held_at="between")
    killed = effects.wait_until_blocked("between").pid
    kill(worker, victim, killed)
    effects.release("between")

    pids = result.get(timeout=LONG)

    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 1, 1]
    assert pids[0] == killed, "the value of the first step is the recorded one"
    assert pids[1] == pids[2] != killed


def test_a_run_killed_inside_a_step_executes_that_step_once_more(durable: DurableSetup, victim: str) -> None:
    worker = durable.start_worker(visibility_timeout=2)
    result = crashes.three_steps.delay(held_at="second")
    killed = effects.wait_until_blocked("second").pid
    kill(worker, victim, killed)
    effects.release("second")

    pids = result.get(timeout=LONG)

    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 2, 1]
    assert pids[0] == killed
    assert pids[1:] == [effects.hits("second")[1].pid] * 2
    assert journal(durable.redis, result.id)["attempt"] == "2"


def test_what_was_drawn_before_a_step_is_the_same_after_a_death_in_the_step(durable: DurableSetup) -> None:
    durable.start_worker(**QUICK_RECOVERY)

    drawn = crashes.draws.delay().get(timeout=LONG)

    assert effects.count("drawn before first", drawn[:4]) == effects.count("drawn before first") == 3
    assert effects.count("drawn before second", drawn) == effects.count("drawn before second") == 2


def test_a_step_is_recorded_before_the_next_line_of_the_task_runs(durable: DurableSetup) -> None:
    durable.start_worker(**QUICK_RECOVERY)
    result = crashes.dies_after_a_step.delay()

    pid = result.get(timeout=LONG)

    assert effects.count("step", result.id) == 1
    assert [hit.pid for hit in effects.hits("deaths")] == [pid, effects.hits("deaths")[1].pid]


def test_a_run_killed_after_its_end_starts_the_next_task_of_its_chain(durable: DurableSetup, victim: str) -> None:
    worker = durable.start_worker(visibility_timeout=2)
    last = chain(crashes.three_steps.s(), crashes.sent_late.s()).apply_async()
    killed = effects.wait_until_blocked("before the next task").pid
    assert journal(durable.redis, last.parent.id)["status"] == "succeeded"
    assert last.parent.state == "PENDING"
    kill(worker, victim, killed)
    effects.release("before the next task")

    earlier, _ = last.get(timeout=LONG)

    assert earlier == last.parent.get(timeout=10) == [killed] * 3
    wait_until_idle(durable)
    assert [effects.count(name) for name in ("first", "second", "third", "sent late")] == [1, 1, 1, 1]
    assert journal(durable.redis, last.parent.id)["attempt"] == "1"


def test_a_worker_killed_after_a_chain_went_on_does_not_repeat_the_next_task(durable: DurableSetup) -> None:
    worker = durable.start_worker(visibility_timeout=2)
    last = chain(crashes.held_after_its_end.s(), crashes.follow.s()).apply_async()
    killed = effects.wait_until_blocked("after its end").pid
    value = last.get(timeout=LONG)
    worker.kill()
    effects.release("after its end")
    worker.restart()
    wait_until_logged(worker, f"[{last.parent.id}] received", times=2)
    wait_until_idle(durable)

    assert value[0] == last.parent.get(timeout=10) == killed
    assert last.get(timeout=10) == value
    assert effects.count("step") == effects.count("follow") == 1


def test_a_cold_shutdown_in_an_async_step_is_no_failure(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=1, visibility_timeout=2)
    result = crashes.held_async.delay()
    effects.wait_until_blocked("async")
    worker.kill("SIGQUIT")
    eventually(lambda: not worker.running, LONG)
    run = journal(durable.redis, result.id)
    assert run["status"] == "running"
    assert steps(durable.redis, result.id) == [("first", "done", 1)]
    worker.restart()

    assert result.get(timeout=LONG)[1] == 2
    assert [effects.count(name, result.id) for name in ("first", "second")] == [1, 2]
    assert "SystemExit" not in str(journal(durable.redis, result.id))


@pytest.mark.parametrize("sending", ["away", "die"])
def test_a_retry_with_other_arguments_that_is_not_sent_is_asked_for_again(durable: DurableSetup, sending: str) -> None:
    """The broker is away, or the process dies, when the journal knows of the retry already."""
    durable.start_worker(**QUICK_RECOVERY)
    result = crashes.changes_its_order.delay(1, sending=sending)

    assert result.get(timeout=LONG) == 3
    wait_until_idle(durable)
    assert [effects.count("orders", order) for order in (1, 2, 3)] == [1, 1, 1]
    assert effects.count("step", result.id) == 1
    run = journal(durable.redis, result.id)
    assert (run["status"], run["changed"], run["attempt"]) == ("succeeded", "2", "3")


def test_a_poison_step_is_stopped_and_its_worker_lives_on(durable: DurableSetup) -> None:
    worker = durable.start_worker(**QUICK_RECOVERY)
    result = crashes.poison.delay()

    with pytest.raises(RecoveryLimitExceeded, match=f"task {result.id}: 3 attempts in a row"):
        result.get(timeout=LONG)

    assert result.state == "FAILURE"
    # The first attempt records a step, so its death is none without progress.
    assert effects.count("before", result.id) == 1
    assert effects.count("poison", result.id) == 4
    assert journal(durable.redis, result.id)["status"] == "failed"
    assert steps(durable.redis, result.id)[0] == ("before", "done", 1)
    assert worker.running
    assert crashes.quick.delay().get(timeout=10) == "done"


@pytest.mark.parametrize(("plan", "executions"), [(["die", "fail", "die", "work"], 4), (["fail", "die", "work"], 3)])
def test_deaths_and_failures_count_together_until_the_step_succeeds(
    durable: DurableSetup, plan: list[str], executions: int
) -> None:
    durable.start_worker(**QUICK_RECOVERY)
    result = crashes.planned.delay(plan, max_attempts=4, initial_retry_interval=0.05)

    assert result.get(timeout=LONG)[1] == executions
    assert effects.count("planned", result.id) == executions
    assert effects.count("before", result.id) == effects.count("after", result.id) == 1
    assert steps(durable.redis, result.id)[1] == ("planned", "done", executions)


@pytest.mark.parametrize(
    ("plan", "last_error"), [(["die", "fail", "die"], "ProcessDied"), (["die", "fail"], "ConnectionError")]
)
def test_deaths_and_failures_exhaust_the_attempts_together(
    durable: DurableSetup, plan: list[str], last_error: str
) -> None:
    durable.start_worker(**QUICK_RECOVERY)
    result = crashes.planned.delay(plan, max_attempts=3, initial_retry_interval=0.05)

    with pytest.raises(RetriesExhausted) as raised:
        result.get(timeout=LONG)

    assert raised.value.attempts == effects.count("planned", result.id) == 3
    assert raised.value.last_error_type == last_error
    assert effects.count("before", result.id) == 1
    assert effects.count("after", result.id) == 0


def test_a_step_with_one_attempt_never_starts_twice(durable: DurableSetup, victim: str) -> None:
    worker = durable.start_worker(visibility_timeout=2)
    result = crashes.held_at_most_once.delay()
    kill(worker, victim, effects.wait_until_blocked("once").pid)
    effects.release("once")

    with pytest.raises(RetriesExhausted) as raised:
        result.get(timeout=LONG)

    assert raised.value.attempts == effects.count("once", result.id) == 1
    wait_until_idle(durable)
    assert effects.count("once", result.id) == 1


def test_siblings_of_a_failing_step_run_once_though_the_worker_dies_between_the_attempts(durable: DurableSetup) -> None:
    worker = durable.start_worker(visibility_timeout=2)
    result = crashes.siblings.delay(["fail"])
    eventually(lambda: result.state == "RETRY")
    worker.kill()
    worker.restart()

    message, _ = result.get(timeout=LONG)

    assert "failed 3 times" in message
    assert effects.count("planned", result.id) == 3
    assert [effects.count(name, result.id) for name in ("left", "right", "after")] == [1, 1, 1]


def test_a_step_of_siblings_succeeds_on_its_last_attempt_though_the_worker_dies(durable: DurableSetup) -> None:
    worker = durable.start_worker(visibility_timeout=2)
    result = crashes.siblings.delay(["fail", "fail", "work"])
    eventually(lambda: effects.count("planned", result.id) == 2)
    wait_until_logged(worker, result.id, "retry: Retry in 1", times=2)
    worker.kill()
    worker.restart()

    assert result.get(timeout=LONG)[0] == 3
    assert effects.count("planned", result.id) == 3
    assert [effects.count(name, result.id) for name in ("left", "right", "after")] == [1, 1, 1]
