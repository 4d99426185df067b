"""The process's event loop outlives what its tasks do, and never waits for itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import wait
from typing import Any
from unittest.mock import Mock

import pytest

from celery_durable.config.settings import AttemptSettings, Settings
from celery_durable.drivers import loop
from celery_durable.drivers.info import TaskInfo
from celery_durable.drivers.loop import wait_for
from celery_durable.drivers.on_loop import OnLoop
from celery_durable.drivers.pulse import Pulse
from celery_durable.journal.memory import MemoryJournal
from tests.processes import PROJECT

HEAD = """
import asyncio, sys
from celery_durable import durable_task

@durable_task
async def inner(ctx):
    return await ctx.run("five", lambda: 5)
"""

NESTED = """
@durable_task
async def outer(ctx):
    return await inner()

try:
    print(outer())
except Exception as error:
    print(type(error).__name__)
"""

NESTED_SYNC = """
async def five():
    return 5

@durable_task
def middle(ctx):
    return ctx.run("five", five)

@durable_task
async def outer(ctx):
    return middle()

try:
    print(outer())
except Exception as error:
    print(type(error).__name__)
"""

EAGER = """
@durable_task
async def outer(ctx):
    return [inner.apply().get(), await ctx.run("apply", lambda: inner.apply().get())]

print(outer.apply().get(), outer())
"""

EAGER_DEEPER = """
async def five():
    return 5

@durable_task
def middle(ctx):
    return [ctx.run("five", five), inner.apply().get()]

@durable_task
async def deeper(ctx):
    return [middle.apply().get(), middle(), await inner()]

@durable_task
async def outer(ctx):
    return deeper.apply().get()

print(outer.apply().get())
"""

LOOP_OF_ONES_OWN = """
@durable_task
async def outer(ctx):
    async def one(number):
        return await ctx.run("one", lambda: number)
    return await asyncio.gather(inner(), one(1), one(2))

async def main():
    return [await inner(), await outer(), inner.apply().get()]

print(asyncio.run(main()))
"""

EXIT = """
@durable_task
async def leaving(ctx):
    await asyncio.gather(ctx.run("leave", sys.exit))

try:
    leaving()
except SystemExit:
    print(inner())
"""

EXIT_ASYNC = """
async def leave():
    sys.exit(3)

@durable_task
async def leaving(ctx):
    await asyncio.gather(ctx.run("leave", leave))

try:
    leaving()
except SystemExit:
    print(inner())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("program", "printed"),
    [
        (NESTED, "5"),
        (NESTED_SYNC, "InvalidStepError"),
        (EAGER, "[5, 5] [5, 5]"),
        (EAGER_DEEPER, "[[5, 5], [5, 5], 5]"),
        (LOOP_OF_ONES_OWN, "[5, [5, 1, 2], 5]"),
        (EXIT, "5"),
        (EXIT_ASYNC, "5"),
    ],
    ids=[
        "an async task awaits an async task",
        "an async task calls a task with an async step",
        "an async task applies an async task eagerly",
        "and that another one",
        "tasks are awaited on a loop of one's own",
        "a sync step exits",
        "an async step exits",
    ],
)
def test_the_loop_goes_on(program: str, printed: str, loop: str) -> None:
    """In a process of its own, since a loop that stands still cannot be repaired."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
        program = f"import uvloop\nuvloop.install()\n{program}"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HEAD + program],
        cwd=PROJECT, timeout=20, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.stdout.strip() == printed


def test_an_awaitable_is_waited_for_and_its_error_raised() -> None:
    async def fail() -> None:
        raise KeyError("sku")

    async def five() -> int:
        return 5

    assert wait_for(five()) == 5
    with pytest.raises(KeyError, match="sku"):
        wait_for(fail())


class Struck(Exception):
    """What a soft time limit raises."""


def test_a_wait_that_is_interrupted_before_the_loop_has_begun_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    told: list[Any] = []

    async def hang() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    def strike(_outcome: Any) -> None:
        raise Struck

    def wait_until_it_ends(outcomes: Any) -> None:
        gate.set()
        assert not wait(outcomes, 5).not_done

    monkeypatch.setattr(loop, "_result", strike)
    monkeypatch.setattr(loop, "wait", wait_until_it_ends)
    loop._loop.get().call_soon_threadsafe(gate.wait, 30)  # noqa: SLF001  it is busy until all is said to it
    try:
        with pytest.raises(Struck):
            wait_for(hang(), lambda stop: told.append(type(stop)))
    finally:
        gate.set()
    assert told == [Struck, "cancelled"]


def test_a_question_to_the_journal_is_answered_before_the_next_one_though_its_task_is_cancelled() -> None:
    """Two threads that read one connection would get each other's replies."""
    said: list[str] = []
    gate = threading.Event()

    async def ask_both() -> list[Any]:
        pulse = Pulse(MemoryJournal(), TaskInfo("1", "read"), AttemptSettings.of(Settings(), build=""))
        on_loop, asked = OnLoop(pulse, Mock(), Mock()), asyncio.Event()
        loop = asyncio.get_running_loop()

        def first() -> None:
            loop.call_soon_threadsafe(asked.set)
            assert gate.wait(10)
            said.append("first")

        asking = asyncio.ensure_future(on_loop.ask(first))
        await asked.wait()
        asking.cancel()
        then = asyncio.ensure_future(on_loop.ask(lambda: said.append("second")))
        for _ in range(100):
            await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(asking, then, return_exceptions=True)

    asyncio.run(ask_both())
    assert said == ["first", "second"]
