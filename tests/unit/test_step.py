"""One step: executed until it is recorded, then replayed; its failures are retried, recorded or passed on."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta
from functools import partial
from typing import Any

import pydantic
import pytest

from celery_durable import (
    ConfigurationError,
    ContextClosedError,
    EntryNotRecordableError,
    InvalidStepError,
    JournalMismatchError,
    JournalUnreadableError,
    RetriesExhausted,
    RetryableError,
    RunOptions,
    TerminalError,
    current_step,
)
from celery_durable.interrupts import EndRun, FailAttempt, RetryStep
from celery_durable.journal.entries import open_entry, read_entry
from tests.unit.conftest import Action, Run


class Order(pydantic.BaseModel):
    number: int


def make_order(number: int) -> Order:
    return Order(number=number)


def add(a: int, b: int = 0, *, c: int = 0) -> int:
    return a + b + c


def ends_run(interrupt: pytest.ExceptionInfo[EndRun], kind: type[Exception]) -> str:
    """The text of the error by which the run ends."""
    assert type(interrupt.value.error) is kind
    return str(interrupt.value.error)


# -- record and replay -------------------------------------------------------------------------------------------------


def test_a_finished_step_never_runs_again(run: Run) -> None:
    action = Action(5)
    for attempt in (1, 2, 3):
        ctx = run.attempt()
        assert ctx.attempt == attempt
        assert ctx.run("count", action) == 5
    assert action.executions == 1
    assert run.names() == ["step:1"]


def test_the_record_is_in_the_journal_before_the_next_line_runs(run: Run) -> None:
    run.attempt().run("count", Action(5))
    entry = run.entry("step:1")
    assert (entry["name"], entry["state"], entry["attempts"], entry["value"]) == ("count", "done", 1, 5)


def test_a_process_that_dies_after_a_step_keeps_it(run: Run) -> None:
    action = Action(5)
    run.attempt().run("count", action)
    run.die()
    assert run.attempt().run("count", action) == 5
    assert action.executions == 1


def test_a_none_is_a_result(run: Run) -> None:
    action = Action(None)
    assert run.attempt().run("nothing", action) is None
    assert run.attempt().run("nothing", action) is None
    assert action.executions == 1


def test_the_first_execution_returns_what_replay_returns(run: Run) -> None:
    def coordinates() -> Any:
        return {"at": (1, 2)}

    assert run.attempt().run("locate", coordinates) == {"at": [1, 2]}
    assert run.attempt().run("locate", coordinates) == {"at": [1, 2]}


def test_a_model_is_one_on_both_executions_and_in_no_case_the_same_object(run: Run) -> None:
    orders = [run.attempt().run("make", make_order, 5) for _ in range(2)]
    assert orders == [Order(number=5), Order(number=5)]
    assert orders[0] is not orders[1]


def test_run_and_run_typed_are_one_verb(run: Run) -> None:
    assert run.attempt().run_typed("add", add, 1, 2) == 3
    assert run.attempt().run("add", add, 1, 2) == 3


def test_steps_may_be_added_at_the_end(run: Run) -> None:
    run.attempt().run("one", Action(1))
    ctx = run.attempt()
    assert [ctx.run("one", Action(0)), ctx.run("two", Action(2))] == [1, 2]


async def _asynchronous(a: int, b: int = 0) -> int:
    await asyncio.sleep(0)
    return a + b


class Service:
    def add(self, a: int, b: int = 0) -> int:
        return a + b

    async def add_async(self, a: int, b: int = 0) -> int:
        return a + b

    def __call__(self, a: int, b: int = 0) -> int:
        return a + b


ACTIONS = [
    pytest.param(add, id="function"),
    pytest.param(_asynchronous, id="async function"),
    pytest.param(lambda a, b: a + b, id="lambda"),
    pytest.param(lambda a, b: _asynchronous(a, b=b), id="lambda that returns an awaitable"),
    pytest.param(partial(add), id="partial"),
    pytest.param(partial(_asynchronous), id="partial of an async function"),
    pytest.param(Service().add, id="bound method"),
    pytest.param(Service().add_async, id="async bound method"),
    pytest.param(Service(), id="callable object"),
    pytest.param(max, id="builtin without a signature"),
]


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_of_a_sync_task_may_be_any_callable(run: Run, action: Any) -> None:
    expected = 2 if action is max else 3
    assert run.attempt().run("add", action, 1, 2) == expected
    assert run.attempt().run("add", action, 1, 2) == expected


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_of_an_async_task_may_be_any_callable(run: Run, action: Any) -> None:
    async def body() -> Any:
        return await run.async_attempt().run("add", action, 1, 2)

    expected = 2 if action is max else 3
    assert asyncio.run(body()) == expected
    assert asyncio.run(body()) == expected


def with_session(function: Any) -> Any:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return function("session", *args, **kwargs)

    return called


@with_session
def save(session: str, order: int) -> list[Any]:
    return [session, order]


@pytest.mark.parametrize(
    ("action", "args"),
    [(save, (5,)), (partial(save), (5,)), (partial(save, order=5), ())],
    ids=["plain", "partial", "all"],
)
def test_a_decorator_of_an_action_may_pass_arguments_of_its_own(run: Run, action: Any, args: tuple[int, ...]) -> None:
    assert run.attempt().run("save", action, *args) == ["session", 5]


def test_an_option_is_none_of_the_arguments_that_a_decorator_takes(run: Run) -> None:
    with pytest.raises(EndRun) as ended:
        run.attempt().run("save", save, 5, max_attempts=3)
    assert "RunOptions(max_attempts=...)" in ends_run(ended, InvalidStepError)


def test_options_are_recognised_by_their_type(run: Run) -> None:
    ctx = run.attempt()
    assert ctx.run("plain", add, 5) == 5
    assert ctx.run("options", add, RunOptions(max_attempts=2), 5, c=2) == 7
    assert ctx.run("keyword", add, a=1, b=2) == 3


# -- how a step is called ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "corrected"),
    [
        ((make_order, 5), 'ctx.run("make_order", make_order, ...)'),
        ((make_order,), 'ctx.run("make_order", make_order, ...)'),
        ((Service().add, 1), 'ctx.run("add"'),
        ((partial(make_order, 5),), 'ctx.run("'),
        ((lambda: 1,), 'as in ctx.run("charge", charge)'),
    ],
    ids=["with an argument", "alone", "method", "partial", "lambda"],
)
def test_a_callable_in_place_of_the_name_prints_the_corrected_call(
    run: Run, call: tuple[Any, ...], corrected: str
) -> None:
    with pytest.raises(EndRun) as ended:
        run.attempt().run(*call)
    assert corrected in ends_run(ended, InvalidStepError)


@pytest.mark.parametrize("name", [None, 5, b"pay"], ids=repr)
def test_a_name_has_to_be_a_string(run: Run, name: Any) -> None:
    with pytest.raises(EndRun) as ended:
        run.attempt().run(name, make_order, 5)
    assert repr(name) in ends_run(ended, InvalidStepError)
    assert run.names() == []


def test_a_coroutine_object_as_action_prints_the_corrected_call(run: Run) -> None:
    with pytest.raises(EndRun) as ended:
        run.attempt().run("add", _asynchronous(1, 2))
    assert 'ctx.run("add", _asynchronous, ...)' in ends_run(ended, InvalidStepError)


@pytest.mark.parametrize("action", [5, "make_order", None, Order(number=5)], ids=repr)
def test_an_action_that_cannot_be_called_is_shown(run: Run, action: Any) -> None:
    with pytest.raises(EndRun) as ended:
        run.attempt().run("make", action)
    text = ends_run(ended, InvalidStepError)
    assert "'make'" in text
    assert repr(action) in text


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"d": 4}, "unexpected keyword argument 'd'"),
        ((1,), {"max_attempts": 4}, "RunOptions(max_attempts=...)"),
        ((1,), {"non_retryable": ()}, "RunOptions(non_retryable=...)"),
        ((1,), {"max_retry_duration": 4}, "RunOptions(max_retry_duration=...)"),
    ],
    ids=["too few", "too many", "unknown keyword", "option", "another option", "alias of an option"],
)
def test_arguments_that_do_not_fit_end_the_run_before_the_action(
    run: Run, args: tuple[int, ...], kwargs: dict[str, Any], said: str
) -> None:
    with pytest.raises(EndRun) as ended:
        run.attempt().run("add", add, *args, **kwargs)
    text = ends_run(ended, InvalidStepError)
    assert "step 'add'" in text
    assert said in text
    assert run.names() == []


def test_an_action_may_have_parameters_named_like_options(run: Run) -> None:
    def search(max_attempts: int, **more: int) -> int:
        return max_attempts + more["name"]

    assert run.attempt().run("search", search, max_attempts=1, name=2) == 3


def test_pickle_without_the_permission_of_the_app_is_refused_before_the_action_runs(run: Run) -> None:
    action = Action(5)
    with pytest.raises(EndRun) as ended:
        run.attempt().run("make", action, RunOptions(serializer="pickle"))
    assert "accept_content" in ends_run(ended, ConfigurationError)
    assert action.executions == 0


@pytest.mark.parametrize("hint", [5, True, [Order], {"a": 1}, "Order", Order(number=5), threading.Thread], ids=repr)
@pytest.mark.parametrize("result", [5, Order(number=5)], ids=repr)
def test_a_type_hint_that_is_no_type_is_refused_before_the_action_runs(run: Run, hint: Any, result: Any) -> None:
    action = Action(result)
    with pytest.raises(EndRun) as ended:
        run.attempt().run("make", action, RunOptions(type_hint=hint))
    text = ends_run(ended, ConfigurationError)
    assert text == f"task task-1: step 'make': type_hint must be a type that Pydantic can write and read, got {hint!r}"
    assert action.executions == 0
    assert run.names() == []


def test_a_type_hint_that_pydantic_does_not_know_is_none_of_its_business_with_a_serializer(run: Run) -> None:
    options = RunOptions(type_hint=threading.Thread, serializer="yaml")
    assert run.attempt().run("make", Action(5), options) == 5


# -- what is recorded --------------------------------------------------------------------------------------------------


def test_type_hint_declares_what_a_lambda_returns(run: Run) -> None:
    options = RunOptions(type_hint=Order)
    for _ in range(2):
        assert run.attempt().run("make", lambda: Order(number=5), options) == Order(number=5)


def test_a_value_that_does_not_encode_ends_the_run_and_says_what_to_do(run: Run) -> None:
    def make():  # noqa: ANN202
        return Order(number=5)

    with pytest.raises(EndRun) as ended:
        run.attempt().run("make", make)
    text = ends_run(ended, EntryNotRecordableError)
    for part in ("task task-1", "step 'make'", "Order", "make with its return type", "type_hint=Order"):
        assert part in text
    assert run.names() == []


class Session(pydantic.BaseModel):
    user: str
    token: pydantic.SecretStr


def opened() -> threading.Thread:
    raise AssertionError("it ran")


async def logged_in() -> Session:
    raise AssertionError("it ran")


@pytest.mark.parametrize(
    ("action", "options"),
    [(opened, RunOptions()), (logged_in, RunOptions()), (lambda: 1 / 0, RunOptions(type_hint=Session))],
    ids=["no JSON form", "a secret in it", "type_hint"],
)
def test_what_cannot_be_recorded_by_its_type_is_refused_before_the_action_runs(
    run: Run, action: Any, options: RunOptions
) -> None:
    with pytest.raises(EndRun) as ended:
        run.attempt().run("open", action, options)
    assert "step 'open' did not run" in ends_run(ended, EntryNotRecordableError)
    assert run.names() == []
    assert run.attempt().run("count", len, [1, 2]) == 2, "a function that says nothing"


def test_a_type_that_a_decorator_may_have_left_behind_refuses_nothing(run: Run) -> None:
    @functools.wraps(opened)
    def made_plain() -> Any:
        return "plain"

    assert run.attempt().run("open", made_plain) == "plain"


def endless() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


def deep() -> list[Any]:
    inside: list[Any] = []
    for _ in range(100_000):
        inside = [inside]
    return inside


@pytest.mark.parametrize("made", [endless, deep, lambda: 10**5_000], ids=["endless", "deep", "number"])
def test_metadata_without_an_end_ends_the_run_by_name(run: Run, made: Any) -> None:
    action = Action(TerminalError("no", 404, {"a": made()}))
    with pytest.raises(EndRun) as ended:
        run.attempt().run("fail", action, RunOptions(max_attempts=3))
    assert "its TerminalError" in ends_run(ended, EntryNotRecordableError)
    assert action.executions == 1


@pytest.mark.parametrize("text", ["x" * 100, "\u00e9" * 50], ids=["ASCII", "two bytes each"])
def test_a_value_over_the_size_limit_is_refused_by_its_bytes(run: Run, text: str) -> None:
    ctx = run.attempt(max_entry_size=101)
    with pytest.raises(EndRun) as ended:
        ctx.run("read", Action(text))
    said = ends_run(ended, EntryNotRecordableError)
    for part in ("step 'read'", "str", "102 bytes", "durable_max_entry_size=101"):
        assert part in said
    assert run.names() == []


def test_a_value_of_exactly_the_size_limit_is_recorded(run: Run) -> None:
    assert run.attempt(max_entry_size=102).run("read", Action("x" * 100)) == "x" * 100


def test_a_mebibyte_is_recorded_with_a_warning(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    ctx = run.attempt()
    ctx.run("small", Action("x" * (2**20 - 2)))
    assert caplog.text == ""
    ctx.run("large", Action("x" * (2**20 - 1)))
    assert f"step 'large' records {2**20 + 1} bytes" in caplog.text


def test_a_journal_of_many_entries_is_warned_of_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.attempt()
    run.journal.send(
        {f"step:{n}": '{"name":"n","state":"done","attempts":1,"at":1,"ms":1,"value":1}' for n in range(1, 9_994)}
    )
    ctx = run.attempt()
    for _ in range(9_993):
        ctx.run("n", Action(0))
    assert caplog.text == ""
    for _ in range(20):
        ctx.run("n", Action(0))
    assert caplog.text.count("every attempt loads them all") == 1
    assert "task task-1" in caplog.text


def test_a_serializer_and_a_compression_are_marked_and_read_again(run: Run) -> None:
    options = RunOptions(serializer="pickle", compression="zlib")
    for _ in range(2):
        kept = run.attempt(accept=frozenset({"json", "pickle"})).run("make", lambda: Order(number=5), options)
        assert kept == Order(number=5)
    entry = run.entry("step:1")
    assert entry["serializer"] == "pickle"
    assert "zlib" in entry["compression"] or "gzip" in entry["compression"]


def test_a_step_option_wins_over_the_serializer_of_the_task(run: Run) -> None:
    terms = {"serializer": "pickle", "accept": frozenset({"json", "pickle"})}
    ctx = run.attempt(**terms)
    ctx.run("pickled", Action(5))
    ctx.run("plain", Action(5), RunOptions(serializer="json"))
    assert "serializer" in run.entry("step:1")
    assert run.entry("step:2")["value"] == 5


@pytest.mark.parametrize("value", [b"{", b'{"$type":"nonsense","$value":1}', b"nul"], ids=repr)
def test_a_damaged_value_is_named_and_nothing_is_changed(run: Run, value: bytes) -> None:
    run.attempt().run("count", Action(5))
    damaged = b'{"name":"count","state":"done","attempts":1,"at":1,"ms":1,"value":' + value + b"}"
    run.journal.fields[b"step:1"] = damaged
    with pytest.raises(EndRun) as ended:
        run.attempt().run("count", Action(5))
    assert "step 'count'" in ends_run(ended, JournalUnreadableError)
    assert run.journal.fields[b"step:1"] == damaged


def test_a_damaged_entry_ends_the_run(run: Run) -> None:
    run.attempt().run("count", Action(5))
    run.journal.fields[b"step:1"] = b"rubbish"
    action = Action(5)
    with pytest.raises(EndRun) as ended:
        run.attempt().run("count", action)
    text = ends_run(ended, JournalUnreadableError)
    assert "task task-1" in text
    assert "step:1" in text
    assert action.executions == 0


@pytest.mark.parametrize(
    "error",
    [
        None,
        5,
        [],
        {},
        {"type": 5, "message": "no"},
        {"type": "ValueError"},
        {"type": "TerminalError", "message": "no", "status_code": 402},
        {"type": "Error", "module": [], "message": "no"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("wait", [False, True], ids=["step", "wait"])
def test_a_failure_that_cannot_be_read_ends_the_run(run: Run, error: Any, wait: bool) -> None:
    state, facts = ("cancelled", {"until": 1}) if wait else ("failed", {})
    run.attempt().run("first", Action(1))
    kept = open_entry("count", state, 1, at=1, **facts, **({} if error is None else {"error": error})).encode()
    run.journal.fields[b"step:2"] = kept
    ctx, action = run.attempt(), Action(5)
    ctx.run("first", Action(1))
    with pytest.raises(EndRun) as ended:
        ctx.sleep(1, "count") if wait else ctx.run("count", action)
    text = ends_run(ended, JournalUnreadableError)
    assert "task task-1: entry step:2 is damaged" in text
    assert run.journal.fields[b"step:2"] == kept
    assert action.executions == 0


@pytest.mark.parametrize("field", [b"step:x", b"step:", b"step:1.x", b"step:\xff"], ids=repr)
def test_an_entry_at_no_place_ends_the_run_by_name(run: Run, field: bytes) -> None:
    run.attempt().run("count", Action(5))
    run.journal.fields[field] = run.journal.fields[b"step:1"]
    run.attempt().run("count", Action(5))
    with pytest.raises(EndRun) as ended:
        run.reach_the_end()
    assert "has no position in program order; delete it" in ends_run(ended, JournalUnreadableError)


def test_a_damaged_entry_that_the_body_does_not_reach_ends_the_run_by_name(run: Run) -> None:
    run.attempt()
    run.journal.fields[b"step:1"] = b"rubbish"
    run.attempt()
    with pytest.raises(EndRun) as ended:
        run.reach_the_end()
    assert "task task-1: entry step:1 is damaged" in ends_run(ended, JournalUnreadableError)


def test_a_result_that_is_no_longer_of_the_declared_type_is_an_error(run: Run) -> None:
    made = make_order(7)
    run.attempt().run("make", Action(made), RunOptions(type_hint=Order))
    with pytest.raises(EndRun) as ended:
        run.attempt().run("make", Action(made), RunOptions(type_hint=date))
    assert "has the return type of the action or its serializer changed?" in ends_run(ended, JournalUnreadableError)


class Refund(pydantic.BaseModel):
    number: int


def test_a_member_of_a_union_is_replayed_as_that(run: Run) -> None:
    for hint in (Order | Refund, Order | Refund, Refund | Order | None):
        kept = run.attempt().run("make", Action(Refund(number=5)), RunOptions(type_hint=hint))
        assert type(kept) is Refund
    with pytest.raises(EndRun) as ended:
        run.attempt().run("make", Action(5), RunOptions(type_hint=Order | int))
    assert "test_step.Refund, which is not in the declared type any more" in ends_run(ended, JournalUnreadableError)


# -- failures: the step's own retries ----------------------------------------------------------------------------------

QUICK = RunOptions(initial_retry_interval=1, max_attempts=3)


def test_a_failed_step_asks_for_another_attempt_and_then_goes_on(run: Run) -> None:
    action = Action(OSError("one"), OSError("two"), "done")
    for delay, said in ((1.0, "one"), (2.0, "two")):
        with pytest.raises(RetryStep) as retry:
            run.attempt().run("flaky", action, QUICK)
        assert retry.value.delay == delay
        assert str(retry.value.error) == said
    assert run.attempt().run("flaky", action, QUICK) == "done"
    assert action.executions == 3
    assert run.entry("step:1")["attempts"] == 3


def test_a_step_that_may_start_once_has_failed_once(run: Run) -> None:
    with pytest.raises(RetriesExhausted, match="step 'flaky' failed once within"):
        run.attempt().run("flaky", Action(ValueError("one")), RunOptions(max_attempts=1))


def test_spent_retries_are_recorded_and_replayed_identically(run: Run) -> None:
    action = Action(ValueError("one"), ValueError("two"), RetryableError("busy", 503))
    for _ in range(2):
        with pytest.raises(RetryStep):
            run.attempt().run("flaky", action, QUICK)
    failures = []
    for _ in range(3):
        with pytest.raises(RetriesExhausted) as spent:
            run.attempt().run("flaky", action, QUICK)
        failures.append(spent.value)
    assert action.executions == 3
    for failure in failures:
        assert failure.args == failures[0].args
        assert failure.attempts == 3
        assert timedelta(0) <= failure.elapsed < timedelta(minutes=1)
        assert failure.last_error_type == "RetryableError"
        assert failure.last_error_message == "busy"
        assert "raise ending" in failure.last_error_traceback
        assert failure.status_code == 503
        assert "step 'flaky' failed 3 times" in str(failure)
    assert isinstance(failures[0].__cause__, RetryableError)


def test_spent_retries_have_status_500_after_any_other_error(run: Run) -> None:
    with pytest.raises(RetriesExhausted) as spent:
        run.attempt().run("flaky", Action(ValueError("no")), RunOptions(max_attempts=1))
    assert spent.value.status_code == 500


def test_user_code_may_catch_spent_retries_and_compensate(run: Run) -> None:
    pay, refund = Action(OSError("no")), Action("refunded")
    for _ in range(2):
        ctx = run.attempt()
        with suppress(TerminalError):
            ctx.run("pay", pay, RunOptions(max_attempts=1))
        assert ctx.run("refund", refund) == "refunded"
    assert (pay.executions, refund.executions) == (1, 1)


def test_waits_up_to_the_inline_limit_happen_inside_the_attempt(run: Run) -> None:
    action = Action(OSError(), OSError(), "done")
    options = RunOptions(initial_retry_interval=0.001, max_attempts=3)
    assert run.attempt(inline_retry_limit=0.002).run("flaky", action, options) == "done"
    assert action.executions == 3


def test_a_longer_wait_than_the_inline_limit_frees_the_worker(run: Run) -> None:
    action = Action(OSError())
    with pytest.raises(RetryStep) as retry:
        run.attempt(inline_retry_limit=0.002).run(
            "flaky", action, RunOptions(initial_retry_interval=0.001, retry_interval_factor=3)
        )
    assert (action.executions, retry.value.delay) == (2, 0.003)


def test_retry_after_wins_over_the_delay_of_the_step(run: Run) -> None:
    with pytest.raises(RetryStep) as retry:
        run.attempt().run("flaky", Action(RetryableError("busy", retry_after=42)), QUICK)
    assert retry.value.delay == 42


def test_each_step_counts_by_itself(run: Run) -> None:
    first, second = Action(OSError(), 1), Action(OSError(), OSError(), 2)
    for _ in range(3):
        ctx = run.attempt()
        with suppress(RetryStep):
            ctx.run("first", first, QUICK)
            ctx.run("second", second, QUICK)
    ctx = run.attempt()
    assert [ctx.run("first", first, QUICK), ctx.run("second", second, QUICK)] == [1, 2]
    assert (first.executions, second.executions) == (2, 3)


def test_an_execution_that_died_with_its_process_counts(run: Run) -> None:
    action = Action(KeyboardInterrupt(), OSError("two"), OSError("three"))
    with pytest.raises(KeyboardInterrupt):
        run.attempt().run("flaky", action, QUICK)
    run.die()
    assert run.entry("step:1")["state"] == "started"
    with pytest.raises(RetryStep) as retry:
        run.attempt().run("flaky", action, QUICK)
    assert retry.value.delay == 2.0
    with pytest.raises(RetriesExhausted):
        run.attempt().run("flaky", action, QUICK)
    assert action.executions == 3


def test_a_step_with_one_attempt_never_starts_twice(run: Run) -> None:
    action, options = Action(KeyboardInterrupt()), RunOptions(max_attempts=1)
    with pytest.raises(KeyboardInterrupt):
        run.attempt().run("once", action, options)
    run.die()
    for _ in range(2):
        with pytest.raises(RetriesExhausted) as spent:
            run.attempt().run("once", action, options)
        assert spent.value.attempts == 1
        assert "died" in spent.value.last_error_message
    assert action.executions == 1


def test_without_limits_no_start_is_written(run: Run) -> None:
    seen: list[list[str]] = []
    options = RunOptions(initial_retry_interval=1)
    run.attempt().run("free", lambda: seen.append(run.names()), options)
    run.attempt().run("free", lambda: None, options)
    assert seen == [[]]


@pytest.mark.parametrize("limits", [{"max_attempts": 5}, {"max_attempts": 1}, {"max_duration": 5}], ids=str)
def test_with_limits_the_start_is_sent_before_the_action(run: Run, limits: dict[str, Any]) -> None:
    seen: list[Any] = []
    run.attempt().run("limited", lambda: seen.append(run.entry("step:1")), RunOptions(**limits))
    assert [(entry["state"], entry["attempts"]) for entry in seen] == [("started", 1)]


# -- failures: max_duration --------------------------------------------------------------------------------------------

MINUTE = RunOptions(initial_retry_interval=20, retry_interval_factor=1, max_retry_interval=20, max_duration=60)


def test_a_wait_that_would_end_past_max_duration_is_not_begun(run: Run) -> None:
    action = Action(OSError("no"))
    for later in (0, 20):
        with pytest.raises(RetryStep):
            run.attempt(later=later).run("slow", action, MINUTE)
    with pytest.raises(RetriesExhausted) as spent:
        run.attempt(later=41).run("slow", action, MINUTE)
    assert action.executions == 3
    assert spent.value.attempts == 3
    assert timedelta(seconds=41) <= spent.value.elapsed < timedelta(seconds=45)


def test_a_retry_that_is_delivered_late_is_executed_all_the_same(run: Run) -> None:
    action = Action(OSError("no"), "done")
    with pytest.raises(RetryStep):
        run.attempt().run("slow", action, MINUTE)
    assert run.attempt(later=86_400).run("slow", action, MINUTE) == "done"
    assert action.executions == 2


def test_a_late_retry_that_fails_is_the_last(run: Run) -> None:
    action = Action(OSError("no"))
    with pytest.raises(RetryStep):
        run.attempt().run("slow", action, MINUTE)
    with pytest.raises(RetriesExhausted) as spent:
        run.attempt(later=86_400).run("slow", action, MINUTE)
    assert (action.executions, spent.value.attempts) == (2, 2)


def test_the_duration_runs_from_the_first_execution_of_the_step_not_of_the_task(run: Run) -> None:
    run.attempt().run("early", Action(1))
    ctx = run.attempt(later=86_400)
    ctx.run("early", Action(1))
    with pytest.raises(RetryStep):
        ctx.run("slow", Action(OSError("no")), MINUTE)


# -- failures: everything else -----------------------------------------------------------------------------------------


def test_a_step_without_retry_options_leaves_the_failure_to_the_task(run: Run) -> None:
    error = OSError("no")
    with pytest.raises(FailAttempt) as failed:
        run.attempt().run("plain", Action(error))
    assert failed.value.error is error


@pytest.mark.parametrize(
    "options", [RunOptions(jitter=True), RunOptions(non_retryable=(KeyError,))], ids=["jitter", "non_retryable"]
)
def test_options_that_say_nothing_about_retries_leave_the_failure_to_the_task(run: Run, options: RunOptions) -> None:
    with pytest.raises(FailAttempt):
        run.attempt().run("plain", Action(OSError("no")), options)


class CardDeclined(TerminalError):
    pass


class SoldOut(TerminalError):
    """Cannot be made of its ``args``."""

    def __init__(self, order: int, shop: str) -> None:
        super().__init__(f"order {order} in {shop}", 409, {"order": order})


@pytest.mark.parametrize("options", [(), (QUICK,)], ids=["no options", "retry options"])
@pytest.mark.parametrize(
    ("raised", "kind", "error_type"),
    [
        (TerminalError("no", 404, {"order": 5}), TerminalError, None),
        (CardDeclined("no", 402), CardDeclined, None),
        (SoldOut(5, "Berlin"), TerminalError, "SoldOut"),
        (TerminalError(ValueError("no"), 400), TerminalError, "ValueError"),
    ],
    ids=["plain", "subclass", "subclass that does not rebuild", "made of an exception"],
)
def test_a_terminal_error_is_replayed_identically(
    run: Run, raised: TerminalError, kind: type[TerminalError], error_type: str | None, options: tuple[RunOptions, ...]
) -> None:
    action = Action(raised)
    for _ in range(3):
        with pytest.raises(TerminalError) as failure:
            run.attempt().run("pay", action, *options)
        assert type(failure.value) is kind
        assert failure.value.args == raised.args
        assert failure.value.error_type == error_type
        assert str(failure.value) == str(raised)
    assert action.executions == 1


@pytest.mark.parametrize("metadata", [{"at": date(2024, 1, 1)}, {"raw": b"\xff"}, {"tags": {1}}], ids=str)
def test_metadata_that_json_lacks_is_kept_or_refused_by_name(run: Run, metadata: dict[str, Any]) -> None:
    with pytest.raises((TerminalError, EndRun)) as failure:
        run.attempt().run("pay", Action(TerminalError("no", 400, metadata)))
    if isinstance(failure.value, TerminalError):
        assert failure.value.metadata == metadata
    else:
        assert type(failure.value.error) is EntryNotRecordableError


@pytest.mark.parametrize("metadata", [{"what": object()}, {"order": Order(number=5)}], ids=["object", "model"])
def test_metadata_that_cannot_be_recorded_ends_the_run_by_name(run: Run, metadata: dict[str, Any]) -> None:
    with pytest.raises(EndRun) as ended:
        run.attempt().run("pay", Action(TerminalError("no", 400, metadata)))
    text = ends_run(ended, EntryNotRecordableError)
    assert "step 'pay'" in text
    assert "TerminalError" in text
    assert "the action" in text
    assert "{action}" not in text


@pytest.mark.parametrize("kinds", [ValueError, (KeyError, ValueError), [ValueError]], ids=["class", "tuple", "list"])
def test_a_non_retryable_error_is_terminal_at_once(run: Run, kinds: Any) -> None:
    cause = UnicodeError("bad name")
    action = Action(cause)
    options = RunOptions(max_attempts=5, non_retryable=kinds)
    failures = []
    for _ in range(2):
        with pytest.raises(TerminalError) as failure:
            run.attempt().run("parse", action, options)
        failures.append(failure.value)
    assert action.executions == 1
    assert [type(failure) for failure in failures] == [TerminalError, TerminalError]
    assert {failure.error_type for failure in failures} == {"UnicodeError"}
    assert {failure.args for failure in failures} == {("bad name", 500, None)}
    assert failures[0].__cause__ is cause


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


def test_a_non_retryable_error_whose_message_cannot_be_read_is_terminal_all_the_same(run: Run) -> None:
    action = Action(Unspeakable())
    for _ in range(2):
        with pytest.raises(TerminalError, match="<a Unspeakable whose message cannot be read>") as failure:
            run.attempt().run("parse", action, RunOptions(non_retryable=(Unspeakable,)))
        assert failure.value.error_type == "Unspeakable"
    assert action.executions == 1
    assert run.entry("step:1")["state"] == "failed"


@pytest.mark.parametrize("options", [(), (QUICK,)], ids=["no options", "retry options"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit], ids=lambda kind: kind.__name__)
def test_what_asks_the_process_to_stop_passes_unrecorded(run: Run, kind: type[BaseException], options: Any) -> None:
    action = Action(kind(), "done")
    with pytest.raises(kind):
        run.attempt().run("step", action, *options)
    run.end()
    assert [read_entry(name, run.journal.fields[name.encode()]).settled for name in run.names()] in ([], [False])
    assert run.attempt().run("step", action, *options) == "done"
    assert action.executions == 2


def test_a_killed_greenlet_passes_unrecorded(run: Run) -> None:
    greenlet = pytest.importorskip("greenlet")
    with pytest.raises(greenlet.GreenletExit):
        run.attempt().run("step", Action(greenlet.GreenletExit()))


class Timeout(BaseException):
    """As gevent's."""


@pytest.mark.parametrize("kind", [Timeout, asyncio.CancelledError], ids=lambda kind: kind.__name__)
def test_any_other_base_exception_is_a_failed_execution(run: Run, kind: type[BaseException]) -> None:
    action = Action(kind("late"), "done")
    with pytest.raises(RetryStep) as retry:
        run.attempt().run("step", action, QUICK)
    assert type(retry.value.error) is kind
    assert run.attempt().run("step", action, QUICK) == "done"
    assert run.entry("step:1")["attempts"] == 2


# -- logs --------------------------------------------------------------------------------------------------------------


def test_a_recorded_step_is_logged_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "celery_durable")
    run.attempt().run("count", Action(5))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "task task-1" in caplog.messages[0]
    assert "'count'" in caplog.messages[0]
    assert "ms" in caplog.messages[0]
    run.attempt().run("count", Action(5))
    assert len(caplog.records) == 1


def test_a_failed_step_is_logged_with_its_count_and_its_next_try(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RetryStep):
        run.attempt().run("flaky", Action(OSError("away")), QUICK)
    assert len(caplog.records) == 1
    for part in ("task task-1", "'flaky'", "execution 1 of 3", "OSError: away", "next try in 1 s"):
        assert part in caplog.messages[0]


# -- current_step ------------------------------------------------------------------------------------------------------


def test_current_step_tells_an_action_where_it_is(run: Run) -> None:
    seen: list[tuple[Any, ...]] = []

    def look() -> None:
        step = current_step()
        seen.append((step.name, step.attempt, step.task_id, step.request, isinstance(step.logger, logging.Logger)))
        if len(seen) == 1:
            raise OSError("once more")

    with pytest.raises(RetryStep):
        run.attempt().run("look", look, QUICK)
    run.attempt().run("look", look, QUICK)
    assert seen == [("look", n, "task-1", {"id": "task-1"}, True) for n in (1, 2)]


def test_outside_of_a_step_there_is_no_current_one(run: Run) -> None:
    ctx = run.attempt()
    with pytest.raises(ContextClosedError, match="inside a step only"):
        current_step()
    ctx.run("step", lambda: current_step().name)
    with pytest.raises(ContextClosedError):
        current_step()


def keys_of(run: Run, names: list[str], failing: Callable[[], Any] = lambda: None) -> list[Any]:
    """The idempotency keys that the steps of one attempt see."""
    keys: list[Any] = []

    def note() -> None:
        keys.append(current_step().idempotency_key)
        failing()

    ctx = run.attempt()
    with suppress(RetryStep):
        for name in names:
            ctx.run(name, note, QUICK)
    return keys


def test_the_idempotency_key_is_the_same_for_every_execution(run: Run) -> None:
    first = keys_of(run, ["pay"], Action(OSError()))
    second = keys_of(run, ["pay"])
    assert first == second
    assert len(first) == 1
    assert first[0].version == 4


def test_the_idempotency_key_is_of_no_other_step_and_no_other_run(run: Run) -> None:
    keys = [*keys_of(run, ["pay", "pay", "ship"]), *keys_of(Run("task-2"), ["pay"]), *keys_of(Run(), ["pay"])]
    ctx = run.attempt()
    drawn = [ctx.uuid() for _ in range(3)]
    assert len({*keys, *drawn}) == 8


# -- mismatch ----------------------------------------------------------------------------------------------------------


def test_another_name_at_a_position_ends_the_run_and_changes_nothing(run: Run) -> None:
    ctx = run.attempt()
    ctx.run("reserve", Action(1))
    ctx.run("pay", Action(2))
    run.end()
    before = dict(run.journal.fields)
    ctx = run.attempt()
    ctx.uuid()
    ctx.run("reserve", Action(1))
    charge, later = Action(3), Action(4)
    with pytest.raises(EndRun) as ended:
        ctx.run("charge", charge)
    text = ends_run(ended, JournalMismatchError)
    for part in ("task task-1", "position: 2", "recorded: step 'pay'", "asked for: step 'charge'"):
        assert part in text
    with pytest.raises(EndRun) as again:
        ctx.run("pay", later)
    assert again.value is ended.value
    assert (charge.executions, later.executions) == (0, 0)
    run.end()
    changed = {name for name, value in run.journal.fields.items() if before.get(name) != value}
    assert changed <= {b"attempt"}


def test_no_except_exception_sees_a_mismatch(run: Run) -> None:
    run.attempt().run("pay", Action(1))
    ctx = run.attempt()
    with pytest.raises(EndRun), suppress(Exception):
        ctx.run("charge", Action(1))


def test_recorded_steps_that_the_body_does_not_reach_are_a_mismatch(run: Run) -> None:
    ctx = run.attempt()
    ctx.run("reserve", Action(1))
    ctx.run("pay", Action(2))
    run.attempt().run("reserve", Action(1))
    with pytest.raises(EndRun) as ended:
        run.reach_the_end()
    text = ends_run(ended, JournalMismatchError)
    for part in ("position: 2", "recorded: step 'pay'", "asked for: the end of the task"):
        assert part in text


def test_a_step_that_is_to_be_retried_counts_as_recorded(run: Run) -> None:
    with pytest.raises(RetryStep):
        run.attempt().run("pay", Action(OSError()), QUICK)
    with pytest.raises(EndRun) as ended:
        run.attempt().run("charge", Action(1), QUICK)
    assert "recorded: step 'pay'" in ends_run(ended, JournalMismatchError)


def test_a_step_that_failed_by_the_policy_of_the_task_counts_as_recorded(run: Run) -> None:
    with pytest.raises(FailAttempt):
        run.attempt().run("pay", Action(OSError()))
    run.attempt()
    with pytest.raises(EndRun) as ended:
        run.reach_the_end()
    assert "recorded: step 'pay'" in ends_run(ended, JournalMismatchError)
