"""``ctx.patched``: a run keeps the path that it began with, whatever becomes of the operation that says so."""

from __future__ import annotations

import pytest

from celery_durable import DurableContext, TaskCancelled
from celery_durable.interrupts import Sleep
from tests.unit.conftest import Action, Run


def test_a_run_that_begins_with_a_change_has_it_on_every_attempt(run: Run) -> None:
    for _ in range(3):
        ctx = run.attempt()
        assert ctx.patched("check")
        ctx.run("check", Action(1))


def test_a_run_that_is_past_the_change_goes_on_without_it(run: Run) -> None:
    run.attempt().run("charge", Action(1))

    for _ in range(3):
        ctx = run.attempt()
        assert not ctx.patched("check")
        ctx.run("charge", Action(2))
        assert ctx.patched("later")
        ctx.run("notify", Action(3))


def test_a_cancelled_sleep_keeps_the_change_before_it(run: Run) -> None:
    """The entry of the sleep says that the change was taken, and the cancellation writes another one in its place."""

    def body(ctx: DurableContext) -> None:
        assert ctx.patched("check")
        ctx.sleep(60)

    with pytest.raises(Sleep):
        body(run.attempt())
    run.journal.cancel_requested = True
    with pytest.raises(TaskCancelled):
        body(run.attempt())
    run.die()

    with pytest.raises(TaskCancelled):
        body(run.attempt())

    assert run.entry("step:1")["patches"] == ["check"]
