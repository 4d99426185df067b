"""A process that is told to end is no failure of what it executes."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from celery_durable import (
    AsyncDurableContext,
)
from celery_durable.invocation.eager_journals import _journals as _eager_journals
from celery_durable.journal.memory import MemoryJournal
from tests.alarms import alarms
from tests.unit.conftest import Action
from tests.unit.tasks import SLOW, applied

pytestmark = pytest.mark.usefixtures("app")


@pytest.mark.parametrize("options", [(), (SLOW,)], ids=["no options", "retry options"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt], ids=lambda kind: kind.__name__)
def test_a_process_that_is_stopped_in_an_async_step_records_no_failure(kind: Any, options: Any) -> None:
    """It strikes the thread that waits for the event loop, where the step sees a CancelledError."""
    seen: list[str] = []
    journals: list[MemoryJournal] = []

    def strike(_: Any) -> None:
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

    with alarms([], strike), pytest.raises(kind, match="-241"):
        applied(body)
    assert seen == ["CancelledError"]
    (journal,) = journals
    recorded = [value for name, value in journal.fields.items() if name.startswith(b"step:")]
    assert len([value for value in recorded if b'"done"' in value]) == 1
    assert [value for value in recorded if b'"error"' in value] == []
    assert journal.fields.get(b"status") == b"running"
    assert b"outcome" not in journal.fields
