"""Threads of this process for work that would block others: actions of steps, and questions to the journal.

They are daemons: a thread that hangs does not keep a process from ending. If its work is given up, it is replaced.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from .pulse import Pulse, Running

T = TypeVar("T")

logger = logging.getLogger("celery_durable")

in_each_thread: list[Callable[[], object]] = []
"""Each thread in which async tasks run calls these first. They set there what other packages keep by thread."""


def begin_thread() -> None:
    """Prepare the thread that calls this."""
    for prepare in in_each_thread:
        prepare()


class WorkItem(Generic[T]):
    """One piece of work that a thread does."""

    def __init__(self, thread: Thread, work: Callable[[], T], late: Callable[[T], object] | None) -> None:
        self.work = work
        self.outcome: Future[T] = Future()
        self._thread = thread
        self._late = late
        self._has_ended = False
        self._given_up: threading.Event | None = None
        """It is set when it is decided how the step goes on."""

    @property
    def is_given_up(self) -> bool:
        return self._given_up is not None

    def give_up(self, step: Running, error: BaseException) -> None:
        """Let the work have failed with this error, although nothing ends it. Another thread replaces its thread.

        The caller calls :meth:`decided` when it is decided how the step goes on.
        """
        with self._thread.pool.lock:
            if self._has_ended or self._given_up is not None:
                return
            self._given_up = threading.Event()
            self._thread.pool.replace(self._thread)
        logger.warning(
            "task %s: step %r was given up, and its action goes on in its thread, which was replaced; threads of this "
            "process that hang: %d",
            step.pulse.info.task_id, step.name, hanging(),
        )  # fmt: skip
        self.outcome.set_exception(error)

    def decided(self) -> None:
        """It is decided how the step goes on. What the work returns from now on is late."""
        if self._given_up is not None:
            self._given_up.set()

    def run(self) -> bool:
        """Do the work. Returns whether the thread is free for another item."""
        value, error = done(self.work)
        thread = self._thread
        with thread.pool.lock:
            self._has_ended = True
            given_up = self._given_up
            if given_up is None:
                thread.pool.free(thread)
            else:
                thread.pool.returned(thread)
        if given_up is not None:
            given_up.wait()
            if error is None and self._late is not None:
                self._late(value)  # type: ignore[arg-type]
        elif error is None:
            self.outcome.set_result(value)  # type: ignore[arg-type]
        else:
            self.outcome.set_exception(error)
        return given_up is None


class Thread:
    """A thread that is taken for one item at a time."""

    def __init__(self, pool: Threads, name: str) -> None:
        self.pool = pool
        self._item: WorkItem[Any] | None = None
        self._name = name
        self._may_go_on = threading.Lock()
        self._may_go_on.acquire()

    def start(self) -> None:
        threading.Thread(target=self._live, name=self._name, daemon=True).start()

    def begin(self, work: Callable[[], T], late: Callable[[T], object] | None = None) -> WorkItem[T]:
        """Do the work. The thread is free again as soon as that is done.

        If the work returns a value after it was given up, this thread calls *late* with it.
        """
        self._item = item = WorkItem(self, work, late)
        self._may_go_on.release()
        return item

    def leave(self) -> None:
        """Give the thread back without any work."""
        with self.pool.lock:
            self.pool.free(self)

    def _live(self) -> None:
        begin_thread()
        while self._do_next():
            pass

    def _do_next(self) -> bool:
        self._may_go_on.acquire()
        item, self._item = self._item, None
        assert item is not None  # noqa: S101
        return item.run()


def done(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """Do the work. Returns its value, or the error that it has raised."""
    try:
        return work(), None
    except StopIteration as stop:  # a future cannot hold it
        error = RuntimeError("the action raised StopIteration")
        error.__cause__ = stop
        return None, error
    except BaseException as error:
        return None, error


def hanging() -> int:
    """How many threads of this process still do work that was given up."""
    return actions.hanging + timed.hanging


class Turn:
    """The turn of one that waits in the queue for a thread."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.thread: Thread | None = None
        self._loop = asyncio.get_running_loop()
        self._called: asyncio.Future[None] = self._loop.create_future()
        self.is_over = False

    def call(self, thread: Thread | None) -> None:
        """End the wait, with a thread or without one. Any thread may call this."""
        self.thread, self.is_over = thread, True
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self._called.done():
            self._called.set_result(None)

    async def wait(self) -> None:
        """Return when a thread is there, or when the turn was withdrawn."""
        await self._called


class Threads:
    """Threads of one kind. Each caller says how many may be taken at a time; threads that hang do not count."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.start_over()

    def start_over(self) -> None:
        """Begin without threads. A forked child does so, too: it has none of its parent's."""
        self.lock = threading.Lock()
        """The caller of :meth:`free`, :meth:`replace` or :meth:`returned` holds it."""
        self._idle: list[Thread] = []
        self._queue: deque[Turn] = deque()
        self._waiting: dict[Pulse, dict[Turn, Running]] = {}
        """Steps in the queue, and steps that have a thread and do not know it yet."""
        self._taken = 0
        self._made = 0
        self._hanging: set[Thread] = set()

    @property
    def hanging(self) -> int:
        """How many threads still do work that was given up."""
        return len(self._hanging)

    def take(self, most: int) -> Thread | None:
        """A thread; None if *most* threads are taken, or if others wait for one."""
        with self.lock:
            self._forget_withdrawn()
            if self._queue or self._taken >= most:
                return None
            try:
                return self._next()
            except RuntimeError:
                if self._taken:
                    return None  # a taken thread will be free
                raise

    async def queue(self, most: int, step: Running | None = None) -> Thread | None:
        """Wait for a thread, after all that wait already. None if the turn was withdrawn."""
        with self.lock:
            turn = Turn(most)
            self._queue.append(turn)
            if step is not None:
                self._waiting.setdefault(step.pulse, {})[turn] = step
            self._call_next()
        try:
            await turn.wait()
        except asyncio.CancelledError:
            with self.lock:
                turn.is_over = True
                if turn.thread is not None:
                    self.free(turn.thread)
            raise
        finally:
            if step is not None:
                self._waits_no_more(turn, step.pulse)
        return turn.thread

    def _waits_no_more(self, turn: Turn, pulse: Pulse) -> None:
        # The wait was no inactivity, and the watchdog must not count it as one.
        pulse.progressed_at = time.monotonic()
        with self.lock:
            others = self._waiting.get(pulse, {})
            others.pop(turn, None)
            if not others:
                self._waiting.pop(pulse, None)

    async def do(self, most: int, work: Callable[[], T]) -> T:
        """Do the work in a thread, and wait for its end even if this task is cancelled meanwhile."""
        thread, cancelled = self.take(most), False
        while thread is None:
            try:
                thread = await self.queue(most)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            _cancel_again()
        return await to_its_end(thread.begin(work).outcome)

    def withdraw(self, pulse: Pulse) -> None:
        """Let no step of an attempt wait for a thread any more."""
        with self.lock:
            for turn in self._waiting.pop(pulse, ()):
                if not turn.is_over:
                    turn.call(None)

    def waiting(self, pulse: Pulse) -> list[Running]:
        """The steps of an attempt that wait for a thread."""
        with self.lock:
            return list(self._waiting.get(pulse, {}).values())

    # -- with the lock

    def free(self, thread: Thread) -> None:
        """The thread is free for other work."""
        self._taken -= 1
        self._idle.append(thread)
        self._call_next()

    def replace(self, thread: Thread) -> None:
        """The thread hangs: another one may be made."""
        self._taken -= 1
        self._hanging.add(thread)
        self._call_next()

    def returned(self, thread: Thread) -> None:
        """A thread that hung has ended its work, and ends."""
        self._hanging.discard(thread)

    def _call_next(self) -> None:
        while True:
            self._forget_withdrawn()
            if not self._queue or self._taken >= self._queue[0].most:
                return
            try:
                thread = self._next()
            except RuntimeError as error:  # the system gives no more
                logger.warning("steps wait for a thread: %s", error)
                return
            try:
                self._queue.popleft().call(thread)
            except RuntimeError:  # its event loop is closed
                self._taken -= 1
                self._idle.append(thread)

    def _forget_withdrawn(self) -> None:
        while self._queue and self._queue[0].is_over:
            self._queue.popleft()

    def _next(self) -> Thread:
        if self._idle:
            thread = self._idle.pop()
        else:
            thread = Thread(self, f"{self._name}-{self._made + 1}")
            thread.start()
            self._made += 1
        self._taken += 1
        return thread


async def to_its_end(outcome: Future[T]) -> T:
    """Await work that cannot be stopped. A cancellation comes when it has ended, so that its result can be recorded."""
    future = asyncio.wrap_future(outcome)
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        _cancel_again()
    return future.result()


def _cancel_again() -> None:
    """Let the next ``await`` of this task raise the cancellation that was put off."""
    task: Any = asyncio.current_task()
    if hasattr(task, "uncancel"):  # Python 3.11 counts them
        task.uncancel()
    task.cancel()


actions = Threads("celery-durable-step")
"""The threads in which sync steps of async tasks run."""
timed = Threads("celery-durable-timed-step")
"""The threads in which steps with a timeout run if nothing can interrupt the thread of their task."""
questions = Threads("celery-durable-journal")
"""The threads that wait for the journal. They are apart: actions that hang do not hold them up."""
MOST_QUESTIONS = 64
for _threads in (actions, timed, questions):
    os.register_at_fork(after_in_child=_threads.start_over)
