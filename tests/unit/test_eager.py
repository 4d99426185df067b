"""Whole tasks without a worker: called as functions, and by ``apply()`` in Celery's eager mode."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from typing import Any, ClassVar
from unittest import mock

import pydantic
import pytest
from celery import Celery, current_task, signals, states
from celery._state import get_current_worker_task
from celery.exceptions import Ignore, Reject, Retry
from celery.result import EagerResult

from celery_durable import (
    AsyncDurableContext,
    ConfigurationError,
    ContextClosedError,
    ContextInStepError,
    DurableContext,
    DurableTask,
    EntryNotRecordableError,
    InvalidStepError,
    JournalMismatchError,
    NoContextError,
    RetriesExhausted,
    RetryableError,
    RetryPolicy,
    RunOptions,
    TerminalError,
    durable_task,
)
from celery_durable.drivers import siblings
from celery_durable.drivers.loop import wait_for
from celery_durable.invocation.eager_journals import _journals as _eager_journals
from celery_durable.journal.memory import MemoryJournal
from tests.receivers import receiver
from tests.unit.conftest import Action

pytestmark = pytest.mark.usefixtures("app")

needs_task_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 has brought task groups")

SLOW = RunOptions(initial_retry_interval=3600, max_attempts=3)


def applied(body: Callable[..., Any], *args: Any, **options: Any) -> EagerResult[Any]:
    """The result of a durable task made of *body*, in eager mode."""
    return durable_task(**options)(body).apply(args)


def failure_of(result: EagerResult[Any], kind: type[BaseException]) -> Any:
    """The exception by which the task failed."""
    assert result.state == states.FAILURE
    assert type(result.result) is kind, repr(result.result)
    return result.result


# -- a wrong setting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_to", ["task", "app"])
@pytest.mark.parametrize("directly", [False, True])
def test_a_serializer_that_the_app_does_not_accept_is_refused_before_an_action_runs(
    app: Celery, given_to: str, directly: bool
) -> None:
    def work(ctx: DurableContext) -> Any:
        return ctx.run("work", action)

    action = Action(1)
    if given_to == "app":
        app.conf.durable_serializer = "pickle"
    task = durable_task(name="shop.work", **({"durable_serializer": "pickle"} if given_to == "task" else {}))(work)

    if directly:
        with pytest.raises(ConfigurationError) as refused:
            task()
        error = refused.value
    else:
        error = failure_of(task.apply(), ConfigurationError)

    assert "shop.work: durable_serializer 'pickle' runs code" in str(error)
    assert "accept_content" in str(error)
    assert action.executions == 0


def test_a_serializer_that_the_app_accepts_is_used(app: Celery) -> None:
    def work(ctx: DurableContext) -> Any:
        return ctx.run("work", lambda: (1, 2)) == (1, 2)

    app.conf.accept_content = ["json", "pickle"]

    assert applied(work, durable_serializer="pickle").result is True


# -- a direct call -----------------------------------------------------------------------------------------------------


def test_a_direct_call_returns_what_the_function_returns() -> None:
    @durable_task
    def add(ctx: DurableContext, a: int, b: int = 0) -> int:
        return ctx.run("add", lambda: a + b)

    assert add(1) == 1
    assert add(1, b=2) == 3


def test_a_direct_call_of_an_async_task_returns_its_result() -> None:
    @durable_task
    async def add(ctx: AsyncDurableContext, a: int) -> int:
        async def one() -> int:
            return 1

        return a + await ctx.run("one", one)

    assert add(1) == 2


@pytest.mark.parametrize(
    "options", [(), (SLOW,), (RunOptions(non_retryable=OSError),)], ids=["none", "retry", "non_retryable"]
)
def test_a_direct_call_raises_what_the_step_raised_without_a_retry(options: Any) -> None:
    action = Action(OSError("away"))

    @durable_task
    def fetch(ctx: DurableContext) -> Any:
        return ctx.run("fetch", action, *options)

    with pytest.raises(OSError, match="away"):
        fetch()
    assert action.executions == 1


def test_direct_calls_share_nothing() -> None:
    action = Action(1)

    @durable_task
    def count(ctx: DurableContext) -> tuple[str, int]:
        ctx.run("count", action)
        return ctx.task_id, ctx.attempt

    (first, attempt), (second, again) = count(), count()
    assert first != second
    assert (attempt, again) == (1, 1)
    assert action.executions == 2


def test_a_direct_call_checks_the_step_like_a_worker() -> None:
    @durable_task
    def nested(ctx: DurableContext) -> Any:
        return ctx.run("outer", lambda: ctx.run("inner", lambda: 1))

    with pytest.raises(ContextInStepError):
        nested()

    @durable_task
    def degraded(ctx: DurableContext) -> Any:
        return ctx.run("make", object)

    with pytest.raises(EntryNotRecordableError):
        degraded()


@pytest.mark.parametrize("call", [(), (1, 2)], ids=["too few", "too many"])
def test_a_direct_call_with_wrong_arguments_is_a_type_error(call: tuple[int, ...]) -> None:
    @durable_task
    def add(ctx: DurableContext, a: int) -> int:
        return a

    with pytest.raises(TypeError):
        add(*call)


def test_with_bind_the_task_comes_before_the_context() -> None:
    @durable_task(bind=True)
    def who(self: Any, ctx: DurableContext, word: str) -> list[Any]:
        return [self.name, ctx.run("say", lambda: word)]

    assert who("hello") == [who.name, "hello"]
    assert who.apply(("hello",)).result == [who.name, "hello"]


# -- retries in eager mode ---------------------------------------------------------------------------------------------


def test_finished_steps_are_replayed_over_the_retries_of_a_step() -> None:
    first, flaky, attempts = Action(1), Action(OSError(), OSError(), 2), []

    def body(ctx: DurableContext) -> list[Any]:
        attempts.append(ctx.attempt)
        return [ctx.run("first", first), ctx.run("flaky", flaky, SLOW), str(ctx.uuid())]

    began = time.monotonic()
    result = applied(body)
    assert result.state == states.SUCCESS
    assert result.result[:2] == [1, 2]
    assert (first.executions, flaky.executions, attempts) == (1, 3, [1, 2, 3])
    assert time.monotonic() - began < 5  # eager mode never waits


def test_finished_steps_are_replayed_over_the_retries_of_the_task() -> None:
    step, body_runs, drawn = Action(1), Action(ValueError(), ValueError(), "done"), []

    def body(ctx: DurableContext) -> Any:
        drawn.append((ctx.uuid(), ctx.random().random(), ctx.time(), ctx.now()))
        ctx.run("step", step)
        return body_runs()

    assert applied(body).result == "done"
    assert (step.executions, body_runs.executions) == (1, 3)
    assert len(drawn) == 3
    assert len(set(drawn)) == 1


def test_an_async_task_is_retried_and_replayed_likewise() -> None:
    first, flaky, readings = Action(1), Action(OSError(), 2), []

    async def call(action: Action) -> Any:
        return action()

    async def body(ctx: AsyncDurableContext) -> list[int]:
        readings.append((await ctx.time(), await ctx.now(), ctx.uuid()))
        return [await ctx.run("first", call, first), await ctx.run("flaky", call, SLOW, flaky)]

    assert applied(body).result == [1, 2]
    assert (first.executions, flaky.executions) == (1, 2)
    assert len(set(readings)) == 1


def test_the_default_policy_allows_seventy_attempts_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    action = Action(OSError("away"))
    error = failure_of(applied(body_of(action)), OSError)
    assert str(error) == "away"
    assert action.executions == 70
    assert "attempt 1 of 70 failed" in caplog.text


def body_of(action: Action) -> Callable[[DurableContext], Any]:
    def body(ctx: DurableContext) -> Any:
        return action()

    return body


@pytest.mark.parametrize(
    ("options", "executions"),
    [
        ({"task_retry_policy": RetryPolicy(max_attempts=3)}, 3),
        ({"max_retries": 3}, 4),
        ({"max_retries": 0}, 1),
        ({"retry_kwargs": {"max_retries": 1}}, 2),
        ({"autoretry_for": (KeyError,)}, 1),
        ({"autoretry_for": (OSError,), "max_retries": 2}, 3),
        ({"dont_autoretry_for": (OSError,)}, 1),
        ({"task_retry_policy": RetryPolicy(max_duration=0.2)}, 1),
    ],
    ids=str,
)
def test_the_policy_of_the_task_decides_how_often_it_runs(options: dict[str, Any], executions: int) -> None:
    action = Action(OSError("away"))
    failure_of(applied(body_of(action), **options), OSError)
    assert action.executions == executions


def test_the_policy_of_the_app_is_the_default(app: Celery) -> None:
    app.conf.durable_task_retry_policy = RetryPolicy(max_attempts=2)
    action = Action(OSError("away"))
    failure_of(applied(body_of(action)), OSError)
    assert action.executions == 2


def progress(options: dict[str, Any]) -> int:
    """How often a body runs that fails always, and records a step in each of its first three attempts."""
    action = Action(OSError("away"))

    def body(ctx: DurableContext) -> None:
        for number in range(min(ctx.attempt, 3)):
            ctx.run(f"step {number}", lambda: None)
        action()

    failure_of(applied(body, **options), OSError)
    return action.executions


def test_a_recorded_step_resets_the_count_of_failed_attempts() -> None:
    # Attempts 1, 2 and 3 record a step each; the third starts the count of three that spends the policy.
    assert progress({"task_retry_policy": RetryPolicy(max_attempts=3)}) == 5


def test_celerys_max_retries_is_not_reset_by_progress() -> None:
    assert progress({"max_retries": 2}) == 3


def test_failures_under_a_policy_of_a_step_do_not_count_for_the_task() -> None:
    flaky, body_runs = Action(OSError(), OSError(), 1), Action(ValueError("one"), "done")

    def body(ctx: DurableContext) -> Any:
        ctx.run("flaky", flaky, SLOW)
        return body_runs()

    assert applied(body, task_retry_policy=RetryPolicy(max_attempts=2)).result == "done"
    assert (flaky.executions, body_runs.executions) == (3, 2)


def test_a_step_without_options_is_retried_by_the_task() -> None:
    action = Action(OSError("away"))

    def body(ctx: DurableContext) -> Any:
        return ctx.run("step", action)

    assert str(failure_of(applied(body, max_retries=2), OSError)) == "away"
    assert action.executions == 3


def test_spent_retries_of_a_step_that_nobody_catches_fail_the_task() -> None:
    action = Action(OSError("away"))

    def body(ctx: DurableContext) -> Any:
        return ctx.run("pay", action, SLOW)

    error = failure_of(applied(body), RetriesExhausted)
    assert (error.attempts, error.last_error_type, error.last_error_message) == (3, "OSError", "away")
    assert action.executions == 3


def chain(error: BaseException | None) -> list[str]:
    """What a log shows of an error: its class, and those of all that led to it."""
    return [] if error is None else [type(error).__name__, *chain(error.__cause__ or error.__context__)]


def way(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


@pytest.mark.parametrize("directly", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_failure_of_a_step_shows_the_users_own_errors_and_the_way_from_the_body(
    is_async: bool, directly: bool
) -> None:
    def gone() -> None:
        raise OSError("gone")

    def body(ctx: DurableContext) -> None:
        try:
            {}["earlier"]
        except KeyError:
            ctx.run("charge", gone)

    async def body_async(ctx: AsyncDurableContext) -> None:
        try:
            {}["earlier"]
        except KeyError:
            await ctx.run("charge", gone)

    task = durable_task(task_retry_policy=RetryPolicy(max_attempts=1))(body_async if is_async else body)
    if directly:
        with pytest.raises(OSError, match="gone") as raised:
            task()
        error = raised.value
    else:
        error = failure_of(task.apply(), OSError)
    # What the body was handling is part of it, where the action runs in the same thread.
    assert chain(error) == ["OSError", "KeyError"] or (is_async and chain(error) == ["OSError"])
    frames = way(error)
    assert frames.index("body_async" if is_async else "body") < frames.index("gone") == len(frames) - 1


def test_an_error_that_ends_the_run_shows_the_line_of_the_body_and_no_interrupt() -> None:
    def body(ctx: DurableContext) -> None:
        ctx.run("object", object)

    error = failure_of(applied(body), EntryNotRecordableError)
    assert "EndRun" not in chain(error)
    assert "body" in way(error)


def test_compensations_run_once() -> None:
    pay, refund, bodies = Action(OSError()), Action("refunded"), Action(ValueError(), "done")

    def body(ctx: DurableContext) -> Any:
        try:
            ctx.run("pay", pay, SLOW)
        except TerminalError:
            ctx.run("refund", refund)
        return bodies()

    assert applied(body).result == "done"
    assert (pay.executions, refund.executions, bodies.executions) == (3, 1, 2)


def test_a_users_own_retry_passes_through() -> None:
    step, bodies = Action(1), []

    def body(self: Any, ctx: DurableContext) -> str:
        ctx.run("step", step)
        bodies.append(ctx.attempt)
        if len(bodies) == 1:
            raise self.retry(countdown=3600)
        return "done"

    assert applied(body, bind=True).get() == "done"
    assert (bodies, step.executions) == ([1, 2], 1)


def test_step_retries_do_not_count_for_a_users_own_retry(app: Celery) -> None:
    flaky, bodies = Action(OSError(), OSError(), 1), []

    @app.task(base=DurableTask, bind=True, name="eager.own_retry")
    def fetch(self: Any) -> None:
        self.ctx.run("flaky", flaky, SLOW)
        bodies.append(self.ctx.attempt)
        raise self.retry(exc=KeyError("again"), max_retries=1, countdown=0)

    with suppress(KeyError):
        fetch.apply()
    assert (bodies, flaky.executions) == ([3, 4], 3)


# -- ends --------------------------------------------------------------------------------------------------------------


class CardDeclined(TerminalError):
    pass


class SoldOut(TerminalError):
    def __init__(self, order: int, shop: str) -> None:
        super().__init__(f"order {order} in {shop}", 409)


@pytest.mark.parametrize("inside", [True, False], ids=["of a step", "of the body"])
@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (TerminalError("no", 404, {"order": 5}), TerminalError),
        (CardDeclined("no", 402), CardDeclined),
        (SoldOut(5, "Berlin"), TerminalError),
    ],
    ids=["plain", "subclass", "subclass that does not rebuild"],
)
def test_a_terminal_error_fails_the_task_at_once(raised: TerminalError, kind: Any, inside: bool) -> None:
    action = Action(raised)

    def body(ctx: DurableContext) -> Any:
        return ctx.run("pay", action) if inside else action()

    error = failure_of(applied(body), kind)
    assert error.args == raised.args
    assert action.executions == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are of Python 3.11")
def test_a_terminal_error_in_a_task_group_fails_the_task_at_once() -> None:
    action = Action(TerminalError("no", 404))

    async def body(ctx: AsyncDurableContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.run("pay", action))

    result = applied(body)
    assert action.executions == 1
    assert failure_of(result, TerminalError).status_code == 404


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are of Python 3.11")
def test_a_retry_in_a_task_group_is_unwrapped() -> None:
    flaky, steady = Action(OSError(), 1), Action(2)

    async def body(ctx: AsyncDurableContext) -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ctx.run("flaky", flaky, SLOW)), group.create_task(ctx.run("steady", steady))]
        return [task.result() for task in tasks]

    assert applied(body).result == [1, 2]
    assert (flaky.executions, steady.executions) == (2, 1)


def test_arguments_that_do_not_fit_fail_at_once() -> None:
    entered = Action(1)

    @durable_task
    def order(ctx: DurableContext, number: int) -> Any:
        return entered()

    assert order.apply((1, 2)).state == states.FAILURE
    assert order.apply(()).state == states.FAILURE
    assert entered.executions == 0


class Order(pydantic.BaseModel):
    number: int


def test_models_among_the_parameters_are_validated() -> None:
    seen: list[Any] = []

    @durable_task
    def place(ctx: DurableContext, order: Order, times: int = 1) -> Order:
        seen.append(order)
        return order

    assert place.apply(({"number": "5"},)).result == {"number": 5}
    assert seen == [Order(number=5)]
    failed = place.apply(({"number": "five"},))
    assert "number" in str(failure_of(failed, TerminalError))
    assert len(seen) == 1


class Stay(pydantic.BaseModel):
    """To begin in the future: as long as nothing was paid."""

    begins: date
    at: float = pydantic.Field(default_factory=time.monotonic)

    @pydantic.field_validator("begins")
    @classmethod
    def is_to_come(cls, begins: date) -> date:
        if Stay.paid:
            raise ValueError("in the past")
        return begins

    paid: ClassVar[list[str]] = []


@pytest.fixture
def unpaid() -> Iterator[None]:
    Stay.paid.clear()
    yield
    Stay.paid.clear()


@pytest.mark.parametrize("base", [False, True], ids=["durable_task", "base=DurableTask"])
def test_a_model_that_was_accepted_is_accepted_by_later_attempts(app: Celery, unpaid: None, base: bool) -> None:
    seen: list[Any] = []
    review = Action(OSError(), OSError(), "done")

    def book(self: Any, stay: Stay, more: Stay | None = None) -> Any:
        seen.append((stay, more))
        self.run("pay", lambda: Stay.paid.append("paid"))
        return self.run("review", review, SLOW)

    def book_by_class(self: Any, stay: Stay, more: Stay | None = None) -> Any:
        return book(self.ctx, stay, more)

    made = app.task(base=DurableTask, bind=True, pydantic=True)(book_by_class) if base else durable_task(book)
    sent = {"begins": "2026-01-31"}
    assert made.apply((sent, sent)).result == "done"
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2], "also what a default factory made"
    assert seen[0][0].begins == date(2026, 1, 31)
    assert Stay.paid == ["paid"]


def test_a_model_that_was_refused_is_refused_again(app: Celery, unpaid: None) -> None:
    Stay.paid.append("paid")

    @durable_task
    def book(ctx: DurableContext, stay: Stay) -> None:
        raise AssertionError("it ran")

    for _ in range(2):
        assert "in the past" in str(failure_of(book.apply(({"begins": "2026-01-31"},)), TerminalError))


class Secretive(Stay):
    token: pydantic.SecretStr


def test_a_model_that_cannot_be_recorded_is_accepted_all_the_same(app: Celery, unpaid: None) -> None:
    seen: list[Any] = []
    review = Action(OSError(), "done")

    @durable_task
    def book(ctx: DurableContext, stay: Secretive) -> Any:
        seen.append(stay.token.get_secret_value())
        ctx.run("pay", lambda: Stay.paid.append("paid"))
        return ctx.run("review", review, SLOW)

    assert book.apply(({"begins": "2026-01-31", "token": "t0p"},)).result == "done"
    assert seen == ["t0p", "t0p"]


@pytest.mark.parametrize("swallow", [BaseException, None], ids=["except BaseException", "bare except"])
def test_the_result_of_an_attempt_that_swallowed_its_retry_is_dropped(swallow: Any) -> None:
    flaky, seen = Action(OSError(), "done"), []

    def body(ctx: DurableContext) -> Any:
        try:
            value = ctx.run("flaky", flaky, SLOW)
        except:  # noqa: E722
            value = "swallowed"
        seen.append(value)
        return value

    assert applied(body).result == "done"
    assert seen == ["swallowed", "done"]
    assert flaky.executions == 2


def test_another_exception_on_the_way_out_does_not_hide_the_retry() -> None:
    flaky = Action(OSError(), "done")

    def body(ctx: DurableContext) -> Any:
        try:
            return ctx.run("flaky", flaky, SLOW)
        except BaseException as interrupt:
            raise TerminalError("hidden") from interrupt

    assert applied(body).result == "done"
    assert flaky.executions == 2


def test_a_mismatch_fails_the_task_and_runs_no_later_step() -> None:
    first, later = Action(1), Action(2)

    def body(ctx: DurableContext) -> None:
        with suppress(Exception):
            ctx.run(f"step of attempt {ctx.attempt}", first)
            if ctx.attempt > 1:
                later()
        raise ValueError("once more")

    error = failure_of(applied(body), JournalMismatchError)
    assert "recorded: step 'step of attempt 1'" in str(error)
    assert "asked for: step 'step of attempt 2'" in str(error)
    assert (first.executions, later.executions) == (1, 0)


@pytest.mark.parametrize("ending", ["done", TerminalError("no")], ids=["returns", "raises TerminalError"])
def test_steps_left_over_at_a_good_or_terminal_end_are_a_mismatch(ending: Any) -> None:
    endings = Action(ValueError("first"), ending)

    def body(ctx: DurableContext) -> Any:
        if ctx.attempt == 1:
            ctx.run("once", lambda: 1)
        return endings()

    assert "asked for: the end of the task" in str(failure_of(applied(body), JournalMismatchError))
    assert endings.executions == 2


def test_steps_left_over_when_the_body_fails_are_none() -> None:
    step, bodies = Action(1), []

    def body(ctx: DurableContext) -> str:
        bodies.append(ctx.attempt)
        if ctx.attempt == 2:
            raise ValueError("before the step")
        ctx.run("step", step)
        if ctx.attempt == 1:
            raise ValueError("after the step")
        return "done"

    assert applied(body).result == "done"
    assert (bodies, step.executions) == ([1, 2, 3], 1)


def wrong_name(ctx: DurableContext) -> None:
    ctx.run(wrong_name)


def wrong_arguments(ctx: DurableContext) -> None:
    ctx.run("max", lambda: 1, max_attempts=5)


def nested(ctx: DurableContext) -> None:
    ctx.run("outer", lambda: ctx.run("inner", lambda: 1))


def swallowing(ctx: DurableContext) -> None:
    def swallow() -> None:
        with suppress(BaseException):
            ctx.uuid()

    ctx.run("outer", swallow)


def opaque(ctx: DurableContext) -> None:
    ctx.run("make", object)


def wrong_serializer(ctx: DurableContext) -> None:
    ctx.run("make", lambda: 1, RunOptions(serializer="nonsense"))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (wrong_name, InvalidStepError),
        (wrong_arguments, InvalidStepError),
        (nested, ContextInStepError),
        (swallowing, ContextInStepError),
        (opaque, EntryNotRecordableError),
        (wrong_serializer, ConfigurationError),
    ],
    ids=lambda value: value.__name__,
)
def test_an_error_of_the_code_ends_the_run_at_once_and_by_name(body: Any, kind: type[Exception]) -> None:
    attempts = []

    def counted(ctx: DurableContext) -> None:
        attempts.append(ctx.attempt)
        body(ctx)

    assert counted.__name__ == "counted"
    failure_of(applied(counted), kind)
    assert attempts == [1]


def test_a_wrong_option_inside_the_body_does_not_retry_the_task() -> None:
    attempts = []

    def body(ctx: DurableContext) -> None:
        attempts.append(ctx.attempt)
        ctx.run("step", lambda: 1, RunOptions(max_retries=3))

    failure_of(applied(body), ConfigurationError)
    assert attempts == [1]


def test_ignore_and_reject_end_the_run() -> None:
    for error in (Ignore(), Reject("no", requeue=False)):
        action = Action(error)
        assert durable_task(name=f"eager.{type(error).__name__}")(body_of(action)).apply().state in (
            states.IGNORED,
            states.REJECTED,
        )
        assert action.executions == 1


@pytest.mark.parametrize("error", [Ignore("not needed"), Reject("no", requeue=False)], ids=repr)
def test_ignore_and_reject_end_the_run_from_within_a_step_too(error: Exception) -> None:
    action = Action(error)

    def body(ctx: DurableContext) -> None:
        ctx.run("step", action, SLOW)

    result = applied(body)

    assert result.state == (states.IGNORED if isinstance(error, Ignore) else states.REJECTED)
    assert action.executions == 1


@needs_task_groups
@pytest.mark.parametrize("error", [Ignore("not needed"), Reject("no", requeue=False)], ids=repr)
def test_ignore_and_reject_end_the_run_from_within_a_task_group(error: Exception) -> None:
    action = Action(error)

    async def say() -> None:
        action()

    async def body(ctx: AsyncDurableContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(say())

    assert applied(body).state == (states.IGNORED if isinstance(error, Ignore) else states.REJECTED)
    assert action.executions == 1


def test_a_users_own_retry_from_within_a_step_is_no_failure_of_the_step(caplog: pytest.LogCaptureFixture) -> None:
    executions = []

    def act(task: Any) -> str:
        executions.append(task.request.retries)
        if len(executions) < 3:
            raise task.retry(countdown=60, max_retries=5)
        return "done"

    def body(self: Any, ctx: DurableContext) -> str:
        return ctx.run("step", act, RunOptions(max_attempts=1000), self)

    assert applied(body, bind=True).result == "done"
    assert executions == [0, 1, 2]
    assert "failed (execution" not in caplog.text


@needs_task_groups
def test_a_terminal_error_within_a_group_is_the_verdict_of_a_step() -> None:
    action = Action(TerminalError("no funds", status_code=402))

    async def act() -> None:
        async def pay() -> None:
            action()

        async with asyncio.TaskGroup() as group:
            group.create_task(pay())

    async def body(ctx: AsyncDurableContext) -> str:
        try:
            await ctx.run("pay", act, SLOW)
        except TerminalError as error:
            return f"{error.status_code}: {error}"
        return "paid"

    assert applied(body).result == "402: no funds"
    assert action.executions == 1


def test_a_retryable_error_of_the_body_is_retried() -> None:
    action = Action(RetryableError("busy", retry_after=3600), "done")
    assert applied(body_of(action)).result == "done"
    assert action.executions == 2


def test_a_result_keeps_what_celery_keeps() -> None:
    assert applied(body_of(Action([1, {"a": date(2024, 1, 1)}]))).result == [1, {"a": date(2024, 1, 1)}]


def test_nothing_of_a_finished_run_is_kept_in_eager_mode() -> None:
    action = Action(1)

    @durable_task
    def count(ctx: DurableContext) -> Any:
        return ctx.run("count", action)

    assert count.apply(task_id="same").result == count.apply(task_id="same").result == 1
    assert action.executions == 2


def test_a_context_kept_after_the_task_is_refused() -> None:
    kept: list[DurableContext] = []

    @durable_task
    def keep(ctx: DurableContext) -> None:
        kept.append(ctx)

    keep.apply()
    keep()
    for ctx in kept:
        with pytest.raises(ContextClosedError):
            ctx.uuid()


# -- the base class ----------------------------------------------------------------------------------------------------


def test_the_base_class_opens_its_context_at_first_use(app: Celery) -> None:
    @app.task(base=DurableTask, bind=True, name="eager.base")
    def count(self: Any) -> tuple[bool, int]:
        return self.ctx is self.ctx, self.ctx.run("count", lambda: 5)

    assert count() == (True, 5)
    assert count.apply().result == (True, 5)


def test_the_context_of_a_task_that_does_not_run_is_an_error(app: Celery) -> None:
    task = app.task(base=DurableTask, name="eager.idle")(body_of(Action(1)))
    with pytest.raises(ConfigurationError, match=r"eager\.idle"):
        task.ctx  # noqa: B018


@pytest.mark.parametrize(
    ("options", "executions"),
    [({}, 1), ({"autoretry_for": (OSError,), "max_retries": 2, "default_retry_delay": 0}, 3)],
    ids=["plain", "autoretry_for"],
)
def test_celery_decides_about_a_step_without_options(app: Celery, options: dict[str, Any], executions: int) -> None:
    action, caught = Action(OSError("away")), []

    @app.task(base=DurableTask, bind=True, name="eager.celery_decides", **options)
    def fetch(self: Any) -> Any:
        try:
            return self.ctx.run("fetch", action)
        except Exception as error:
            caught.append(error)
            raise

    failure_of(fetch.apply(), OSError)
    assert action.executions == executions
    assert caught == []


def test_a_step_with_options_is_retried_by_them_under_the_base_class(app: Celery) -> None:
    action = Action(OSError("away"))

    @app.task(base=DurableTask, bind=True, max_retries=0, name="eager.six")
    def fetch(self: Any) -> Any:
        return self.ctx.run("fetch", action, RunOptions(initial_retry_interval=3600, max_attempts=6))

    assert failure_of(fetch.apply(), RetriesExhausted).attempts == 6
    assert action.executions == 6


class Mixin:
    """Something else that a task is."""

    def greeting(self) -> str:
        return "hello"


def test_class_based_tasks_and_mixins_work_in_either_order(app: Celery) -> None:
    class First(DurableTask[Any, Any], Mixin):
        name = "eager.first"

        def run(self, word: str) -> str:
            return self.greeting() + str(self.ctx.run("say", lambda: word))

    class Second(Mixin, DurableTask[Any, Any]):
        name = "eager.second"

        def run(self, word: str) -> str:
            return self.greeting() + str(self.ctx.run("say", lambda: word))

    for kind in (First, Second):
        task = app.register_task(kind())
        assert task("!") == task.apply(("!",)).result == "hello!"


def test_a_durable_task_may_be_the_class_of_all_tasks() -> None:
    app = Celery("all", task_cls=DurableTask, set_as_current=False)

    @app.task(bind=True)
    def count(self: Any) -> int:
        return self.ctx.run("count", lambda: 5)

    @app.task
    def plain(a: int) -> int:
        return a + 1

    assert (count(), count.apply().result) == (5, 5)
    assert (plain(1), plain.apply((1,)).result) == (2, 2)
    app.close()


@pytest.mark.parametrize("look_at", [mock.create_autospec, inspect.getmembers, lambda task: mock.Mock(spec=task)])
def test_a_task_can_be_looked_at_all_over_while_it_does_not_run(look_at: Callable[[Any], Any]) -> None:
    """Tests of users replace tasks by mocks that are made after them."""
    app = Celery("all", task_cls=DurableTask, set_as_current=False)

    @app.task
    def plain() -> None: ...

    look_at(plain)
    with pytest.raises(NoContextError, match=r"the context of .*plain is known while the task runs, in its own body"):
        _ = plain.ctx
    assert issubclass(NoContextError, ConfigurationError)
    app.close()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup came with Python 3.11")
def test_what_a_task_raises_that_never_uses_its_context_is_raised_as_it_is() -> None:
    app = Celery("all", task_cls=DurableTask, set_as_current=False)
    group = getattr(builtins, "ExceptionGroup")("two", [OSError(1)])  # noqa: B009  not in Python 3.10
    executions = Action(group)

    @app.task(autoretry_for=(OSError,), max_retries=1, default_retry_delay=0)
    def plain() -> None:
        executions()

    with pytest.raises(type(group)):
        plain()
    result = plain.apply()
    assert result.result is group
    assert executions.executions == 2, "Celery's autoretry sees a group, which it was not told to retry"
    assert "ending.py" not in result.traceback
    app.close()


def test_a_retry_passes_on_what_was_said_and_no_more() -> None:
    """The ``retry`` of another base class may know fewer parameters, and tests of users replace Celery's."""
    app = Celery("all", task_cls=DurableTask, set_as_current=False)

    @app.task(bind=True)
    def plain(self: Any) -> None:
        self.retry(exc=OSError("down"), countdown=3)

    with mock.patch("celery.app.task.Task.retry", side_effect=Ignore) as retry:
        plain.apply()
    retry.assert_called_once_with(exc=mock.ANY, countdown=3)
    app.close()


NAMED = """
import sys
from celery import Celery

app = Celery("named", task_cls="celery_durable:DurableTask")

@app.task(bind=True)
def count(self):
    return self.ctx.run("count", lambda: 5)

assert "celery_durable" not in sys.modules
app.finalize()
assert "celery_durable.retry" in app.tasks
print(count.apply().result)
"""


def test_the_class_of_all_tasks_may_be_named_where_nothing_of_it_is_imported() -> None:
    """Celery imports it while it makes the app's tasks."""
    ended = subprocess.run([sys.executable, "-c", NAMED], check=False, capture_output=True, text=True)

    assert (ended.stdout, ended.stderr, ended.returncode) == ("5\n", "", 0)


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (lambda _: Action(TerminalError("no", 418))(), TerminalError),
        (lambda ctx: ctx.run("refuse", Action(TerminalError("no", 418))), TerminalError),
        (lambda ctx: ctx.run("fetch", Action(OSError()), RunOptions(max_attempts=1)), RetriesExhausted),
        (lambda ctx: ctx.run("make", object), EntryNotRecordableError),
        (lambda ctx: ctx.run("outer", ctx.uuid), ContextInStepError),
        (lambda ctx: ctx.run("step", Action(1), RunOptions(max_retries=3)), ConfigurationError),
    ],
    ids=["terminal", "terminal step", "exhausted", "not recordable", "in a step", "wrong option"],
)
def test_autoretry_for_all_exceptions_does_not_retry_what_is_final(app: Celery, use: Any, kind: Any) -> None:
    bodies = Action(None)

    @app.task(base=DurableTask, bind=True, autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
    def final(self: Any) -> None:
        bodies()
        use(self.ctx)

    failure_of(final.apply(), kind)
    assert bodies.executions == 1


def test_autoretry_for_all_exceptions_still_retries_a_step_without_options(app: Celery) -> None:
    bodies, action = Action(None), Action(OSError(), OSError(), 3)

    @app.task(base=DurableTask, bind=True, autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
    def flaky(self: Any) -> Any:
        bodies()
        return self.ctx.run("flaky", action)

    assert flaky.apply().result == 3
    assert bodies.executions == action.executions == 3


@pytest.mark.parametrize("base", [False, True], ids=["decorator", "base class"])
def test_a_retry_of_its_own_stands_though_the_body_swallows_it(app: Celery, base: bool) -> None:
    bodies = Action(None)

    def body(self: Any, ctx: Any = None) -> str:
        bodies()
        number = self.ctx.run("step", Action(1))
        if bodies.executions == 1:
            with suppress(BaseException):
                self.retry(countdown=0)
            return "swallowed"
        return f"went on after step {number}"

    task = app.task(base=DurableTask, bind=True)(body) if base else durable_task(bind=True)(body)
    assert task.apply().result == "went on after step 1"
    assert bodies.executions == 2


class Timeout(BaseException):
    """As gevent's."""


@pytest.mark.parametrize("kind", [Timeout, asyncio.CancelledError], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", ["body", "step"])
def test_what_is_no_exception_fails_an_attempt_and_never_reaches_the_worker(kind: Any, place: str) -> None:
    passing, lasting = Action(kind("late"), "done"), Action(kind("late"))

    def body_with(action: Action) -> Callable[[DurableContext], Any]:
        def body(ctx: DurableContext) -> Any:
            return action() if place == "body" else ctx.run("step", action)

        return body

    assert applied(body_with(passing)).result == "done"
    failed = applied(body_with(lasting), name="eager.lasting", task_retry_policy=RetryPolicy(max_attempts=2))
    assert failed.state == states.FAILURE
    assert isinstance(failed.result, Exception)
    assert str(failed.result) == f"{kind.__name__}('late')"
    assert (passing.executions, lasting.executions) == (2, 2)


def test_a_cancelled_task_of_the_users_own_fails_an_async_attempt() -> None:
    attempts = []

    async def body(ctx: AsyncDurableContext) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            helper = asyncio.ensure_future(asyncio.sleep(60))
            helper.cancel()
            await helper
        return "done"

    assert applied(body).result == "done"
    assert attempts == [1, 2]


@pytest.mark.parametrize("options", [(), (SLOW,)], ids=["no options", "retry options"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt], ids=lambda kind: kind.__name__)
def test_a_process_that_is_stopped_in_an_async_step_records_no_failure(kind: Any, options: Any) -> None:
    """It strikes the thread that waits for the event loop, where the step sees a CancelledError."""
    seen: list[str] = []
    journals: list[MemoryJournal] = []

    def strike(*_: Any) -> None:
        raise kind(-241)

    async def be_struck() -> None:
        journals.extend(_eager_journals.values())
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    async def body(ctx: AsyncDurableContext) -> None:
        await ctx.run("first", Action(1))
        await ctx.run("struck", be_struck, *options)

    usual = signal.signal(signal.SIGALRM, strike)
    try:
        with pytest.raises(kind, match="-241"):
            applied(body)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    assert seen == ["CancelledError"]
    (journal,) = journals
    recorded = [value for name, value in journal.fields.items() if name.startswith(b"step:")]
    assert len([value for value in recorded if b'"done"' in value]) == 1
    assert [value for value in recorded if b'"error"' in value] == []
    assert journal.fields.get(b"status") == b"running"
    assert b"outcome" not in journal.fields


@pytest.mark.timeout(20)
def test_a_sync_step_of_an_async_task_may_raise_stop_iteration() -> None:
    async def body(ctx: AsyncDurableContext) -> Any:
        return await ctx.run("first row", lambda: next(iter([])))

    failed = applied(body, task_retry_policy=RetryPolicy(max_attempts=1))
    assert "StopIteration" in str(failure_of(failed, RuntimeError))


def test_a_step_that_waits_for_the_body_which_waits_for_the_end_of_another_is_let_finish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(siblings, "STUCK", 0.1)
    charges, journals = Action("charged"), []

    @durable_task(name="eager.siblings")
    async def beside_each_other(ctx: AsyncDurableContext) -> Any:
        ended = asyncio.Event()

        async def charge() -> Any:
            await ended.wait()
            return charges()

        big = asyncio.ensure_future(ctx.run("big", object))
        charged = asyncio.ensure_future(ctx.run("charge", charge))
        await asyncio.wait([big])
        ended.set()
        await asyncio.wait([charged])
        journals.extend(_eager_journals.values())
        return await big

    failure_of(beside_each_other.apply(), EntryNotRecordableError)
    (journal,) = journals
    assert charges.executions == 1
    assert [b'"charge"' in entry for name, entry in journal.fields.items() if name.startswith(b"step:")] == [True]


def test_a_result_that_nobody_wants_need_not_be_recordable() -> None:
    assert applied(body_of(Action(object())), ignore_result=True).state == states.SUCCESS
    failure_of(applied(body_of(Action(object())), name="eager.wanted"), EntryNotRecordableError)


@pytest.mark.parametrize(
    "ending", [Ignore(), Reject("no", requeue=False), TerminalError("no"), OSError("away"), None], ids=repr
)
@pytest.mark.parametrize("throw", [False, True])
def test_no_ending_leaves_a_journal_in_eager_mode(ending: Any, throw: bool) -> None:
    action = Action(1)

    @durable_task(name="eager.ending")
    def end(ctx: DurableContext) -> None:
        ctx.run("count", action)
        if ending is not None:
            raise ending

    for executions in (1, 2):
        with suppress(Exception):
            end.apply(task_id="same", throw=throw)
        assert action.executions == executions
        assert _eager_journals == {}


@pytest.mark.parametrize("wrapped", [False, True], ids=["def", "async def"])
def test_sending_a_durable_task_from_a_step_is_no_use_of_the_context(app: Celery, wrapped: bool) -> None:
    app.conf.task_always_eager = True
    sent = Action(5)

    @durable_task(name="eager.child")
    def child(ctx: DurableContext) -> Any:
        return ctx.run("child", sent)

    @durable_task(name="eager.parent")
    def parent(ctx: DurableContext) -> Any:
        return ctx.run("send", lambda: child.delay().get(disable_sync_subtasks=False))

    @durable_task(name="eager.async_parent")
    async def async_parent(ctx: AsyncDurableContext) -> Any:
        return await ctx.run("send", lambda: app.tasks[child.name].delay().get(disable_sync_subtasks=False))

    assert (async_parent if wrapped else parent).delay().result == 5
    assert sent.executions == 1


def test_a_step_that_is_not_awaited_is_an_error() -> None:
    """Nothing of it has happened, and the task would succeed."""
    action = Action(1)

    @durable_task
    async def forgets(ctx: AsyncDurableContext) -> str:
        await ctx.run("first", action)
        ctx.run("charge", action)  # type: ignore[unused-coroutine]
        return "charged"

    error = failure_of(forgets.apply(), InvalidStepError)
    assert "did not wait for 'charge': write await ctx.run(...)" in str(error)
    assert action.executions == 1


def test_a_step_that_is_returned_and_not_awaited_is_an_error() -> None:
    action = Action(1)

    @durable_task
    async def returns_it(ctx: AsyncDurableContext) -> Any:
        return ctx.run("charge", action)

    failure_of(returns_it.apply(), InvalidStepError)
    assert action.executions == 0


def test_a_step_that_was_cancelled_before_it_began_was_waited_for() -> None:
    @durable_task
    async def gives_up(ctx: AsyncDurableContext) -> int:
        step = asyncio.ensure_future(ctx.run("charge", Action(1)))
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)
        return await ctx.run("second", Action(2))

    assert gives_up.apply().result == 2


def test_a_step_that_a_terminal_failure_kept_from_being_awaited_changes_nothing() -> None:
    @durable_task
    async def fails_before(ctx: AsyncDurableContext) -> Any:
        later = ctx.run("charge", Action(1))
        try:
            await ctx.run("check", Action(TerminalError("declined")))
        finally:
            later.close()
        return await later

    @durable_task
    async def fails_without_a_word(ctx: AsyncDurableContext) -> Any:
        later = ctx.run("charge", Action(1))
        kept.append(later)
        await ctx.run("check", Action(TerminalError("declined")))
        return await later

    kept: list[Any] = []
    for task in (fails_before, fails_without_a_word):
        assert str(failure_of(task.apply(), TerminalError)) == "declined"
    kept.pop().close()


# -- exceptions that propagate


@pytest.mark.parametrize("by_setting", [False, True], ids=["throw=True", "task_eager_propagates"])
def test_retries_come_before_an_exception_propagates(app: Celery, by_setting: bool) -> None:
    app.conf.task_eager_propagates = by_setting
    throw = {} if by_setting else {"throw": True}
    once, always = Action(ValueError("busy"), "done"), Action(*[ValueError(n) for n in range(4)])

    @durable_task(name="eager.by_step")
    def by_step(ctx: DurableContext, action: Action) -> Any:
        return ctx.run("work", action, SLOW)

    @durable_task(name="eager.by_policy", task_retry_policy=RetryPolicy(max_attempts=3))
    async def by_policy(ctx: AsyncDurableContext, action: Action) -> Any:
        return await ctx.run("work", action)

    assert by_step.apply((once,), **throw).get() == "done"
    assert once.executions == 2
    with pytest.raises(ValueError, match="2"):
        by_policy.apply((always,), **throw)
    assert always.executions == 3
    assert _eager_journals == {}


@pytest.mark.parametrize("uses_context", [True, False])
def test_celerys_own_retries_come_first_where_there_is_a_run(app: Celery, uses_context: bool) -> None:
    """Plain Celery lets its `Retry` propagate, and so does a task that never touches its context."""
    action = Action(ValueError("busy"), "done")

    @app.task(base=DurableTask, bind=True, autoretry_for=(ValueError,), name="eager.auto", default_retry_delay=0)
    def auto(self: Any) -> Any:
        if uses_context:
            self.ctx.uuid()
        return action()

    if uses_context:
        assert auto.apply(throw=True).get() == "done"
    else:
        with pytest.raises(Retry):
            auto.apply(throw=True)
    assert action.executions == 1 + uses_context
    assert _eager_journals == {}


# -- Celery's current task


def origins(publishing: mock.Mock) -> list[tuple[str, str]]:
    """Parent and root of each message that was published."""
    headers = [call.kwargs["headers"] for call in publishing.call_args_list]
    return [(each["parent_id"], each["root_id"]) for each in headers]


def test_celerys_current_task_is_that_of_each_async_body_and_of_its_steps() -> None:
    @durable_task(name="eager.child")
    def child(ctx: DurableContext) -> None: ...

    def known() -> list[str]:
        child.delay()
        return [current_task.name, current_task.request.id]

    async def known_async() -> list[str]:
        return known()

    @durable_task(name="eager.parent")
    async def parent(ctx: AsyncDurableContext) -> list[Any]:
        return [known(), *await asyncio.gather(ctx.run("sync", known), ctx.run("async", known_async))]

    with receiver(signals.before_task_publish) as publishing:
        results = [parent.apply() for _ in range(2)]

    assert [result.result for result in results] == [[["eager.parent", result.id]] * 3 for result in results]
    ids = [result.id for result in results for _ in range(3)]
    assert origins(publishing) == [(one, one) for one in ids]


def test_what_a_task_that_is_called_as_a_function_sends_is_sent_by_the_workers_task() -> None:
    @durable_task(name="eager.child")
    def child(ctx: DurableContext) -> None: ...

    @durable_task(name="eager.called")
    async def called(ctx: AsyncDurableContext) -> str:
        child.delay()
        return str(current_task.name)

    @durable_task(name="eager.caller")
    async def caller(ctx: AsyncDurableContext) -> Any:
        return await called()  # type: ignore[misc]

    with receiver(signals.before_task_publish) as publishing:
        result = caller.apply()

    assert result.result == "eager.called"
    assert origins(publishing) == [(result.id, result.id)]


def test_outside_of_a_task_there_is_none_on_the_event_loop() -> None:
    async def known() -> tuple[bool, Any]:
        return bool(current_task), get_current_worker_task()

    assert wait_for(known()) == (False, None)


FAST_LOCALS = """
from celery import Celery, current_task
from celery._state import _task_stack

app = Celery("fast", task_cls="celery_durable:DurableTask")

@app.task(bind=True, name="fast.named")
async def named(self):
    return current_task.name

print(named.apply().result, _task_stack.top)
"""


def test_celerys_faster_thread_locals_are_those_of_the_event_loop() -> None:
    """They bind what they give out to the thread that asks."""
    env = {**os.environ, "USE_FAST_LOCALS": "1"}
    ended = subprocess.run([sys.executable, "-c", FAST_LOCALS], check=False, capture_output=True, text=True, env=env)

    assert (ended.stdout, ended.stderr, ended.returncode) == ("fast.named None\n", "", 0)


# -- groups of asyncio's


class Declined(TerminalError):
    """A verdict."""


@needs_task_groups
def test_what_has_begun_is_let_finish_and_recorded_though_a_task_group_cancels_it() -> None:
    """It cancels the siblings of what has failed; the group ends when they have."""
    began, undone, met = asyncio.Event(), Action("undone"), list[Exception]()
    happened: list[str] = []
    journals: list[MemoryJournal] = []

    async def reserve() -> str:
        began.set()
        for _ in range(50):
            await asyncio.sleep(0)
        happened.append("reserved")
        return "reserved"

    async def charge() -> None:
        await began.wait()
        raise Declined("no funds", status_code=402)

    async def body(ctx: AsyncDurableContext) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.run("charge", charge))
                group.create_task(ctx.run("reserve", reserve, RunOptions(max_attempts=1)))
        except Exception as failures:
            met.extend(failures.exceptions)  # type: ignore[attr-defined]
            happened.append("ended")
            journals.extend(_eager_journals.values())
            return str(await ctx.run("undo", undone))
        return "shipped"

    assert applied(body).get() == "undone"
    assert [type(failure) for failure in met] == [Declined]
    assert happened == ["reserved", "ended"]
    assert b'"value":"reserved"' in journals[0].fields[b"step:2"]


@needs_task_groups
def test_the_retry_of_a_step_waits_for_its_siblings_in_a_task_group() -> None:
    """Else the group would cancel what they have begun."""
    failed, flaky = asyncio.Event(), Action(ValueError("busy"), ValueError("busy"), "done")
    executions: Counter[str] = Counter()

    async def healthy() -> str:
        executions["healthy"] += 1
        await failed.wait()
        await asyncio.sleep(0.05)
        return "well"

    async def flaky_first() -> Any:
        failed.set()
        return flaky()

    async def body(ctx: AsyncDurableContext) -> list[Any]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(ctx.run("flaky", flaky_first, SLOW)),
                group.create_task(ctx.run("healthy", healthy, RunOptions(max_attempts=1))),
            ]
        return [task.result() for task in tasks]

    assert applied(body).get() == ["done", "well"]
    assert (flaky.executions, executions["healthy"]) == (3, 1)


@needs_task_groups
def test_several_siblings_whose_steps_end_the_attempt_do_not_wait_for_each_other() -> None:
    actions = [Action(ValueError("busy"), "done") for _ in range(3)]

    async def body(ctx: AsyncDurableContext) -> list[Any]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ctx.run(f"step {n}", action, SLOW)) for n, action in enumerate(actions)]
            tasks.append(group.create_task(ctx.sleep(3600)))
        return [task.result() for task in tasks]

    assert applied(body).get() == ["done", "done", "done", None]
    assert [action.executions for action in actions] == [2, 2, 2]
