"""The Python documentation that this library is held to (seeds 003 and 004), sentence by sentence, on real workers.

Each test names the seed and the line that it proves.
"""

import json
from itertools import pairwise

import pytest

from celery_durable import ContextInStepError, RetriesExhausted, TerminalError
from tests.smoke import effects
from tests.smoke.apps import seeds
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import countdowns, journal, steps, wait_for_countdowns, wait_for_renewals, wait_until_logged
from tests.waiting import eventually

LONG = 20
"""Seconds for a run with a few retries, on a busy machine."""


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.seeds"


# -- Run ---------------------------------------------------------------------------------------------------------------


def test_an_async_function_and_a_lambda_run_once_and_are_replayed(durable: DurableSetup, worker: Worker) -> None:
    """003:12-20, 004:6-14; 003:5, 004:1 (replay after failures); 003:9, 004:5 (the result is stored)."""
    result = seeds.call_an_llm.delay()

    answer, number = result.get(timeout=LONG)
    assert answer == "llm response"
    assert effects.keys("call_llm") == ["What is the weather?"]
    assert effects.keys("my_number") == [str(number)] * 2
    assert steps(durable.redis, result.id) == [("LLM call", "done", 1), ("generate number", "done", 1)]


@pytest.mark.parametrize("task", ["context_in_a_step", "context_in_an_async_step", "context_in_a_threaded_step"])
def test_no_verb_of_the_context_can_be_used_inside_a_step(worker: Worker, task: str) -> None:
    """003:23, 004:15."""
    verbs = ["run", "run_typed", "uuid", "random", "time", "now"]
    results = [getattr(seeds, task).delay(verb) for verb in verbs]

    for result in results:
        with pytest.raises(ContextInStepError, match="step 'outer'"):
            result.get(timeout=LONG)
        assert effects.count("use", result.id) == 1
        assert not countdowns(worker, result.id)
    assert effects.count("nested") == effects.count("after") == 0


def test_a_step_that_swallows_the_error_of_the_context_does_not_get_away_with_it(worker: Worker) -> None:
    """003:23, 004:15."""
    with pytest.raises(ContextInStepError):
        seeds.context_in_a_step_that_swallows.delay("uuid").get(timeout=LONG)
    assert effects.count("use") == 1
    assert effects.count("after") == 0


def test_what_is_no_verb_can_be_read_inside_a_step(worker: Worker) -> None:
    """003:23, 004:15: the verbs are meant, not `task_id` and the like."""
    result = seeds.attributes_in_a_step.delay()

    assert result.get(timeout=LONG) == [result.id, 1, result.id, seeds.attributes_in_a_step.name, False]


# -- Serialization -----------------------------------------------------------------------------------------------------


def test_the_journal_entry_is_json_by_default(durable: DurableSetup, worker: Worker) -> None:
    """003:27, 004:16."""
    result = seeds.return_payload.delay("json")
    result.get(timeout=LONG)

    entry = json.loads(journal(durable.redis, result.id)["step:1"])
    assert entry["value"] == {"a": [1, 2.5, True, None]}


@pytest.mark.parametrize("kind", ["model", "model by type_hint", "models", "dataclass"])
def test_a_pydantic_model_comes_back_as_a_model(durable: DurableSetup, worker: Worker, kind: str) -> None:
    """003:28, 004:16; the journal shows it as JSON."""
    result = seeds.return_payload.delay(kind)

    given = result.get(timeout=LONG)
    assert given == repr(seeds.PAYLOADS[kind][0]())
    assert effects.keys("given") == [given] * 2
    assert effects.count("payload", kind) == 1
    assert isinstance(json.loads(journal(durable.redis, result.id)["step:1"])["value"], dict | list)


@pytest.mark.parametrize("kind", ["custom serializer", "registered serializer", "compressed"])
def test_a_custom_serializer_writes_and_reads_the_entry(durable: DurableSetup, worker: Worker, kind: str) -> None:
    """003:28, 004:16; the entry says who has written it."""
    result = seeds.return_payload.delay(kind)

    given = result.get(timeout=LONG)
    assert given == repr(seeds.PAYLOADS[kind][0]())
    assert effects.keys("given") == [given] * 2
    assert effects.count("payload", kind) == 1
    entry = json.loads(journal(durable.redis, result.id)["step:1"])
    assert entry.keys() & {"serializer", "compression"}


# -- Error handling and retry policies ---------------------------------------------------------------------------------


def test_a_failing_step_is_retried_as_a_failing_handler_is(worker: Worker) -> None:
    """003:32, 004:17: same countdowns, same log, and the step before is not repeated."""
    by_step = seeds.without_options.delay(["fail", "fail", "ok"])
    by_handler = seeds.failing_handler.delay(2)

    assert by_step.get(timeout=LONG) == "write 3"
    assert by_handler.get(timeout=LONG) == 3
    for task_id in (by_step.id, by_handler.id):
        wait_for_countdowns(worker, task_id, [0.02, 0.04])
    for task_id in (by_step.id, by_handler.id):
        assert effects.count("before", task_id) == 1
        wait_until_logged(worker, task_id, "attempt 1 of 70 failed")


def test_a_terminal_error_is_not_retried(durable: DurableSetup, worker: Worker) -> None:
    """003:32, 004:17."""
    result = seeds.without_options.delay(["refuse"])

    with pytest.raises(TerminalError, match="no such account") as raised:
        result.get(timeout=LONG)
    assert (raised.value.status_code, raised.value.metadata) == (404, {"account": "A-1"})
    assert effects.count("write", result.id) == 1
    assert steps(durable.redis, result.id)[-1] == ("write", "failed", 1)


def test_the_documented_options_retry_until_the_step_succeeds(durable: DurableSetup, worker: Worker) -> None:
    """003:37-58: the first interval is 100 ms, and it doubles."""
    result = seeds.write.delay(["fail", "fail", "fail", "ok"])

    assert result.get(timeout=LONG) == "written"
    wait_for_countdowns(worker, result.id, [0.1, 0.2, 0.4])
    executions = [hit.at for hit in effects.hits("write", result.id)]
    waits = [later - earlier for earlier, later in pairwise(executions)]
    assert all(wait >= delay for wait, delay in zip(waits, [0.1, 0.2, 0.4], strict=True)), waits
    assert steps(durable.redis, result.id) == [("write", "done", 4)]


def test_the_same_options_in_a_def_task(worker: Worker) -> None:
    """003:37-58."""
    result = seeds.write_in_a_def_task.delay(["fail", "fail", "ok"])

    assert result.get(timeout=LONG) == "write 3"
    wait_for_countdowns(worker, result.id, [0.1, 0.2])
    assert effects.count("write", result.id) == 3


@pytest.mark.parametrize("task", ["write", "write_with_older_names"])
def test_after_ten_attempts_the_terminal_error_reaches_the_caller(worker: Worker, task: str) -> None:
    """003:50-58, 003:62, 004:20-27, 004:29: attempts include the first; the handler propagates the error."""
    result = getattr(seeds, task).delay(["busy"])

    with pytest.raises(TerminalError) as raised:
        result.get(timeout=LONG)
    assert isinstance(raised.value, RetriesExhausted)
    assert raised.value.attempts == effects.count("write", result.id) == 10
    assert (raised.value.status_code, raised.value.last_error_type) == (429, "RetryableError")


@pytest.mark.parametrize("task", ["write", "write_with_older_names"])
def test_a_wait_beyond_the_maximum_duration_is_given_up(worker: Worker, task: str) -> None:
    """003:48, 004:20 (`max_retry_duration`)."""
    result = getattr(seeds, task).delay(["closed"])

    with pytest.raises(RetriesExhausted) as raised:
        result.get(timeout=LONG)
    assert raised.value.attempts == effects.count("write", result.id) == 1
    assert raised.value.status_code == 503


@pytest.mark.parametrize("task", ["write", "write_with_older_names"])
def test_a_terminal_error_of_the_step_is_what_the_handler_catches(worker: Worker, task: str) -> None:
    """003:54-58, 004:23-27."""
    result = getattr(seeds, task).delay(["refuse"])

    with pytest.raises(TerminalError, match="no such account") as raised:
        result.get(timeout=LONG)
    assert type(raised.value) is TerminalError
    assert effects.count("write", result.id) == 1


OPTIONS = [
    pytest.param({"initial_retry_interval": 0.3}, [0.3, 0.6, 1.2], id="003:43 initial_retry_interval"),
    pytest.param({"retry_interval_factor": 3.0}, [0.05, 0.15, 0.45], id="003:45 retry_interval_factor"),
    pytest.param({"retry_interval_factor": 0.5}, [0.05, 0.025, 0.0125], id="003:45 a factor below 1"),
    pytest.param({"max_retry_interval": 0.08}, [0.05, 0.08, 0.08], id="003:47 max_retry_interval"),
    pytest.param({"max_duration": 300}, [0.05, 0.1, 0.2], id="003:49 max_duration"),
    pytest.param({"max_attempts": 10}, [0.05, 0.1, 0.2], id="003:51 max_attempts"),
    pytest.param({"max_retry_duration": 300}, [0.05, 0.1, 0.2], id="004:20 max_retry_duration"),
]


@pytest.mark.parametrize(("options", "expected"), OPTIONS)
def test_each_option_alone_makes_a_policy(worker: Worker, options: dict[str, float], expected: list[float]) -> None:
    """003:43-51, 004:20: what is left out is 50 ms, times 2, at most 10 s, without limit."""
    result = seeds.with_options.delay(["fail", "fail", "fail", "ok"], options)

    assert result.get(timeout=LONG) == ["write 4"]
    assert effects.count("write", result.id) == 4
    wait_for_countdowns(worker, result.id, expected)


def test_an_interval_grows_to_ten_seconds_at_most_by_default(worker: Worker) -> None:
    """003:47."""
    result = seeds.with_options.delay(["fail"], {"initial_retry_interval": 3600})

    eventually(lambda: countdowns(worker, result.id) == [10.0])


def test_jitter_draws_each_wait_again_below_the_computed_one(worker: Worker) -> None:
    """003:41-52: what the documentation lacks, `jitter`, is off unless it is asked for."""
    options = {"initial_retry_interval": 0.4, "retry_interval_factor": 1, "jitter": True}
    result = seeds.with_options.delay(["fail", "fail", "fail", "ok"], options)

    assert result.get(timeout=LONG) == ["write 4"]
    # A process may write its line after the next attempt has ended.
    eventually(lambda: len(countdowns(worker, result.id)) >= 3, what="the lines of all retries")
    waits = countdowns(worker, result.id)
    assert len(set(waits)) == len(waits) == 3
    assert all(0 <= wait <= 0.4 for wait in waits)


LIMITS = [
    pytest.param({"max_attempts": 3, "initial_retry_interval": 0.02}, 3, id="by count"),
    pytest.param({"max_attempts": 1}, 1, id="by count, the first only"),
    # the second wait would end after the limit: it is not begun
    pytest.param({"max_duration": 5, "initial_retry_interval": 0.02, "retry_interval_factor": 1000}, 2, id="by time"),
    pytest.param({"max_duration": 60, "max_attempts": 2, "initial_retry_interval": 0.02}, 2, id="both, count first"),
    pytest.param({"max_duration": 1, "max_attempts": 9, "initial_retry_interval": 5}, 1, id="both, time first"),
]


@pytest.mark.parametrize(("options", "executions"), LIMITS)
def test_retries_are_limited_by_time_or_count(worker: Worker, options: dict[str, float], executions: int) -> None:
    """003:61-62, 004:28-29: exhausted, the step raises a terminal error that the handler can catch."""
    result = seeds.with_options.delay(["fail"], options)

    assert result.get(timeout=LONG) == ["RetriesExhausted", 500, executions]
    assert effects.count("write", result.id) == executions


def test_a_saga_undoes_what_was_done_once_and_propagates_the_error(worker: Worker) -> None:
    """003:63, 004:30; 003:54-58: the compensations are steps, too."""
    result = seeds.saga.delay()

    with pytest.raises(RetriesExhausted) as raised:
        result.get(timeout=LONG)
    assert raised.value.attempts == 3
    assert effects.keys("book") == ["flight", "hotel", "car", "car", "car"]
    assert effects.keys("undo") == ["car", "hotel", "flight"]


def test_a_step_that_takes_its_time_runs_once(durable: DurableSetup) -> None:
    """003:67-71, 004:31: slow logic needs no setting; while it runs, its lease is renewed."""
    durable.start_worker(conf={"durable_lease": 1})
    result = seeds.slow_step.delay()
    effects.wait_until_blocked("slow")
    wait_for_renewals(durable, times=4)
    effects.release("slow")

    assert result.get(timeout=LONG) == "at last"
    assert effects.count("slow", result.id) == 1


# -- Deterministic randoms ---------------------------------------------------------------------------------------------


def test_a_uuid_is_the_same_on_retries_and_another_for_another_run(durable: DurableSetup, worker: Worker) -> None:
    """003:84, 003:94, 004:36, 004:42; 003:79, 003:87, 004:37 (seeded by the invocation)."""
    first, second = seeds.draw_a_uuid.delay(), seeds.draw_a_uuid.delay()

    uuids = {first.get(timeout=LONG), second.get(timeout=LONG)}
    assert len(uuids) == 2
    for drawn in uuids:
        assert effects.count("my_uuid", drawn) == 3
        assert drawn[14] == "4"
    assert journal(durable.redis, first.id)["uuid:1"] == first.get()


def test_a_float_between_0_and_1_is_the_same_on_retries(worker: Worker) -> None:
    """003:104-107, 004:48-49."""
    first, second = seeds.draw_a_float.delay(), seeds.draw_a_float.delay()
    first.get(timeout=LONG)
    second.get(timeout=LONG)

    floats = effects.keys("floats")
    assert len(set(floats)) == 2
    assert all(floats.count(one) == 3 for one in floats)
    assert all(0 <= float(one) < 1 for one in floats)


def test_the_clock_shows_milliseconds_that_retries_see_again(durable: DurableSetup, worker: Worker) -> None:
    """003:111-114, 004:53-54."""
    before = int(durable.redis.time()[0]) * 1000
    result = seeds.read_the_clock.delay(["fail", "fail", "ok"])

    current_time = result.get(timeout=LONG)
    assert type(current_time) is int
    assert before - 1000 <= current_time <= (int(durable.redis.time()[0]) + 1) * 1000
    assert effects.keys("current_time") == [str(current_time)] * 3


def test_each_reading_of_the_clock_is_a_new_one(worker: Worker) -> None:
    """003:111: readings before, between and after steps, all the same on the second attempt."""
    readings = seeds.read_clocks.delay().get(timeout=LONG)

    assert effects.keys("readings") == [json.dumps(readings)] * 2
    assert readings[0] <= readings[1] <= readings[3]
    assert effects.count("between") == 1
