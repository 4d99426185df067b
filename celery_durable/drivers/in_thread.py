"""The driver of ``def`` tasks: it waits in their thread."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import wait
from math import inf
from sys import maxsize
from typing import Any, TypeVar

from celery_durable.interrupts import Interrupt
from celery_durable.user_code import user_code_boundary
from celery_durable.values.tagged import KINDS

from . import upkeep
from .action import begin_action
from .interruption import current_target
from .loop import is_async, is_to_be_lent, limited, wait_for
from .pulse import Pulse, Running
from .threads import Thread, timed
from .watchdog import timed_out, watchdog

T = TypeVar("T")


class InThread:
    """It blocks its thread, so no coroutine is suspended: each ends in the call that starts it. One per attempt."""

    __slots__ = ("_pulse",)

    most_at_once = inf
    on_loop = False

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse

    async def thread_for(self, step: Running) -> Thread:
        raise AssertionError(f"step {step.name!r} has its thread")  # pragma: no cover

    @user_code_boundary
    async def call(self, step: Running, thread: Thread | None) -> Any:  # noqa: ARG002
        if step.options.timeout is not None:
            if current_target() is None:
                return _act_and_judge(step) if is_to_be_lent(step) else _in_a_thread_of_its_own(step)
            _limit(step)
        result = step.action(*step.args, **step.kwargs)
        if type(result) in KINDS or not isinstance(result, Awaitable):
            return result
        if is_to_be_lent(step):
            return _wait_lending_this_thread(step, result)
        return wait_for(result, around=upkeep.on_loop(step))

    async def flush(self) -> None:
        self._pulse.ask(self._pulse.journal.flush)

    async def ask(self, question: Callable[[], None]) -> None:
        self._pulse.ask(question)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  it runs outside of any loop

    async def park(self, interrupt: Interrupt, seconds: float) -> None:  # noqa: ARG002
        raise self._pulse.stop(interrupt)

    def is_cancelled(self, error: BaseException) -> bool:  # noqa: ARG002
        return False


def _limit(step: Running) -> None:
    """Let the watchdog end the step's execution in this thread when it has run too long."""
    step.deadline = time.monotonic() + step.options.longest_execution
    watchdog.schedule(step.deadline)


def _act_and_judge(step: Running) -> Any:
    """Execute a step in its caller's thread, where nothing can end it. If it was late, it fails afterwards."""
    began = time.monotonic()
    result = step.action(*step.args, **step.kwargs)
    if isinstance(result, Awaitable):
        return _wait_lending_this_thread(step, result)
    if time.monotonic() - began > step.options.longest_execution:
        raise timed_out(step)
    return result


def _wait_lending_this_thread(step: Running, result: Awaitable[T]) -> T:
    # Its timeout cancels it on its loop, so this thread is not interrupted.
    step.deadline = inf
    return wait_for(result if step.options.timeout is None else limited(step, result), lends=True)


def _in_a_thread_of_its_own(step: Running) -> Any:
    """Execute a step in another thread, because nothing can interrupt this one. It is given up in time."""
    if is_async(step.action):
        return wait_for(limited(step, step.action(*step.args, **step.kwargs)), around=upkeep.on_loop(step))
    thread = timed.take(maxsize)
    assert thread is not None  # noqa: S101
    item = begin_action(step, thread)
    try:
        wait([item.outcome], step.options.longest_execution)
    except BaseException as stop:  # a soft time limit
        item.give_up(step, stop)
        raise
    item.give_up(step, timed_out(step))
    result = item.outcome.result()
    return wait_for(limited(step, result), around=upkeep.on_loop(step)) if isinstance(result, Awaitable) else result
