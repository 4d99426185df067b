"""What takes too long is ended, in every pool, and its run goes on; what is silent is reported."""

from typing import Any

import pytest
from celery.result import AsyncResult

from celery_durable import DurableTimeoutError, RetriesExhausted
from tests.smoke import effects
from tests.smoke.apps import progress
from tests.smoke.monitor import Monitor
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import journal, logged, steps, wait_until_logged
from tests.waiting import eventually

LONG = 40

POOLS = {
    "prefork": 2,
    "solo": 1,
    "threads": 8,
    "gevent": 4,
}
"""With as many slots as a test may lose to what cannot be interrupted."""

pools = pytest.mark.parametrize("pool", POOLS)


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.progress"


def start(durable: DurableSetup, pool: str, **options: Any) -> Worker:
    return durable.start_worker(pool=pool, concurrency=POOLS[pool], **options)


@pools
@pytest.mark.parametrize("task", ["overruns", "overruns_async"])
def test_a_step_that_always_overruns_ends_by_its_own_limits(durable: DurableSetup, pool: str, task: str) -> None:
    start(durable, pool)
    result = getattr(progress, task).delay()

    assert result.get(timeout=LONG) == [1, 1, 3, "DurableTimeoutError"]
    assert [effects.count(name, result.id) for name in ("before", "hang", "compensate")] == [1, 3, 1]
    assert steps(durable.redis, result.id) == [("before", "done", 1), ("hang", "failed", 3), ("compensate", "done", 1)]


@pools
def test_a_step_that_hangs_and_may_start_once_starts_once(durable: DurableSetup, pool: str) -> None:
    start(durable, pool)
    result = progress.starts_once.delay()

    with pytest.raises(RetriesExhausted) as exhausted:
        result.get(timeout=LONG)
    assert (exhausted.value.attempts, exhausted.value.last_error_type) == (1, "DurableTimeoutError")
    assert effects.count("hang", result.id) == 1


@pools
@pytest.mark.parametrize("task", ["silent", "silent_async"])
def test_a_silent_attempt_is_aborted_and_its_step_executed_again(durable: DurableSetup, pool: str, task: str) -> None:
    worker = start(durable, pool)
    result = getattr(progress, task).delay()

    assert result.get(timeout=LONG) == 2
    assert effects.count("before", result.id) == 1
    assert steps(durable.redis, result.id) == [("before", "done", 1), ("silent", "done", 2)]
    assert logged(worker, "step 'silent' has made no progress", times=1)
    assert not logged(worker, "step 'silent' has made no progress", times=2)
    effects.release("held")


@pools
def test_what_is_silent_every_time_fails_by_the_policy_of_the_task(durable: DurableSetup, pool: str) -> None:
    start(durable, pool)
    result = progress.silent_for_ever.delay()

    with pytest.raises(DurableTimeoutError):
        result.get(timeout=LONG)
    assert effects.count("hang", result.id) == 3


@pools
def test_a_body_that_is_silent_between_its_steps_is_aborted(durable: DurableSetup, pool: str) -> None:
    """In threads nobody can end it, nor know what it does next: its lease lapses."""
    start(durable, pool, conf={"durable_lease": 1})
    result = progress.silent_between_steps.delay()

    assert result.get(timeout=LONG) == 1
    assert [effects.count(name, result.id) for name in ("before", "body")] == [1, 2]


@pools
def test_a_heartbeat_keeps_a_long_step_alive(durable: DurableSetup, pool: str) -> None:
    worker = start(durable, pool)
    result = progress.alive.delay()

    assert result.get(timeout=LONG) == 1
    assert steps(durable.redis, result.id) == [("work", "done", 1)]
    assert not logged(worker, "has made no progress")


@pytest.mark.parametrize("pool", ["prefork", "solo"])
@pytest.mark.parametrize("kind", ["a loop", "except Exception"])
def test_user_code_cannot_help_being_interrupted(durable: DurableSetup, pool: str, kind: str) -> None:
    start(durable, pool)
    result = progress.never_ends.delay(kind)

    assert result.get(timeout=LONG) == 2
    assert effects.count("hang", result.id) == 2
    assert effects.count("swallowed") == 0


@pools
def test_a_step_in_a_thread_of_an_async_task_fails_and_leaves_its_thread(durable: DurableSetup, pool: str) -> None:
    start(durable, pool)
    result = progress.overruns_in_a_thread.delay()

    assert result.get(timeout=LONG) == [3, "DurableTimeoutError"]
    assert effects.count("hang", result.id) == 3
    effects.release("held")


@pools
def test_silence_alone_ends_nothing(durable: DurableSetup, pool: str) -> None:
    """The default abort is ten minutes away; each silence is reported once."""
    worker = start(durable, pool)
    result = progress.quiet.delay()
    wait_until_logged(worker, "step 'quiet' has made no progress")
    effects.release("held")

    assert result.get(timeout=LONG) == 1
    assert steps(durable.redis, result.id) == [("quiet", "done", 1)]


def test_in_threads_what_an_abandoned_step_returns_is_recorded_if_no_attempt_has_begun(durable: DurableSetup) -> None:
    worker = start(durable, "threads")
    result = progress.held.delay()
    effects.wait_until_blocked("held")
    wait_until_logged(worker, "the run goes on without it")
    eventually(lambda: steps(durable.redis, result.id) == [("held", "retrying", 1)], what="the failed execution")
    effects.release("held")

    eventually(lambda: steps(durable.redis, result.id) == [("held", "done", 1)], what="the late record")
    assert result.get(timeout=LONG) == 1
    assert effects.count("held", result.id) == 1


def test_in_threads_what_an_abandoned_step_returns_too_late_changes_nothing(durable: DurableSetup) -> None:
    start(durable, "threads")
    result = progress.silent.delay()

    assert result.get(timeout=LONG) == 2
    before = journal(durable.redis, result.id)
    effects.release("held")
    worker = durable.worker_cluster[0]
    wait_until_logged(worker, "ran but could not be recorded")
    assert journal(durable.redis, result.id) == before
    assert AsyncResult(result.id, app=progress.app).get() == 2


def test_in_prefork_what_no_signal_reaches_is_abandoned(durable: DurableSetup) -> None:
    worker = start(durable, "prefork")
    result = progress.deaf.delay()

    assert result.get(timeout=LONG) == 2
    assert logged(worker, "step 'deaf' cannot be interrupted")
    assert len({hit.pid for hit in effects.hits("deaf")}) == 2
    effects.release("held")
    wait_until_logged(worker, "ran but could not be recorded")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_silence_is_an_event_for_monitors(durable: DurableSetup, monitor: Monitor, pool: str) -> None:
    """On a busy machine the body may be silent, too, before it comes to its step: that is another event."""
    start(durable, pool, extra=["-E"])
    result = progress.quiet.delay()
    events = eventually(lambda: silences_in_steps(monitor), LONG, what="an event that names a step")
    effects.release("held")

    (event,) = events
    assert (event["uuid"], event["name"], event["steps"]) == (result.id, progress.quiet.name, ["quiet"])
    assert 0.5 <= event["seconds"] < LONG
    assert result.get(timeout=LONG) == 1


def silences_in_steps(monitor: Monitor) -> list[dict[str, Any]]:
    return [event for event in monitor.events("durable-inactive") if event["steps"]]


def test_a_time_limit_of_the_message_takes_the_place_of_the_abort(durable: DurableSetup) -> None:
    """Without one the default of this app would abort the step, which ends as soon as that is past."""
    worker = start(durable, "prefork", conf={"durable_inactivity_timeout": 0.5, "durable_abort_timeout": 0.5})
    result = progress.outlasts.apply_async(time_limit=60)

    assert result.get(timeout=LONG) == 1
    assert logged(worker, "step 'outlasts' has made no progress")
    assert steps(durable.redis, result.id) == [("outlasts", "done", 1)]


@pools
def test_on_the_base_class_celerys_options_decide(durable: DurableSetup, pool: str) -> None:
    start(durable, pool)
    result = progress.silent_on_the_base_class.delay()

    assert result.get(timeout=LONG) == 2
    assert effects.count("silent", result.id) == 2
    effects.release("held")
