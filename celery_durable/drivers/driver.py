"""The two ways of waiting: in the calling thread, and on the process's event loop. The logic that waits is the same."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, copy_context
from functools import partial
from math import inf
from sys import maxsize
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from celery_durable import django
from celery_durable.exceptions import InvalidStepError, JournalUnavailableError, JournalUnreadableError
from celery_durable.interrupts import PATIENT, Fenced, Interrupt, JournalLost
from celery_durable.journal.port import LONGEST_READ
from celery_durable.values.codec import Encoded
from celery_durable.values.tagged import KINDS

from . import upkeep
from .interruption import door, here
from .siblings import cancellable, is_alone, look_after, step_begins, step_ends
from .threads import MOST_QUESTIONS, act_in_lent_thread, actions, begin_thread, questions, timed, to_its_end
from .watchdog import GRACE, timed_out, watcher

if TYPE_CHECKING:
    from celery_durable.steps.attempt import Attempt
    from celery_durable.steps.step import Step

    from .threads import Thread

T = TypeVar("T")

logger = logging.getLogger("celery_durable")

LARGE = 2**16
"""Characters; what is larger is encoded, sent and read in a thread: a socket takes as much only as it is read from."""
_THREADS_OF_USERS = 64
"""For what user code gives to ``asyncio.to_thread``, in a process."""


class Driver(Protocol):
    """What a step has to wait for."""

    most_at_once: float
    """Characters of an entry that may be sent without a thread."""

    async def call(self, step: Step, thread: Thread | None) -> Any:
        """The result of the step's action; an awaitable is awaited.

        Raises:
            Stale: the action was not started, because what its attempt may do is to be asked once more.
        """

    async def settle(self, attempt: Attempt) -> None:
        """Until the journal has acknowledged all that was sent."""

    async def ask(self, attempt: Attempt, question: Callable[[], None]) -> None:
        """Until a blocking question to the journal is answered."""

    async def pause(self, seconds: float) -> None:
        """For a while."""

    async def park(self, attempt: Attempt, interrupt: Interrupt, seconds: float) -> None:
        """Until nothing of the attempt goes on but waits, which ends it; or until the seconds have passed before.

        Raises:
            Interrupt: by which it ends.
            CancelledError: the body is over, and the wait with it.
        """

    def is_cancelled(self, error: BaseException) -> bool:
        """Whether it says that somebody has cancelled what runs here: that is no verdict on an action."""
        ...


class InThread:
    """Of a ``def`` task: nothing is ever suspended, so its coroutines end in the call that starts them."""

    most_at_once = inf

    @door
    async def call(self, step: Step, thread: Thread | None) -> Any:  # noqa: ARG002
        if step.options.timeout is not None:
            if here() is None:
                return _act_and_judge(step) if _is_to_be_lent(step) else _in_a_thread_of_its_own(step)
            limit(step)
        result = step.action(*step.args, **step.kwargs)
        if type(result) in KINDS or not isinstance(result, Awaitable):
            return result
        if _is_to_be_lent(step):
            return _wait_lending_this_thread(step, result)
        return wait_for(result, around=upkeep.on_loop(step))

    async def settle(self, attempt: Attempt) -> None:
        answer(attempt, attempt.journal.settle)

    async def ask(self, attempt: Attempt, question: Callable[[], None]) -> None:
        answer(attempt, question)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  it runs outside of any loop

    async def park(self, attempt: Attempt, interrupt: Interrupt, seconds: float) -> None:  # noqa: ARG002
        raise attempt.stop(interrupt)

    def is_cancelled(self, error: BaseException) -> bool:  # noqa: ARG002
        return False


class OnLoop:
    """Of an ``async def`` task: others go on while it waits. One per attempt."""

    most_at_once: float = LARGE

    @staticmethod
    async def encode(step: Step, value: Any) -> Encoded:
        """What is recorded of a large value, while others go on."""
        return await in_thread(partial(step.encode, value))

    def __init__(self) -> None:
        self._reading = asyncio.Lock()

    async def perform(self, step: Step) -> Any:
        """Let a step execute: to its end, whoever cancels it meanwhile."""
        sibling = step_begins(step.attempt)
        try:
            value = await step.perform(self)
        except Interrupt as interrupt:
            step_ends(sibling)
            actions.withdraw(step.attempt)
            await self.end_by(step.attempt, interrupt)
        except BaseException:
            step_ends(sibling)
            raise
        if step_ends(sibling):
            await asyncio.sleep(0)  # raises it
        return value

    async def end_by(self, attempt: Attempt, interrupt: Interrupt) -> NoReturn:
        """Raise what ends the attempt, when its other coroutines have ended what they have begun."""
        if isinstance(interrupt, PATIENT):
            await attempt.siblings.park(attempt, interrupt)
        raise attempt.interrupt or interrupt

    async def thread_for(self, step: Step) -> Thread:
        """A thread for the step's action, once one is there.

        Raises:
            Interrupt: the attempt has ended meanwhile.
        """
        most = step.attempt.terms.step_threads
        return actions.take(most) or await self._queue(step, most)

    @staticmethod
    async def _queue(step: Step, most: int) -> Thread:
        attempt = step.attempt
        thread = await cancellable(actions.queue(most, step)) if attempt.interrupt is None else None
        if thread is None or attempt.interrupt is not None:
            if thread is not None:
                thread.leave()
            raise attempt.interrupt or asyncio.CancelledError
        return thread

    async def call(self, step: Step, thread: Thread | None) -> Any:
        if thread is not None:
            result = await self._in_its_thread(step, thread)
        elif _is_to_be_lent(step) and not is_async(step.action):
            result = await self._in_lent_thread(step)
        else:
            result = step.action(*step.args, **step.kwargs)
        if not isinstance(result, Awaitable):
            return result
        with upkeep.on_loop(step):
            return await result if step.options.timeout is None else await _limited(step, result)

    @staticmethod
    async def _in_lent_thread(step: Step) -> Any:
        outcome = act_in_lent_thread(step)
        if step.options.timeout is not None:
            done, _ = await asyncio.wait({asyncio.wrap_future(outcome)}, timeout=step.options.longest_execution)
            if not done:
                raise timed_out(step)
        return await to_its_end(outcome)

    @staticmethod
    async def _in_its_thread(step: Step, thread: Thread) -> Any:
        errand = step.send(thread)
        if step.options.timeout is None:
            return await to_its_end(errand.outcome)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(step.options.longest_execution, lambda: errand.give_up(step, timed_out(step)))
        try:
            return await to_its_end(errand.outcome)
        finally:
            timer.cancel()

    async def settle(self, attempt: Attempt) -> None:
        # Siblings share one connection: whoever reads first reads for all.
        async with self._reading:
            if isinstance(attempt.interrupt, (Fenced, JournalLost)):
                raise attempt.interrupt
            if attempt.keeps_back:
                await self._send_large(attempt)
            if not attempt.journal.owes:
                return
            fd = attempt.journal.fileno()
            if fd is not None and await _arrives(attempt, fd) and answer(attempt, attempt.journal.settle_if_connected):
                return
            await self._in_thread(attempt, attempt.journal.settle)

    async def _send_large(self, attempt: Attempt) -> None:
        try:
            await self._in_thread(attempt, attempt.send_large())
        finally:
            attempt.sent_large(self.most_at_once)

    async def ask(self, attempt: Attempt, question: Callable[[], None]) -> None:
        async with self._reading:
            await self._in_thread(attempt, question)

    @staticmethod
    async def _in_thread(attempt: Attempt, question: Callable[[], None]) -> None:
        # To its end: whoever reads next is to be alone on the connection, though this task has been cancelled.
        await in_thread(partial(answer, attempt, question))

    async def pause(self, seconds: float) -> None:
        await cancellable(asyncio.sleep(seconds))

    async def park(self, attempt: Attempt, interrupt: Interrupt, seconds: float) -> None:
        attempt.tell()
        await attempt.siblings.park(attempt, interrupt, seconds)

    def is_cancelled(self, error: BaseException) -> bool:
        # Python 3.11 counts cancellations; what an action has cancelled by itself, it has taken back.
        task: Any = asyncio.current_task()
        return isinstance(error, asyncio.CancelledError) and hasattr(task, "cancelling") and task.cancelling() > 0


IN_THREAD = InThread()


def run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits in its thread: it never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("a coroutine of a def task was suspended")  # pragma: no cover


def answer(attempt: Attempt, question: Callable[[], T]) -> T:
    """Ask the journal; a fence or a lost journal ends the attempt."""
    try:
        return question()
    except JournalUnavailableError as error:
        raise attempt.lost(error) from error
    except JournalUnreadableError as error:
        raise attempt.end_run(error) from error
    except Fenced as fenced:
        raise attempt.stop(fenced) from None


async def in_thread(work: Callable[[], T]) -> T:
    """Do in a thread, to its end, what would hold up the event loop."""
    return await questions.do(MOST_QUESTIONS, work)


def is_async(action: Callable[..., Any]) -> bool:
    """Whether calling *action* gives a coroutine (also a partial, a bound method, an async ``__call__``)."""
    while isinstance(action, partial):
        action = action.func
    return inspect.iscoroutinefunction(action) or inspect.iscoroutinefunction(type(action).__call__)


def needs_thread(step: Step) -> bool:
    """Whether its action would hold up the event loop, and is executed in a thread of ours."""
    return not (is_async(step.action) or _is_to_be_lent(step))


def _is_to_be_lent(step: Step) -> bool:
    """Whether its action belongs into the thread of whoever waits for the task: where Django's connections are."""
    return django.is_imported() and step.attempt.about.is_local and not _loop.is_here() and django.is_used()


def _act_and_judge(step: Step) -> Any:
    """Execute a step of a ``def`` task in its caller's thread, where nothing ends it, and say then that it was late."""
    began = time.monotonic()
    result = step.action(*step.args, **step.kwargs)
    if isinstance(result, Awaitable):
        return _wait_lending_this_thread(step, result)
    if time.monotonic() - began > step.options.longest_execution:
        raise timed_out(step)
    return result


def _wait_lending_this_thread(step: Step, result: Awaitable[T]) -> T:
    # It is cancelled where it runs, and this thread is not struck.
    step.deadline = inf
    return wait_for(result if step.options.timeout is None else _limited(step, result), lends=True)


def _in_a_thread_of_its_own(step: Step) -> Any:
    """Execute a step of a ``def`` task where nothing reaches the thread that runs that: it is given up in time."""
    if is_async(step.action):
        return wait_for(_limited(step, step.action(*step.args, **step.kwargs)), around=upkeep.on_loop(step))
    thread = timed.take(maxsize)
    assert thread is not None  # noqa: S101
    errand = step.send(thread)
    try:
        wait([errand.outcome], step.options.longest_execution)
    except BaseException as stop:  # a soft time limit
        errand.give_up(step, stop)
        raise
    errand.give_up(step, timed_out(step))
    result = errand.outcome.result()
    return wait_for(_limited(step, result), around=upkeep.on_loop(step)) if isinstance(result, Awaitable) else result


async def _limited(step: Step, work: Awaitable[T]) -> T:
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


async def _end_late(step: Step, task: asyncio.Task[Any]) -> None:
    """Cancel an execution whose time is over, and give it some time to clean up."""
    task.cancel()
    await asyncio.wait({task}, timeout=GRACE)
    if not task.done():
        logger.error(
            "task %s: step %r swallows its cancellation; the run goes on without it, and what it returns is dropped",
            step.attempt.about.task_id, step.name,
        )  # fmt: skip
        task.add_done_callback(lambda late: late.cancelled() or late.exception())


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def limit(step: Step) -> None:
    """Have the step's execution in this thread ended when it has run too long."""
    step.deadline = time.monotonic() + step.options.longest_execution
    watcher.expect(step.deadline)


async def _arrives(attempt: Attempt, fd: int) -> bool:
    """Wait for the reply; False if none comes: a connection may be lost without a word."""
    if is_alone():
        await asyncio.sleep(0)  # what else is due on the loop comes first
        if is_alone() and attempt.journal.look_out():
            return True
    return await _readable(fd)


async def _readable(fd: int) -> bool:
    """Wait until something arrives; False if nothing does."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[bool] = loop.create_future()
    loop.add_reader(fd, _end, arrived, True)
    silence = loop.call_later(LONGEST_READ, _end, arrived, False)
    try:
        return await arrived
    finally:
        silence.cancel()
        loop.remove_reader(fd)


def _end(arrived: asyncio.Future[bool], has_arrived: bool) -> None:
    if not arrived.done():
        arrived.set_result(has_arrived)


# -- the process's event loop ------------------------------------------------------------------------------------------


class _Loop:
    """One event loop per process, in a thread of its own, for as long as the process lives."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: int | None = None
        self._starting = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._loop = self._thread = None
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


# Where a loop stands still until this code has ended, so that nothing may wait for that.
_apart: ContextVar[bool] = ContextVar("celery_durable_apart", default=False)


def wait_apart(awaitable: Awaitable[T]) -> T:
    """Run an awaitable in a thread of its own, while the event loop that runs this code stands still."""

    def run() -> T:
        _apart.set(True)
        return asyncio.run(_awaited(awaitable))

    with ThreadPoolExecutor(1, "celery-durable-apart", initializer=begin_thread) as executor:
        return executor.submit(copy_context().run, run).result()


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


@door
def _result(outcome: Future[T]) -> T:
    return outcome.result()
