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
        self.start_over()

    def start_over(self) -> None:
        """Begin without a loop. A forked child does so, too: it has no thread of its parent."""
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
        """Whether this code runs in the thread of the loop. Green threads share one thread of the operating system."""
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
                # A task of the loop has raised it. Its awaiter gets the error, too, and other tasks go on.
                logger.warning("%r was raised on the event loop", error)


_loop = _Loop()
os.register_at_fork(after_in_child=_loop.start_over)


def in_coroutine() -> bool:
    """Whether an event loop runs this code: the process's, or one of the user's."""
    loop = _running_loop()
    # Green threads share one thread of the operating system, and the loop of the process may run in it.
    return loop is not None and (_loop.is_here() or not _loop.is_that(loop))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


# -- which code runs there ---------------------------------------------------------------------------------------------


def is_async(action: Callable[..., Any]) -> bool:
    """Whether calling *action* gives a coroutine; also a partial, a bound method, or an async ``__call__``."""
    while isinstance(action, partial):
        action = action.func
    return inspect.iscoroutinefunction(action) or inspect.iscoroutinefunction(type(action).__call__)


def needs_thread(step: Running) -> bool:
    """Whether its action would hold up the event loop, so a thread of the library executes it."""
    return not (is_async(step.action) or is_to_be_lent(step))


def is_to_be_lent(step: Running) -> bool:
    """Whether its action belongs into the thread that waits for the task: Django's connections are there."""
    return django.is_imported() and step.pulse.info.is_local and not _loop.is_here() and django.is_used()


# -- to wait for what runs there ---------------------------------------------------------------------------------------

# Whether the event loop stands still until this code has ended. Then nothing here may wait for that loop.
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

    The awaitable has the context variables of the caller, and *around* is entered on the loop. If an exception (a soft
    time limit) interrupts the wait, *interrupted* is called with it, the awaitable is cancelled, and the exception is
    raised when the awaitable has ended.

    With *lends*, and if Django is used, the awaitable runs on a loop of its own. Meanwhile this thread executes what
    needs its connections.
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
            # It is cancelled one turn after it was made: before its first step it would never say that it has ended.
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


# -- executions with a timeout -----------------------------------------------------------------------------------------


async def limited(step: Running, work: Awaitable[T]) -> T:
    """Await the execution of a step. If it takes too long, it has failed, even if it swallows its cancellation."""
    task = asyncio.Task(_awaited(work))  # not create_task(): the task factory numbers the user's tasks
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
