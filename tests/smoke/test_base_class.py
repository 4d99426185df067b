"""`DurableTask` as a base class: durable where the context is used, Celery's own task everywhere else."""

import pytest

from celery_durable import ContextInStepError, EntryNotRecordableError, RetriesExhausted, TerminalError
from tests.smoke import effects
from tests.smoke.apps import base_class, task_class
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import journal, steps, wait_for_countdowns, wait_until_delivered, wait_until_idle
from tests.waiting import eventually

LONG = 20
"""Seconds for a run with a few retries, on a busy machine."""

ALL_WAYS = [
    "tests.smoke.apps.base_class.by_option",
    "tests.smoke.apps.base_class.shared",
    "by_class",
    "derived",
    *(f"{mixin.__name__} ByClass" for mixin in base_class.MIXINS),
    *(f"ByClass {mixin.__name__}" for mixin in base_class.MIXINS),
    *(f"{mixin} DurableTask" for mixin in ("Watched", "InContext", "InOlderContext")),
    *(f"DurableTask {mixin}" for mixin in ("Watched", "InContext", "InOlderContext")),
    "Existing DurableTask",
    "DurableTask Existing",
    "tests.smoke.apps.base_class.auto_retry",
    "tests.smoke.apps.base_class.asynchronous",
    "asynchronous_by_class",
]


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.base_class"


# -- ways in -----------------------------------------------------------------------------------------------------------


def test_every_way_to_a_durable_task_retries_and_replays(durable: DurableSetup, worker: Worker) -> None:
    """Options, classes, a class that calls super().run(), mixins in either order, shared and async tasks, bind=True."""
    results = {name: durable.app.tasks[name].delay(42) for name in ALL_WAYS}

    for name, result in results.items():
        context = "AsyncDurableContext" if "asynchronous" in name else "DurableContext"
        assert result.get(timeout=LONG) == [context, 42, 1, 3, 2], name
        assert effects.count("attempts", result.id) == 3, name
        assert effects.count("reserve", result.id) == 1, name
        assert effects.count("charge", result.id) == 3, name
        recorded = [step for step in steps(durable.redis, result.id) if step[0] not in ("before", "after")]
        assert recorded == [("reserve", "done", 1), ("charge", "done", 3)], name
    assert effects.count("before") == effects.count("after") == 1
    assert effects.count("entered") == 8 * 3


@pytest.mark.parametrize("name", ["Watched ByClass", "ByClass Watched"])
def test_the_hooks_of_a_mixin_are_called_as_celery_does(durable: DurableSetup, worker: Worker, name: str) -> None:
    result = durable.app.tasks[name].delay(42)
    result.get(timeout=LONG)

    eventually(lambda: effects.count("on_success", result.id))
    retried = [hit.key for hit in effects.hits("on_retry")]
    assert retried == [f"{result.id} GatewayDown charge 1", f"{result.id} GatewayDown charge 2"]
    assert effects.count("on_success", result.id) == 1
    assert effects.count("on_failure") == 0


# -- how failures end --------------------------------------------------------------------------------------------------


def test_max_attempts_6_gives_exactly_6_executions(durable: DurableSetup, worker: Worker) -> None:
    result = base_class.six_attempts.delay()

    with pytest.raises(RetriesExhausted) as raised:
        result.get(timeout=LONG)
    assert raised.value.attempts == effects.count("charge", result.id) == 6
    assert raised.value.last_error_type == "GatewayDown"
    wait_for_countdowns(worker, result.id, [0.02, 0.04, 0.08, 0.16, 0.32])


def test_max_attempts_6_under_max_retries_1_gives_exactly_6_executions(worker: Worker) -> None:
    result = base_class.six_attempts_then_two_retries.delay()

    with pytest.raises(RetriesExhausted):
        result.get(timeout=LONG)
    assert effects.count("charge", result.id) == 6
    assert effects.count("retry", result.id) == 2, "the first attempt after the step, and the one retry"


def test_a_step_without_options_is_retried_by_autoretry_for(worker: Worker) -> None:
    succeeding, failing = base_class.autoretried.delay(times=2), base_class.autoretried.delay(times=9)

    assert succeeding.get(timeout=LONG) == 3
    with pytest.raises(base_class.GatewayDown, match="charge 4"):
        failing.get(timeout=LONG)
    assert effects.count("charge", succeeding.id) == 3
    assert effects.count("charge", failing.id) == 4, "max_retries=3"
    assert effects.count("reserve", succeeding.id) == effects.count("reserve", failing.id) == 1


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ("terminal", TerminalError),
        ("exhausted", RetriesExhausted),
        ("not recordable", EntryNotRecordableError),
    ],
)
def test_autoretry_for_all_exceptions_does_not_retry_what_is_final(
    durable: DurableSetup, worker: Worker, ending: str, kind: type[Exception]
) -> None:
    result = base_class.autoretried_for_all.apply_async((ending,), link_error=base_class.note_error.s())

    with pytest.raises(kind):
        result.get(timeout=LONG)
    eventually(lambda: effects.count("errbacks"))
    wait_until_idle(durable)
    assert [hit.key for hit in effects.hits("errbacks")] == [f"{result.id} {kind.__name__}"]
    assert effects.count("attempts", result.id) == effects.count("reserve", result.id) == 1
    wait_for_countdowns(worker, result.id, [])
    # Acknowledged early, the message is gone before the outcome is delivered.
    wait_until_delivered(durable, result.id)
    run = journal(durable.redis, result.id)
    assert (run["status"], run["attempt"]) == ("failed", "1")


def test_a_retry_of_its_own_stands_though_the_body_swallows_it(durable: DurableSetup, worker: Worker) -> None:
    result = base_class.that_swallows_its_own_retry.apply_async(link=base_class.note_success.s())

    assert result.get(timeout=LONG) == "attempt 2 after step 1"
    eventually(lambda: effects.count("links"))
    wait_until_idle(durable)
    assert [hit.key for hit in effects.hits("links")] == ["attempt 2 after step 1"]
    assert effects.count("attempts", result.id) == 2
    assert effects.count("reserve", result.id) == 1
    wait_for_countdowns(worker, result.id, [0])


@pytest.mark.parametrize("task", ["autoretried_for_others", "with_max_retries_only", "with_neither"])
def test_a_step_without_options_fails_with_its_own_exception(durable: DurableSetup, worker: Worker, task: str) -> None:
    result = getattr(base_class, task).delay()

    with pytest.raises(base_class.GatewayDown, match="charge 1"):
        result.get(timeout=LONG)
    assert result.state == "FAILURE"
    assert "in fail" in result.traceback
    assert effects.count("charge", result.id) == 1
    assert journal(durable.redis, result.id)["status"] == "failed"


@pytest.mark.parametrize("task", ["that_swallows_exceptions", "that_swallows_all"])
def test_user_code_cannot_catch_the_failure_of_a_step_without_options(worker: Worker, task: str) -> None:
    result = getattr(base_class, task).delay()

    with pytest.raises(base_class.GatewayDown, match="charge 1"):
        result.get(timeout=LONG)
    assert effects.count("charge", result.id) == 1
    assert effects.count("swallowed") == 0


def test_retries_of_steps_do_not_count_towards_max_retries(worker: Worker) -> None:
    succeeding = base_class.that_retries_itself.delay()
    failing = base_class.that_retries_itself_for_ever.delay()

    assert succeeding.get(timeout=LONG) == [5, 6], "request.retries shows all of them"
    assert effects.count("attempts", succeeding.id) == 7
    with pytest.raises(base_class.GatewayDown, match="still"):
        failing.get(timeout=LONG)
    assert effects.count("charge", failing.id) == 5
    assert effects.count("own", failing.id) == 3


def test_a_waiting_task_shows_the_error_of_its_step(worker: Worker) -> None:
    """State RETRY with the step's own exception and traceback, as Flower shows it."""
    result = base_class.waiting_long.delay()

    eventually(lambda: result.state == "RETRY")
    assert isinstance(result.result, base_class.GatewayDown)
    assert str(result.result) == "charge 1"
    assert "in fail" in result.traceback


def test_nothing_is_left_behind_on_the_task_object(durable: DurableSetup) -> None:
    """One process, one task object: retries, limits and contexts of earlier runs are not seen in later ones."""
    durable.start_worker(concurrency=1)
    base_class.left_behind.delay("step").get(timeout=LONG)  # what is cached is cached now
    before = base_class.left_behind.delay().get(timeout=LONG)
    for use in ("step", "retry", "step, then retry"):
        base_class.left_behind.delay(use).get(timeout=LONG)

    after = base_class.left_behind.delay().get(timeout=LONG)
    assert after == before
    assert after[1] == "7"
    assert "override_max_retries" not in after[0]


# -- tasks that do not use their context -------------------------------------------------------------------------------


def test_a_task_that_never_uses_its_context_leaves_no_key(durable: DurableSetup, worker: Worker) -> None:
    results = [base_class.plain.delay(1), base_class.plain_retried.delay(), base_class.plain_failing.delay()]

    assert results[0].get(timeout=LONG) == 2
    assert results[1].get(timeout=LONG) == 3
    with pytest.raises(base_class.GatewayDown, match="plain"):
        results[2].get(timeout=LONG)
    wait_until_idle(durable)
    assert set(durable.redis.keys()) == {f"celery-task-meta-{result.id}" for result in results}


class TestTaskClass:
    """`Celery(task_cls="celery_durable:DurableTask")`."""

    @pytest.fixture
    def worker_app(self) -> str:
        return "tests.smoke.apps.task_class"

    def test_a_task_that_never_uses_its_context_leaves_no_key(self, durable: DurableSetup, worker: Worker) -> None:
        results = [task_class.plain.delay(1), task_class.plain_retried.delay(), task_class.plain_failing.delay()]

        assert results[0].get(timeout=LONG) == 2
        assert results[1].get(timeout=LONG) == 2
        with pytest.raises(OSError, match="for good"):
            results[2].get(timeout=LONG)
        results.append(task_class.plain_paging.delay(0))
        assert results[3].get(timeout=LONG) == [2, None], "other arguments do not begin a run"
        wait_until_idle(durable)
        assert set(durable.redis.keys()) == {f"celery-task-meta-{result.id}" for result in results}

    def test_a_task_that_uses_its_context_is_durable(self, durable: DurableSetup, worker: Worker) -> None:
        result = task_class.durable.delay()

        assert result.get(timeout=LONG) == 3
        assert effects.count("reserve", result.id) == 1
        assert steps(durable.redis, result.id) == [("reserve", "done", 1), ("charge", "done", 3)]


# -- direct calls ------------------------------------------------------------------------------------------------------


def test_a_direct_call_of_a_durable_task_has_a_journal_of_its_own_in_memory(
    durable: DurableSetup, worker: Worker
) -> None:
    result = base_class.outer.delay(0)

    executions, _, inner_id, after = result.get(timeout=LONG)
    assert executions == after == 1
    assert inner_id != result.id
    assert steps(durable.redis, result.id) == [("before", "done", 1), ("after", "done", 1)]
    assert journal(durable.redis, inner_id) == {}


def test_a_direct_call_raises_what_its_step_raised_and_the_caller_is_retried(worker: Worker) -> None:
    result = base_class.outer.delay(2)

    assert result.get(timeout=LONG)[0] == 3
    assert effects.count("before", result.id) == 1
    assert effects.count("inner", result.id) == 3
    wait_for_countdowns(worker, result.id, [0.02, 0.04])


def test_a_durable_task_may_call_itself(durable: DurableSetup, worker: Worker) -> None:
    result = base_class.recursive.delay(2)

    assert result.get(timeout=LONG) == 3
    assert steps(durable.redis, result.id) == [("depth 2", "done", 1)]


def test_a_direct_call_inside_a_step_cannot_use_a_context_either(worker: Worker) -> None:
    with pytest.raises(ContextInStepError, match="step 'call'"):
        base_class.outer_in_a_step.delay().get(timeout=LONG)
    assert effects.count("inner") == 0
