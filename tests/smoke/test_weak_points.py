"""What Restate's durable steps are weak at: this library is not. F1 to F19 are the findings' numbers.

Each says in its docstring what Restate does there.
"""

import pytest

from celery_durable import (
    ConfigurationError,
    ContextInStepError,
    EntryNotRecordableError,
    JournalMismatchError,
    TerminalError,
)
from tests.smoke import effects
from tests.smoke.apps import weak_points
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import announced_delays, countdowns, journal, steps, wait_for_countdowns
from tests.waiting import eventually

LONG = 40
"""Seconds for a run that survives a death or a few retries, on a busy machine."""


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.weak_points"


# -- F1: `max_retry_duration` is silently ignored ----------------------------------------------------------------------


def test_f1_max_retry_duration_limits_the_retries(worker: Worker) -> None:
    result = weak_points.alias_of_max_duration.delay()

    assert result.get(timeout=LONG) == 2
    assert effects.count("flaky", result.id) == 2


def test_f1_both_names_may_say_the_same_but_not_different_things(worker: Worker) -> None:
    assert weak_points.both_names.delay(5, 5).get(timeout=LONG) == "flaky"
    with pytest.raises(ConfigurationError, match="alias of max_duration"):
        weak_points.both_names.delay(5, 6).get(timeout=LONG)


# -- F2: one counter for the whole invocation, which every new entry resets: 22 executions under max_attempts=3 --------


def test_f2_a_step_counts_its_executions_whatever_its_siblings_record(durable: DurableSetup, worker: Worker) -> None:
    result = weak_points.failing_among_growing_siblings.delay()

    assert result.get(timeout=LONG) == [3, 3]
    assert effects.count("flaky", result.id) == 3
    assert [effects.count(f"sibling {number}", result.id) for number in (1, 2, 3)] == [1, 1, 1]


def test_f2_a_step_counts_its_executions_whatever_else_is_new_in_the_journal(worker: Worker) -> None:
    result = weak_points.failing_between_recorded_steps.delay()

    assert result.get(timeout=LONG) == [3]
    assert effects.count("flaky", result.id) == 3
    assert effects.count("before", result.id) == 1


# -- F3: killing the server loses the counter: 6 executions under max_attempts=4 ---------------------------------------


def test_f3_the_count_survives_the_death_of_the_server_and_of_the_worker(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=1, visibility_timeout=2, conf={"durable_lease": 2})
    result = weak_points.held_while_failing.delay()
    effects.wait_until_blocked("third")
    # Only the loss of both within the 0.2 s in which the kernel may hold the record of the start would lose it.
    eventually(lambda: steps(durable.redis, result.id) == [("flaky", "started", 3)])
    worker.kill()
    durable.broker_server.kill()
    durable.broker_server.start()
    effects.release("third")
    worker.restart()

    assert result.get(timeout=LONG) == 4
    assert effects.count("flaky", result.id) == 4


# -- F4: crashes burn attempts: only 3 executions under max_attempts=4 -------------------------------------------------


def test_f4_an_execution_that_dies_counts_as_one_no_more_and_no_less(durable: DurableSetup) -> None:
    durable.start_worker(concurrency=1, conf={"durable_lease": 1})
    result = weak_points.dying_inside.delay()

    assert result.get(timeout=LONG) == 4
    assert effects.count("flaky", result.id) == 4


def test_f4_an_attempt_that_dies_elsewhere_is_no_execution_of_the_step(durable: DurableSetup) -> None:
    durable.start_worker(concurrency=1, conf={"durable_lease": 1})
    result = weak_points.dying_outside.delay()

    assert result.get(timeout=LONG) == 4
    assert effects.count("flaky", result.id) == 4
    assert effects.count("attempt", result.id) == 6


# -- F8: the task's limit is not reset by progress: killed in step 3 of 5 ----------------------------------------------


def test_f8_progress_resets_the_budget_of_the_task(worker: Worker) -> None:
    result = weak_points.five_steps_that_fail_once_each.delay()

    assert result.get(timeout=LONG) == [f"step {number}" for number in range(5)]
    assert [effects.count(f"step {number}", result.id) for number in range(5)] == [2] * 5


def test_f8_without_progress_the_budget_is_spent(worker: Worker) -> None:
    result = weak_points.no_progress.delay()

    with pytest.raises(ConnectionError, match="hopeless fails"):
        result.get(timeout=LONG)
    # The first failure is counted after "before" was recorded in the same attempt.
    assert effects.count("hopeless", result.id) == 3
    assert effects.count("before", result.id) == 1


# -- F9: how a step's policy and the task's go together is an accident -------------------------------------------------


def test_f9_failures_under_a_steps_policy_do_not_touch_the_tasks_budget(worker: Worker) -> None:
    result = weak_points.step_policy_beside_task_policy.delay()

    assert result.get(timeout=LONG) == "done"
    assert effects.count("flaky", result.id) == 6
    assert effects.count("body", result.id) == 2
    wait_for_countdowns(worker, result.id, [0.02, 0.04, 0.08, 0.16, 0.32, 0.3])
    assert announced_delays(worker, result.id) == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32, 0.3])


def test_f9_a_step_policy_without_limits_outlasts_the_tasks_policy(worker: Worker) -> None:
    result = weak_points.only_an_interval.delay()

    assert result.get(timeout=LONG) == "at last"
    assert effects.count("flaky", result.id) == 6
    wait_for_countdowns(worker, result.id, [0.02] * 5)


def test_f9_a_step_without_a_policy_goes_by_the_tasks_policy(worker: Worker) -> None:
    result = weak_points.no_step_policy.delay()

    with pytest.raises(ConnectionError, match="flaky fails"):
        result.get(timeout=LONG)
    assert effects.count("flaky", result.id) == 2


# -- F10: a nested step works until it is replayed, a uuid in a step changes all later ones ----------------------------


@pytest.mark.parametrize("task", ["nested_step", "uuid_in_a_step"])
def test_f10_the_context_in_a_step_is_refused_on_the_first_attempt(worker: Worker, task: str) -> None:
    result = getattr(weak_points, task).delay()

    with pytest.raises(ContextInStepError, match="step 'outer'"):
        result.get(timeout=LONG)
    assert effects.count("attempt", result.id) == 1
    assert effects.count("inner") == 0


# -- F12, F13: arguments taken for options; `lambda: async_function()` is not awaited ----------------------------------


def test_f12_positional_arguments_reach_the_action(worker: Worker) -> None:
    assert weak_points.positional_arguments.delay().get(timeout=LONG) == [10, 10, 10]


@pytest.mark.parametrize("task", ["lambdas_that_return_coroutines", "lambdas_that_return_coroutines_async"])
def test_f13_an_awaitable_that_an_action_returns_is_awaited(worker: Worker, task: str) -> None:
    result = getattr(weak_points, task).delay()

    assert result.get(timeout=LONG) == [10, 12]
    assert not countdowns(worker, result.id)


# -- F14: a BaseException, an odd status code or odd options hang the attempt ------------------------------------------


@pytest.mark.parametrize("task", ["base_exception", "base_exception_async"])
def test_f14_a_base_exception_is_a_failed_execution(worker: Worker, task: str) -> None:
    result = getattr(weak_points, task).delay()

    assert result.get(timeout=LONG) == "in time"
    assert effects.count("alarmed", result.id) == 3
    wait_for_countdowns(worker, result.id, [0.02, 0.04])


def test_f14_a_base_exception_exhausts_a_policy(worker: Worker) -> None:
    result = weak_points.base_exception_for_good.delay()

    assert result.get(timeout=LONG) == "Alarm"
    assert effects.count("alarmed", result.id) == 2


def test_f14_any_status_code_reaches_the_caller(worker: Worker) -> None:
    result = weak_points.odd_status_code.delay()

    with pytest.raises(TerminalError, match="odd") as raised:
        result.get(timeout=LONG)
    assert raised.value.status_code == 70000
    assert effects.count("refuse", result.id) == 1


WRONG_OPTIONS = [
    {"initial_retry_interval": -1},
    {"initial_retry_interval": 0},
    {"max_attempts": -1},
    {"max_attempts": 0},
    {"max_attempts": 2.5},
    {"max_duration": -1},
    {"retry_interval_factor": -1.0},
]


def test_f14_wrong_options_end_the_run_at_once(worker: Worker) -> None:
    results = [(options, weak_points.wrong_options.delay(options)) for options in WRONG_OPTIONS]

    for options, result in results:
        (name,) = options
        with pytest.raises(ConfigurationError, match=name):
            result.get(timeout=LONG)
        assert not countdowns(worker, result.id)
    assert effects.count("step") == 0


# -- F15: a `RetryableError` without `retry_after` ignores the step's backoff ------------------------------------------


def test_f15_a_retryable_error_goes_by_the_backoff_of_the_step(worker: Worker) -> None:
    result = weak_points.retryable_error.delay(retry_after=None)

    assert result.get(timeout=LONG) == 4
    wait_for_countdowns(worker, result.id, [0.2, 0.6, 0.7])


def test_f15_retry_after_wins_over_the_backoff(worker: Worker) -> None:
    result = weak_points.retryable_error.delay(retry_after=0.05)

    assert result.get(timeout=LONG) == 4
    wait_for_countdowns(worker, result.id, [0.05] * 3)


# -- F17: of a terminal error only code, message and metadata survive --------------------------------------------------


def test_f17_a_subclass_is_caught_as_such_on_the_first_execution_and_on_replay(worker: Worker) -> None:
    result = weak_points.terminal_subclass.delay()

    caught = result.get(timeout=LONG)
    assert caught == ["OutOfStock", "no chairs left", 409, {"chairs": 0}]
    assert effects.count("reserve", result.id) == 1
    assert effects.count("caught", caught) == 2


def test_f17_an_exhausted_policy_tells_the_last_error_with_its_traceback(worker: Worker) -> None:
    result = weak_points.facts_of_the_last_error.delay()

    kind, message, traceback = result.get(timeout=LONG)
    assert (kind, message) == ("PermissionError", "card refused")
    assert "in charge" in traceback
    assert effects.count("charge", result.id) == 2
    assert len({hit.key for hit in effects.hits("facts")}) == 1
    assert effects.count("facts") == 2


# -- F18: a result that is too large is computed again and again -------------------------------------------------------


def test_f18_a_result_that_is_too_large_ends_the_run_at_once(durable: DurableSetup, worker: Worker) -> None:
    result = weak_points.too_large.delay()

    with pytest.raises(EntryNotRecordableError, match=r"step 'report'.* str .*2002 bytes.*1000"):
        result.get(timeout=LONG)
    assert effects.count("report", result.id) == 1
    assert not countdowns(worker, result.id)
    assert journal(durable.redis, result.id)["status"] == "failed"


# -- F19: another path is retried 70 times -----------------------------------------------------------------------------


def test_f19_another_path_than_the_recorded_one_fails_at_once(durable: DurableSetup, worker: Worker) -> None:
    result = weak_points.other_path.delay()

    with pytest.raises(JournalMismatchError) as raised:
        result.get(timeout=LONG)
    for fact in ("position: 1", "recorded: step 'reserve'", "asked for: step 'charge'"):
        assert fact in str(raised.value)
    assert effects.count("attempt", result.id) == 2
    assert effects.count("step", result.id) == 1
    assert effects.count("after") == effects.count("ship") == 0
    assert steps(durable.redis, result.id) == [("reserve", "done", 1)]


def test_f19_a_path_that_ends_too_early_fails_at_once(durable: DurableSetup, worker: Worker) -> None:
    result = weak_points.shorter_path.delay()

    with pytest.raises(JournalMismatchError, match="the end of the task"):
        result.get(timeout=LONG)
    assert effects.count("attempt", result.id) == 2
    assert steps(durable.redis, result.id) == [("reserve", "done", 1)]


def test_the_worker_is_well_after_all_of_it(worker: Worker) -> None:
    """Failures end runs, never the worker."""
    for task in (weak_points.nested_step, weak_points.too_large, weak_points.other_path, weak_points.odd_status_code):
        task.delay().get(timeout=LONG, propagate=False)

    assert weak_points.positional_arguments.delay().get(timeout=LONG) == [10, 10, 10]
