"""asyncio's own groups: what has begun is let finish and recorded, though they cancel it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from celery_durable import (
    AsyncDurableContext,
    EntryNotRecordableError,
    RunOptions,
    TerminalError,
    durable_task,
)
from celery_durable.drivers import parking
from celery_durable.invocation.eager_journals import _journals as _eager_journals
from celery_durable.journal.memory import MemoryJournal
from tests.unit.conftest import Action
from tests.unit.tasks import SLOW, applied, failure_of, needs_task_groups

pytestmark = pytest.mark.usefixtures("app")


def test_a_step_that_waits_for_the_body_which_waits_for_the_end_of_another_is_let_finish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parking, "STUCK", 0.1)
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
