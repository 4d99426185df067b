"""The process's event loop, on which the bodies of async tasks and async steps run."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, TypeVar

from celery_durable import django
from celery_durable.exceptions import InvalidStepError
from celery_durable.user_code import user_code_boundary

from .pulse import Running
from .tasks import look_after
from .threads import begin_thread
from .watchdog import GRACE, timed_out

T = TypeVar("T")

logger = logging.getLogger("celery_durable")

_THREADS_OF_USERS = 64
"""For what user code gives to ``asyncio.to_thread``, in a process."""


class _Loop:
    """One event loop per process, in a thread of its own, for as long as the process lives."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Also in a forked child: the parent's thread is not here."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: int | None = None
        self._starting = threading.Lock()

    def get(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = loop = asyncio.new_event_loop()
                executor = ThreadPoolExecutor(_THREADS_OF_USERS, "celery-durable-to-thread", initializer=begin_thread)
                loop.set_default_executor(executor)
                look_after(loop)
                target = partial(self._keep_running, loop)
                threading.Thread(target=target, name="celery-durable-loop", daemon=True).start()
            return self._loop

    def is_here(self) -> bool:
        """Whether this code runs on the loop (by its thread: green ones share that of the operating system)."""
        return self._thread == threading.get_ident()

    def is_that(self, loop: asyncio.AbstractEventLoop) -> bool:
        return loop is self._loop

    def _keep_running(self, loop: asyncio.AbstractEventLoop) -> None:
        self._thread = threading.get_ident()
        begin_thread()
        while True:
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # Raised in a task of the loop, whose awaiter has it, too; the others go on.
                logger.warning("%r was raised on the event loop", error)


_loop = _Loop()
os.register_at_fork(after_in_child=_loop.renew)


def in_coroutine() -> bool:
    """Whether an event loop runs this code: the process's, or one of the user's."""
    loop = _running_loop()
    # Green threads share that of the operating system, in which the process's loop may run.
    return loop is not None and (_loop.is_here() or not _loop.is_that(loop))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


# -- which code runs there ---------------------------------------------------------------------------------------------


def is_async(action: Callable[..., Any]) -> bool:
    """Whether calling *action* gives a coroutine (also a partial, a bound method, an async ``__call__``)."""
    while isinstance(action, partial):
        action = action.func
    return inspect.iscoroutinefunction(action) or inspect.iscoroutinefunction(type(action).__call__)


def needs_thread(step: Running) -> bool:
    """Whether its action would hold up the event loop, and is executed in a thread of ours."""
    return not (is_async(step.action) or is_to_be_lent(step))


def is_to_be_lent(step: Running) -> bool:
    """Whether its action belongs into the thread of whoever waits for the task: where Django's connections are."""
    return django.is_imported() and step.pulse.info.is_local and not _loop.is_here() and django.is_used()


# -- to wait for what runs there ---------------------------------------------------------------------------------------

# Where a loop stands still until this code has ended, so that nothing may wait for that.
_apart: ContextVar[bool] = ContextVar("celery_durable_apart", default=False)


def wait_apart(awaitable: Awaitable[T]) -> T:
    """Run an awaitable in a thread of its own, while the event loop that runs this code stands still."""

    def run() -> T:
        _apart.set(True)
        return asyncio.run(_awaited(awaitable))

    with ThreadPoolExecutor(1, "celery-durable-apart", initializer=begin_thread) as executor:
        return executor.submit(copy_context().run, run).result()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def wait_for(
    awaitable: Awaitable[T],
    interrupted: Callable[[BaseException], None] | None = None,
    around: AbstractContextManager[object] = nullcontext(),  # noqa: B008  it has no state
    lends: bool = False,
) -> T:
    """Run an awaitable on the process's loop, and wait for it in this thread.

    Its context variables are those of the caller, and *around* is entered there. What interrupts the wait (a soft time
    limit) is told to *interrupted*, cancels the awaitable, and is raised once that has ended.

    With *lends* it is run on a loop of its own where Django is used, and this thread executes meanwhile what is to use
    its connections.
    """
    if _loop.is_here():
        if isinstance(awaitable, Coroutine):
            awaitable.close()
        raise InvalidStepError(
            "an async function cannot be waited for on the event loop itself: await it in the async def task, "
            "or call it from a def task"
        )
    if lends and django.is_used() and _running_loop() is None:
        return django.wait_lending_this_thread(partial(_on_loop_of_its_own, awaitable, around))
    if _apart.get():
        return wait_apart(awaitable)
    loop = _loop.get()
    outcome: Future[T] = Future()
    tasks: list[asyncio.Task[None]] = []

    async def awaited() -> None:
        try:
            with around:
                value = await awaitable
        except BaseException as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(value)

    loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(awaited())))
    try:
        return _result(outcome)
    except BaseException as stop:
        if not outcome.done():
            if interrupted is not None:
                interrupted(stop)
            # A turn after it was made: a task that is cancelled before its first step never says that it has ended.
            loop.call_soon_threadsafe(lambda: loop.call_soon(tasks[0].cancel))
            wait([outcome])
        raise


async def _on_loop_of_its_own(awaitable: Awaitable[T], around: AbstractContextManager[object]) -> T:
    begin_thread()
    with around:
        return await awaitable


@user_code_boundary
def _result(outcome: Future[T]) -> T:
    return outcome.result()


# -- executions that may take so long ----------------------------------------------------------------------------------


async def limited(step: Running, work: Awaitable[T]) -> T:
    """Await the execution of a step, which has failed when it takes longer than it may, whatever it makes of that."""
    task = asyncio.Task(_awaited(work))  # not create_task(): it is none of the user's
    in_time = False
    try:
        await asyncio.wait({task}, timeout=step.options.longest_execution)
        in_time = task.done()
    finally:
        if not in_time:
            await _end_late(step, task)
    if in_time:
        return task.result()
    error = timed_out(step)
    if task.done():
        try:
            task.result()
        except BaseException as where:
            raise error from where
    raise error


async def _end_late(step: Running, task: asyncio.Task[Any]) -> None:
    """Cancel an execution whose time is over, and give it some time to clean up."""
    task.cancel()
    await asyncio.wait({task}, timeout=GRACE)
    if not task.done():
        logger.error(
            "task %s: step %r swallows its cancellation; the run goes on without it, and what it returns is dropped",
            step.pulse.info.task_id, step.name,
        )  # fmt: skip
        task.add_done_callback(lambda late: late.cancelled() or late.exception())
