"""``step_prerun`` and ``step_postrun``: who keeps something by thread is told of each step in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from celery_durable import DurableContext, RunOptions, TerminalError
from celery_durable.signals import step_postrun, step_prerun
from tests.unit.conftest import Action, Run


@contextmanager
def heard() -> Iterator[list[tuple[str, str, str, str, int]]]:
    """What receivers of both signals are told, and in which thread."""
    told: list[tuple[str, str, str, str, int]] = []

    def hear(signal: Any, sender: str, task_id: str, name: str, **_: Any) -> None:
        told.append((signal.name, sender, task_id, name, threading.get_ident()))

    for signal in (step_prerun, step_postrun):
        signal.connect(hear)
    try:
        yield told
    finally:
        for signal in (step_prerun, step_postrun):
            signal.disconnect(hear)


async def in_coroutine(run: Run, *steps: tuple[str, Any]) -> None:
    ctx = run.async_attempt()
    run.last.begin_here()
    for name, action in steps:
        await ctx.run(name, action, RunOptions(max_attempts=1))


def test_receivers_are_told_before_and_after_each_execution_in_its_thread(run: Run) -> None:
    async def on_loop() -> int:
        return threading.get_ident()

    ran: list[int] = []
    with heard() as told:
        asyncio.run(in_coroutine(run, ("sync", lambda: ran.append(threading.get_ident())), ("async", on_loop)))

    assert [fact[:4] for fact in told] == [
        (signal, "shop.checkout", "task-1", name)
        for name in ("sync", "async")
        for signal in ("step_prerun", "step_postrun")
    ]
    assert {fact[4] for fact in told[:2]} == {*ran} != {threading.get_ident()}
    assert {fact[4] for fact in told[2:]} == {threading.get_ident()}


def test_a_step_that_fails_is_told_of_and_a_replay_is_not(run: Run) -> None:
    fails = Action(TerminalError("no"))
    with heard() as told:
        for _ in range(2):
            with pytest.raises(TerminalError):
                asyncio.run(in_coroutine(run, ("pay", fails)))

    assert fails.executions == 1
    assert [fact[0] for fact in told] == ["step_prerun", "step_postrun"]


def test_a_receiver_that_fails_changes_nothing(run: Run) -> None:
    def fail(**_: Any) -> None:
        raise ZeroDivisionError

    step_prerun.connect(fail)
    try:
        asyncio.run(in_coroutine(run, ("pay", Action("paid"))))
    finally:
        step_prerun.disconnect(fail)

    assert run.entry("step:1")["value"] == "paid"


def test_steps_in_the_thread_of_the_task_are_celerys_to_tell_of(run: Run) -> None:
    ctx: DurableContext = run.attempt()
    with heard() as told:
        ctx.run("pay", Action("paid"))

    assert told == []
