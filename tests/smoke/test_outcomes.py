"""What the caller of `.get()` receives, through Celery's JSON result serializer."""

from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest

from celery_durable import (
    ConfigurationError,
    ContextInStepError,
    EntryNotRecordableError,
    InvalidStepError,
    JournalMismatchError,
    RecoveryLimitExceeded,
    RetriesExhausted,
    TerminalError,
)
from tests.smoke import effects
from tests.smoke.apps import values
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import journal, wait_until_idle
from tests.waiting import eventually

LONG = 30
"""Seconds for a run with a few retries, on a busy machine."""


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.values"


def error_of(task: Any, *args: Any) -> Exception:
    """Run a task until it has failed; return exactly what `.get()` raises."""
    result = task.delay(*args)
    try:
        value = result.get(timeout=LONG)
    except Exception as error:
        return error
    pytest.fail(f"{task.name} did not fail, it returned {value!r}")


def test_the_outcome_is_the_value(worker: Worker) -> None:
    result = values.value.delay()

    expected = {"text": "ä", "list": [1, None, 2.5], "uuid": UUID(int=7), "date": date(2026, 1, 31)}
    assert result.get(timeout=LONG) == expected
    assert result.state == "SUCCESS"


def test_a_model_that_a_task_returns_arrives_as_json(worker: Worker) -> None:
    assert values.model.delay().get(timeout=LONG) == {"number": 1, "placed": "2026-01-31"}


@pytest.mark.parametrize(
    ("task", "times"),
    [
        ("terminal_of_a_step", 1),
        ("terminal_of_the_body", 1),
        ("terminal_on_the_base_class", 1),
        ("terminal_replayed", 1),
    ],
)
def test_a_terminal_error_has_its_message_code_and_metadata(worker: Worker, task: str, times: int) -> None:
    error = error_of(getattr(values, task))

    assert type(error) is TerminalError
    assert error.args == ("no such account", 404, {"account": "A-1"})
    assert (str(error), error.status_code, error.metadata) == error.args
    assert effects.executions("fail") == [times]


def test_a_terminal_error_of_an_exception_tells_its_message(worker: Worker) -> None:
    error = error_of(values.terminal_of_an_exception)

    assert type(error) is TerminalError
    assert error.args == ("'A-1'", 404, None)


def test_a_subclass_arrives_as_itself_where_it_rebuilds(worker: Worker) -> None:
    error = error_of(values.subclass)

    assert type(error) is values.OutOfStock
    assert error.args == ("no chairs", 409, {"chairs": 0})
    assert effects.executions("fail") == [1]


@pytest.mark.parametrize("task", ["subclass_that_does_not_rebuild", "subclass_that_does_not_rebuild_of_the_body"])
def test_a_subclass_that_does_not_rebuild_arrives_as_a_terminal_error(worker: Worker, task: str) -> None:
    error = error_of(getattr(values, task))

    assert type(error) is TerminalError
    assert error.args == ("visa has a limit of 100", 402, {"limit": 100})
    assert effects.executions("fail") == [1]


def test_exhausted_retries_arrive_with_all_their_facts(worker: Worker) -> None:
    error = error_of(values.exhausted)

    assert type(error) is RetriesExhausted
    assert isinstance(error, TerminalError)
    assert (error.attempts, error.status_code, error.metadata) == (3, 500, None)
    assert timedelta(seconds=0.06) <= error.elapsed < timedelta(seconds=LONG)
    assert (error.last_error_type, error.last_error_message) == ("GatewayDown", "timeout")
    assert "in fail" in error.last_error_traceback
    assert "step 'charge' failed 3 times" in str(error)
    assert effects.executions("fail") == [3]


def test_exhausted_retries_keep_the_code_of_a_retryable_error(worker: Worker) -> None:
    error = error_of(values.exhausted_by_a_retryable_error)

    assert type(error) is RetriesExhausted
    assert (error.attempts, error.status_code, error.last_error_type) == (3, 429, "RetryableError")


@pytest.mark.parametrize(
    ("task", "times"),
    [("policy_spent_by_a_step", 3), ("policy_spent_by_the_body", 3), ("original_on_the_base_class", 1)],
)
def test_the_original_exception_arrives_when_the_retries_of_the_task_are_spent(
    worker: Worker, task: str, times: int
) -> None:
    error = error_of(getattr(values, task))

    assert type(error) is values.GatewayDown
    assert error.args == ("timeout", 7)
    assert effects.executions("fail") == [times]


def test_a_builtin_exception_arrives_as_itself(worker: Worker) -> None:
    error = error_of(values.policy_spent_by_a_builtin)

    assert type(error) is KeyError
    assert error.args == ("A-1",)
    assert effects.executions("fail") == [3]


NAMED = [
    ("mismatch", JournalMismatchError, "asked for: step 'step of attempt 2'", 2),
    ("context_in_a_step", ContextInStepError, "step 'outer'", 1),
    ("not_encodable", EntryNotRecordableError, "step 'connect' ran, but a object cannot be recorded", 1),
    ("invalid_step", InvalidStepError, 'write ctx.run("failing", failing, ...)', 1),
    ("wrong_arguments", InvalidStepError, "RunOptions(max_attempts=...)", 1),
    ("wrong_option", ConfigurationError, "did you mean 'max_attempts'", 1),
]


@pytest.mark.parametrize(("task", "error", "message", "times"), NAMED)
def test_errors_of_the_library_arrive_by_name(
    durable: DurableSetup, worker: Worker, task: str, error: type[Exception], message: str, times: int
) -> None:
    result = getattr(values, task).delay()

    with pytest.raises(error) as raised:
        result.get(timeout=LONG)
    assert type(raised.value) is error
    assert message in str(raised.value)
    assert effects.executions("fail") == [times], "none of them is retried"
    assert journal(durable.redis, result.id)["status"] == "failed"


def test_a_run_that_only_dies_is_parked_by_name(durable: DurableSetup) -> None:
    durable.start_worker(concurrency=1, conf={"durable_lease": 1})

    error = error_of(values.dying)

    assert type(error) is RecoveryLimitExceeded
    assert "max_recoveries=2" in str(error)
    assert effects.executions("fail") == [3]


def test_after_ignore_the_caller_keeps_waiting(durable: DurableSetup, worker: Worker) -> None:
    result = values.ignored.delay()

    eventually(lambda: journal(durable.redis, result.id).get("status") == "ignored")
    wait_until_idle(durable)
    assert (result.state, result.ready()) == ("PENDING", False)
    assert effects.count("before", result.id) == 1


def test_after_reject_the_run_has_ended(durable: DurableSetup, worker: Worker) -> None:
    """In the state that Celery gives it."""
    result = values.rejected.delay()

    eventually(result.ready)
    wait_until_idle(durable)
    assert result.state == "FAILURE"
    assert journal(durable.redis, result.id)["status"] == "failed"
    assert effects.count("before", result.id) == 1


def test_arguments_that_do_not_fit_fail_at_once(worker: Worker) -> None:
    """Sent by name, since the client of a task checks them itself."""
    sent = values.app.send_task(values.misfit.name, ["one", "too many"])

    with pytest.raises(TypeError, match="too many positional arguments"):
        sent.get(timeout=LONG)
    assert effects.executions("fail") == []


def test_a_model_that_does_not_validate_fails_at_once(worker: Worker) -> None:
    good = values.takes_a_model.delay({"number": 7, "placed": "2026-01-31"})
    assert good.get(timeout=LONG) == 7

    with pytest.raises(Exception, match="valid integer"):
        values.takes_a_model.delay({"number": "seven", "placed": "2026-01-31"}).get(timeout=LONG)
    assert effects.executions("fail") == [1]


# -- what later attempts are given -------------------------------------------------------------------------------------


def test_what_was_valid_at_first_is_given_to_every_attempt(durable: DurableSetup, worker: Worker) -> None:
    """A recorded model, and one among the arguments; Celery validates those each time."""
    result = values.books.delay({"begins": "2026-01-31"})

    assert result.get(timeout=LONG) == date(2026, 1, 31)
    assert [effects.count("pay"), effects.count("review")] == [1, 2]


def test_what_was_not_valid_is_refused_as_often_as_it_is_retried(durable: DurableSetup, worker: Worker) -> None:
    effects.hit("pay")
    result = values.books.delay({"begins": "2026-01-31"})

    for _ in range(2):
        with pytest.raises(TerminalError, match="in the past"):
            result.get(timeout=LONG)
        wait_until_idle(durable)
        result.forget()
        result = values.books.apply_async(({"begins": "2026-01-31"},), task_id=result.id)
    assert effects.count("pay") == 1


ACCEPTS_ALL = {"accept_content": ["json", "pickle", "yaml"]}
AS_ROOT = {"C_FORCE_ROOT": "1"}
"""Without it Celery does not unpickle for the user root."""


@pytest.mark.parametrize("serializer", ["pickle", "yaml", "json"])
def test_the_arguments_of_every_attempt_are_those_that_were_sent(durable: DurableSetup, serializer: str) -> None:
    durable.start_worker(concurrency=1, conf=ACCEPTS_ALL, env=AS_ROOT)
    args: tuple[Any, ...] = ({1: "a", 2: [3]}, date(2026, 1, 31))
    if serializer == "pickle":
        args = (*args, {(1, 2): {3}}, (4, (5,)), values.Order(number=1, placed=date(2026, 1, 31)))
    if serializer == "json":
        args = ({"1": "a"}, [UUID(int=1)])

    result = values.shows_its_arguments.apply_async(args, {"more": {"a": [1.5, None]}}, serializer=serializer)

    given = repr((args, {"more": {"a": [1.5, None]}}))
    assert result.get(timeout=LONG) == given
    assert [hit.key for hit in effects.hits("given")] == [given] * 3


def test_arguments_that_cannot_be_kept_are_refused_before_anything_runs(durable: DurableSetup) -> None:
    durable.start_worker(pool="solo", conf=ACCEPTS_ALL, env=AS_ROOT)  # to another process they would not even get

    result = values.shows_its_arguments.apply_async((values.Unpicklable(),), serializer="pickle")

    with pytest.raises(EntryNotRecordableError, match="it stays where it is"):
        result.get(timeout=LONG)
    assert effects.count("given") == 0
    wait_until_idle(durable)
    assert result.state == "FAILURE"
