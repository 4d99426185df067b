"""What becomes of a task, as its caller sees it: its value, its error, and the way to that error."""

from __future__ import annotations

import asyncio
import sys
import traceback
from datetime import date
from typing import Any

import pytest
from celery import states

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    EntryNotRecordableError,
    RetriesExhausted,
    RetryPolicy,
    TerminalError,
    durable_task,
)
from tests.unit.conftest import Action
from tests.unit.tasks import SLOW, applied, body_of, failure_of, needs_task_groups

pytestmark = pytest.mark.usefixtures("app")


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


def test_a_result_keeps_what_celery_keeps() -> None:
    assert applied(body_of(Action([1, {"a": date(2024, 1, 1)}]))).result == [1, {"a": date(2024, 1, 1)}]


def test_a_result_that_nobody_wants_need_not_be_recordable() -> None:
    assert applied(body_of(Action(object())), ignore_result=True).state == states.SUCCESS
    failure_of(applied(body_of(Action(object())), name="eager.wanted"), EntryNotRecordableError)
