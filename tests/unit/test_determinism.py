"""The rules of determinism, one by one: what each accepts, and what it refuses."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from celery_durable import (
    AsyncDurableContext,
    ContextClosedError,
    ContextInStepError,
    DurableContext,
    InvalidStepError,
    JournalMismatchError,
    JournalUnreadableError,
    TerminalError,
    durable_task,
)
from celery_durable.config.settings import AttemptSettings, Settings
from celery_durable.drivers.info import TaskInfo
from celery_durable.drivers.pulse import Pulse, running_step
from celery_durable.interrupts import EndRun, Sleep
from celery_durable.journal.entries import Entry
from celery_durable.journal.memory import MemoryJournal
from celery_durable.steps import attempt as attempt_module
from celery_durable.steps.determinism import (
    check_usable,
    every_step_awaited,
    no_context_in_a_step,
    nothing_left_over,
    same_kind,
    same_name,
)
from celery_durable.steps.program_order import ProgramOrder
from tests.unit.conftest import Action, Run
from tests.unit.tasks import applied, failure_of


@pytest.fixture
def pulse() -> Pulse:
    return Pulse(MemoryJournal(), TaskInfo("task-1", "shop.checkout"), AttemptSettings.of(Settings(), build=""))


class Inside:
    """A step whose action runs."""

    name = "charge"
    violation: Any = None

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse


def test_threads_that_ask_at_the_same_time_find_the_same_program_order(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=10)

    class MadeTogether(ProgramOrder):
        def __init__(self, *by_use: Any) -> None:
            together.wait()
            super().__init__(*by_use)

    monkeypatch.setattr(attempt_module, "ProgramOrder", MadeTogether)
    run.attempt()
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: run.last.order, range(2))

    assert one is other is run.last.order
    assert run.last.replay.take_position("charge") == ("1", None)
    assert one.next() == "2"


def test_an_operation_has_the_name_and_the_kind_that_are_recorded() -> None:
    step = Entry("charge", "done")
    assert same_name(step, "charge")
    assert not same_name(step, "refund")
    assert same_kind(step, "step")
    assert not same_kind(step, "sleep")
    assert same_kind(Entry("nap", "sleeping", until=1, kind="sleep"), "sleep")
    assert not same_kind(Entry("charge", "a state of a newer version"), "step")


def test_what_is_left_over_is_named_by_its_first_position() -> None:
    assert nothing_left_over([]) is None
    assert nothing_left_over(["10", "9", "9.2", "@b.1"]) == "9"
    with pytest.raises(JournalUnreadableError, match="has no position in program order"):
        nothing_left_over(["1", "nowhere"])


def test_no_step_uses_the_context(pulse: Pulse) -> None:
    no_context_in_a_step(pulse, None)
    step = Inside(pulse)
    with pytest.raises(ContextInStepError, match="inside step 'charge'"):
        no_context_in_a_step(pulse, step)
    assert isinstance(pulse.interrupt, EndRun)
    assert step.violation is pulse.interrupt


def test_no_thread_that_a_step_has_begun_uses_the_context(pulse: Pulse) -> None:
    pulse.running.add(Inside(pulse))  # type: ignore[arg-type]
    no_context_in_a_step(pulse, None)
    raised: list[BaseException] = []

    def use() -> None:
        try:
            no_context_in_a_step(pulse, None)
        except ContextInStepError as error:
            raised.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "inside another thread" in str(raised[0])
    assert pulse.violation is pulse.interrupt is not None


def test_the_context_is_used_as_long_as_its_attempt_goes_on(pulse: Pulse) -> None:
    check_usable(pulse)
    pulse.interrupt = sleep = Sleep("nap", 1)
    with pytest.raises(Sleep):
        check_usable(pulse, draws=True)
    pulse.is_ending = True
    check_usable(pulse, draws=True)
    with pytest.raises(Sleep) as again:
        check_usable(pulse)
    assert again.value is sleep
    pulse.closed = True
    with pytest.raises(ContextClosedError):
        check_usable(pulse, draws=True)


def test_the_rule_of_steps_is_asked_wherever_the_context_is(pulse: Pulse) -> None:
    token = running_step.set(Inside(pulse))
    try:
        with pytest.raises(ContextInStepError):
            check_usable(pulse, draws=True)
    finally:
        running_step.reset(token)


def test_every_operation_is_awaited(run: Run) -> None:
    async def body() -> str | None:
        ctx = run.async_attempt()
        await ctx.run("first", lambda: 1)
        forgotten = ctx.run("second", lambda: 2)
        del forgotten
        return every_step_awaited(run.last.siblings.in_flight)

    assert asyncio.run(body()) == "second"


# -- whole tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("app")
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


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("ending", ["done", TerminalError("no")], ids=["returns", "raises TerminalError"])
def test_steps_left_over_at_a_good_or_terminal_end_are_a_mismatch(ending: Any) -> None:
    endings = Action(ValueError("first"), ending)

    def body(ctx: DurableContext) -> Any:
        if ctx.attempt == 1:
            ctx.run("once", lambda: 1)
        return endings()

    assert "asked for: the end of the task" in str(failure_of(applied(body), JournalMismatchError))
    assert endings.executions == 2


@pytest.mark.usefixtures("app")
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


@pytest.mark.usefixtures("app")
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


@pytest.mark.usefixtures("app")
def test_a_step_that_is_returned_and_not_awaited_is_an_error() -> None:
    action = Action(1)

    @durable_task
    async def returns_it(ctx: AsyncDurableContext) -> Any:
        return ctx.run("charge", action)

    failure_of(returns_it.apply(), InvalidStepError)
    assert action.executions == 0


@pytest.mark.usefixtures("app")
def test_a_step_that_was_cancelled_before_it_began_was_waited_for() -> None:
    @durable_task
    async def gives_up(ctx: AsyncDurableContext) -> int:
        step = asyncio.ensure_future(ctx.run("charge", Action(1)))
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)
        return await ctx.run("second", Action(2))

    assert gives_up.apply().result == 2


@pytest.mark.usefixtures("app")
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
