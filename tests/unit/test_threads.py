"""Sync steps of async tasks, more of them than there are threads, and threads that hang."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery

from celery_durable import (
    AsyncDurableContext,
    ConfigurationError,
    DurableContext,
    DurableTimeoutError,
    RetriesExhausted,
    RetryPolicy,
    RunOptions,
    durable_task,
)
from celery_durable.app.settings import read_settings
from celery_durable.drivers.threads import actions, hanging, in_each_thread
from celery_durable.interrupts import FailAttempt, Fenced, RetryStep
from tests.processes import PROJECT
from tests.unit.conftest import Run
from tests.unit.tasks import applied, failure_of
from tests.waiting import eventually

ONCE = RunOptions(timeout=0.3, max_attempts=1)


class Gate:
    """Actions that wait until it is opened, and say that they have begun."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.begun: list[str] = []

    def __call__(self, name: str) -> str:
        self.begun.append(name)
        assert self._open.wait(30)
        return name

    def open(self) -> None:
        self._open.set()

    async def entered(self, *names: str) -> None:
        while self.begun != list(names):  # noqa: ASYNC110  an action in a thread cannot set an event of the loop's
            await asyncio.sleep(0.001)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """One that is open after the test, so that no thread hangs any more."""
    gate = Gate()
    yield gate
    gate.open()
    eventually(lambda: not hanging())


async def queued(run: Run, *names: str) -> None:
    """Wait until just these steps wait for a thread."""
    while [step.name for step in actions.waiting(run.last.pulse)] != list(names):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def ended(body: Any) -> Any:
    """Run it on a loop of its own; fail if it does not end."""
    return asyncio.run(asyncio.wait_for(body, 20))


# -- a step begins when a thread is there for it -----------------------------------------------------------------------


def test_no_time_of_a_step_is_spent_by_waiting_for_a_thread(run: Run, gate: Gate) -> None:
    """Neither its timeout nor its start, from which `max_duration` runs."""

    async def body(ctx: AsyncDurableContext) -> list[str]:
        first = asyncio.create_task(ctx.run("first", gate, "first"))
        await gate.entered("first")
        second = asyncio.create_task(ctx.run("second", lambda: "second", ONCE))
        await queued(run, "second")
        await asyncio.sleep(2 * ONCE.longest_execution)  # timers of the loop fire in their order
        assert "step:2" not in "".join(run.names())
        gate.open()
        return [await first, await second]

    assert ended(body(run.async_attempt(step_threads=1))) == ["first", "second"]
    assert [run.entry(name)["state"] for name in run.names()] == ["done", "done"]


def test_threads_are_given_in_the_order_of_asking(run: Run, gate: Gate) -> None:
    order: list[int] = []

    async def body(ctx: AsyncDurableContext) -> list[Any]:
        first = asyncio.create_task(ctx.run("first", gate, "first"))
        await gate.entered("first")
        others = [asyncio.create_task(ctx.run(f"s{n}", order.append, n)) for n in range(9)]
        await queued(run, *(f"s{n}" for n in range(9)))
        gate.open()
        return await asyncio.gather(first, *others)

    ended(body(run.async_attempt(step_threads=1)))
    assert order == list(range(9))


def test_at_most_so_many_actions_run_at_a_time(run: Run, gate: Gate) -> None:
    async def body(ctx: AsyncDurableContext) -> list[str]:
        tasks = [asyncio.create_task(ctx.run(f"s{n}", gate, f"s{n}")) for n in range(10)]
        await queued(run, *(f"s{n}" for n in range(3, 10)))
        while len(gate.begun) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert sorted(gate.begun) == ["s0", "s1", "s2"]
        gate.open()
        return await asyncio.gather(*tasks)

    assert ended(body(run.async_attempt(step_threads=3))) == [f"s{n}" for n in range(10)]


# -- what waits when its attempt ends never starts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "interrupt"),
    [(RunOptions(), FailAttempt), (RunOptions(initial_retry_interval=1), RetryStep)],
    ids=["by a failure", "by a retry"],
)
def test_what_waits_when_a_sibling_ends_the_attempt_never_starts(
    run: Run, gate: Gate, options: RunOptions, interrupt: type[BaseException]
) -> None:
    both_wait = asyncio.Event()

    async def fail() -> None:
        await gate.entered("first")
        await queued(run, "second", "third")
        both_wait.set()
        raise ValueError("no")

    async def body(ctx: AsyncDurableContext) -> None:
        tasks = [asyncio.create_task(ctx.run(name, gate, name)) for name in ("first", "second", "third")]
        tasks.append(asyncio.create_task(ctx.run("failing", fail, options)))
        await both_wait.wait()
        # At once, and not when a thread is there.
        await queued(run)
        gate.open()
        try:
            await asyncio.gather(*tasks)
        finally:
            for withdrawn in tasks[1:3]:
                with pytest.raises(interrupt):
                    await withdrawn
            assert await tasks[0] == "first"

    with pytest.raises(interrupt):
        ended(body(run.async_attempt(step_threads=1)))
    assert gate.begun == ["first"]
    assert [run.entry(name)["name"] for name in run.names() if run.entry(name)["state"] == "done"] == ["first"]


def test_what_waits_when_it_is_cancelled_never_starts(run: Run, gate: Gate) -> None:
    async def body(ctx: AsyncDurableContext) -> str:
        first = asyncio.create_task(ctx.run("first", gate, "first"))
        await gate.entered("first")
        second = asyncio.create_task(ctx.run("second", gate, ONCE, "second"))
        await queued(run, "second")
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open()
        return await first + await ctx.run("third", lambda: " third")

    assert ended(body(run.async_attempt(step_threads=1))) == "first third"
    assert gate.begun == ["first"]


def test_a_thread_that_was_given_to_a_cancelled_step_goes_to_the_next(run: Run, gate: Gate) -> None:
    async def body(ctx: AsyncDurableContext) -> list[Any]:
        first = asyncio.create_task(ctx.run("first", gate, "first"))
        await gate.entered("first")
        second = asyncio.create_task(ctx.run("second", gate, "second"))
        third = asyncio.create_task(ctx.run("third", lambda: "third"))
        await queued(run, "second", "third")
        gate.open()
        # The loop does not turn meanwhile: the step has been given the thread, and does not know yet.
        eventually(lambda: len(actions._queue) == 1)  # noqa: SLF001
        second.cancel()
        return [await first, await third]

    assert ended(body(run.async_attempt(step_threads=1))) == ["first", "third"]
    assert gate.begun == ["first"]


def test_what_may_not_start_any_more_when_its_thread_runs_is_judged_again(run: Run) -> None:
    """A process may stand still between the verdict and the first line of the action."""
    started: list[int] = []

    async def body(ctx: AsyncDurableContext) -> None:
        await ctx.run("step", started.append, RunOptions(max_attempts=2), 1)

    ctx = run.async_attempt(step_threads=10_000)
    attempt = run.last

    def take_over() -> None:
        attempt.pulse.closed = True

    in_each_thread.append(take_over)  # the first thing that a new thread does
    idle, actions._idle = actions._idle, []  # noqa: SLF001  so that there is a new one
    try:
        with pytest.raises(Fenced):
            ended(body(ctx))
    finally:
        in_each_thread.remove(take_over)
        actions._idle += idle  # noqa: SLF001
    assert not started


# -- threads that hang -------------------------------------------------------------------------------------------------


def test_a_thread_that_hangs_is_replaced_and_told_once(run: Run, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    async def body(ctx: AsyncDurableContext) -> list[str]:
        ends = []
        for name in ("one", "two"):
            try:
                await ctx.run(name, gate, ONCE, name)
            except RetriesExhausted as error:
                ends.append(error.last_error_type)
        assert hanging() == 2
        return [*ends, await ctx.run("three", lambda: "three")]

    caplog.set_level("WARNING")
    assert ended(body(run.async_attempt(step_threads=1))) == ["DurableTimeoutError", "DurableTimeoutError", "three"]
    told = [message for message in caplog.messages if "was given up" in message]
    assert [message.rpartition(": ")[2] for message in told] == ["1", "2"]
    assert all("task-1" in message and name in message for message, name in zip(told, ("'one'", "'two'"), strict=True))


def test_what_a_given_up_action_returns_when_its_step_has_failed_changes_nothing(run: Run, gate: Gate) -> None:
    async def body(ctx: AsyncDurableContext) -> None:
        with pytest.raises(RetriesExhausted):
            await ctx.run("hang", gate, ONCE, "hang")

    ended(body(run.async_attempt()))
    before = dict(run.journal.fields)
    gate.open()
    eventually(lambda: not hanging())
    assert run.journal.fields == before


def test_an_action_that_raises_stop_iteration_fails(run: Run) -> None:
    async def body(ctx: AsyncDurableContext) -> None:
        await ctx.run("next", next, iter(()))

    with pytest.raises(FailAttempt, match="RuntimeError"):
        ended(body(run.async_attempt()))


ENDS = """
import threading
from celery_durable import RetriesExhausted, RunOptions, durable_task, DurableTimeoutError

@durable_task
async def hangs(ctx):
    await ctx.run("hang", threading.Event().wait, RunOptions(timeout=0.05))

@durable_task
async def works(ctx):
    return await ctx.run("work", lambda: "works")

def call():
    try:
        hangs()
    except DurableTimeoutError:
        return works()
"""


def test_a_thread_that_hangs_does_not_keep_the_process_from_ending() -> None:
    assert said(ENDS + "print(call())") == ["works"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_child_has_threads_of_its_own() -> None:
    fork = "import os\ncall()\nif pid := os.fork():\n    os.waitpid(pid, 0)\nprint(call(), flush=True)"
    assert said(ENDS + fork) == ["works", "works"]


def said(program: str) -> list[str]:
    """Return the lines that a process prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, cwd=PROJECT, timeout=20, check=True, capture_output=True, text=True
    ).stdout.splitlines()


# -- a def task whose thread nothing reaches ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["def", "async def", "a lambda that returns an awaitable"])
def test_a_timeout_is_kept_in_a_thread_that_no_signal_reaches(app: Celery, gate: Gate, kind: str) -> None:
    async def hang() -> None:
        gate.begun.append("hang")
        await asyncio.get_running_loop().create_future()

    action: Any = {"def": lambda: gate("hang"), "async def": hang}.get(kind, lambda: asyncio.wait_for(hang(), 30))

    @durable_task
    def task(ctx: DurableContext) -> None:
        ctx.run("hang", action, RunOptions(timeout=0.3))

    with ThreadPoolExecutor(1) as thread, pytest.raises(DurableTimeoutError, match=r"within 0.3 s"):
        thread.submit(task).result(20)
    assert gate.begun == ["hang"]


def test_any_other_step_of_a_def_task_runs_in_the_thread_of_the_task(app: Celery) -> None:
    @durable_task
    def task(ctx: DurableContext) -> list[int]:
        return [ctx.run("where", threading.get_ident), threading.get_ident()]

    with ThreadPoolExecutor(1) as thread:
        assert len(set(thread.submit(task).result(20))) == 1


# -- the setting -------------------------------------------------------------------------------------------------------


def test_the_number_of_threads_is_a_setting() -> None:
    assert read_settings({}).step_threads == 64
    assert read_settings({"durable_step_threads": 3}).step_threads == 3
    for wrong in (0, -1, 1.5, "8"):
        with pytest.raises(ConfigurationError, match="durable_step_threads must be"):
            read_settings({"durable_step_threads": wrong})


# -- whole tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("app")
@pytest.mark.timeout(20)
def test_a_sync_step_of_an_async_task_may_raise_stop_iteration() -> None:
    async def body(ctx: AsyncDurableContext) -> Any:
        return await ctx.run("first row", lambda: next(iter([])))

    failed = applied(body, task_retry_policy=RetryPolicy(max_attempts=1))
    assert "StopIteration" in str(failure_of(failed, RuntimeError))
