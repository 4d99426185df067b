"""What user code holds: the context of a ``def`` task, that of an ``async def`` task, and the step that is running."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import partial
from typing import Any, NoReturn, ParamSpec, TypeVar, overload
from uuid import UUID

from celery_durable.config.retry import RunOptions
from celery_durable.drivers.driver import LARGE, off_loop, run_to_end
from celery_durable.drivers.in_thread import InThread
from celery_durable.drivers.on_loop import OnLoop
from celery_durable.drivers.pulse import running_step
from celery_durable.drivers.siblings import gives_operations
from celery_durable.durations import Duration
from celery_durable.exceptions import ContextClosedError, InvalidStepError
from celery_durable.interrupts import Interrupt

from .attempt import Attempt
from .call_check import MISSING
from .determinism import check_usable
from .draws import derived_uuid
from .execution import perform
from .sleep import make_wait, sleep
from .step import Step, make_step

P = ParamSpec("P")
T = TypeVar("T")


class _Context:
    """What both contexts have in common. Nothing here waits."""

    __slots__ = ("_attempt",)

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    @property
    def task_id(self) -> str:
        """Celery's task id, the identity of the run."""
        return self._attempt.info.task_id

    @property
    def attempt(self) -> int:
        """Which execution of the task's body this is; the first is 1."""
        return self._attempt.state.number

    @property
    def request(self) -> Any:
        """Celery's request of the task."""
        return self._attempt.info.request

    @property
    def is_replaying(self) -> bool:
        """Whether steps recorded by earlier attempts are still ahead."""
        return self._attempt.replay.ahead > 0

    @property
    def logger(self) -> logging.Logger:
        """A logger for the task. It drops what is logged while steps are replayed: an earlier attempt has logged it."""
        return self._attempt.logger

    def uuid(self) -> UUID:
        """A version-4 UUID that is the same on every attempt; mirrors ``ctx.uuid()``. Not for cryptography.

        It does not depend on how often :meth:`random` was used, and is shown in the journal.
        """
        return self._attempt.draws.uuid()

    def random(self, name: str | None = None) -> random.Random:
        """A generator whose values are the same on every attempt; mirrors ``ctx.random()``. Not for cryptography.

        Without a name it is one ``random.Random`` throughout an attempt; each *name* has an independent one. It can
        seed other libraries: ``numpy.random.default_rng(ctx.random().getrandbits(128))``.
        """
        return self._attempt.draws.random(name)

    def patched(self, patch: str) -> bool:
        """Whether this run takes a change of the code, so that runs under way keep the path that they began with.

        It is True in a run that reaches this call for the first time with this code. It is False in a run whose journal
        has gone past this call without it. The answer is the same on every attempt: it is recorded with the operation
        that comes next. Each call decides for itself: each turn of a loop, and each branch. It is not awaited, in async
        tasks either.

        A change is brought in, and its traces are removed, in three deploys:

        1. ``if ctx.patched("check address"): ctx.run("check", ...)``, with the former code in an ``else`` if there was
           any. Runs that are past it go on without the step.
        2. When no run is left that began before: call ``ctx.patched("check address")`` on a line of its own, do not use
           its answer, and always run the new code.
        3. When all workers have that code: remove the call. What is recorded of it is then ignored.

        Mirrors ``patched`` and ``deprecate_patch`` of Temporal's Python SDK.

        Args:
            patch: names the change in the journal.
        """
        return self._attempt.replay.patched(patch)

    def set_attributes(self, /, **attributes: str) -> None:
        """Give the run attributes, by which people find it: ``ctx.set_attributes(order="o1", customer="ann")``.

        An attribute of the same name is replaced, all others stay. They are written together with what the code records
        next, so this waits for nothing, and it is not awaited, in async tasks either. ``celery durable list --attribute
        order=o1`` and ``Runs.list(attributes={"order": "o1"})`` find the run.

        Args:
            **attributes: texts. A name and a value have up to 256 characters; a run has up to 16 attributes.

        Raises:
            InvalidStepError: they are no such texts, or too many. It ends the run; no ``except Exception`` sees it.
        """
        self._attempt.attributes.set(attributes)

    def __repr__(self) -> str:
        info = self._attempt.info
        return f"<{type(self).__name__} of {info.task}[{info.task_id}], attempt {self.attempt}>"


class DurableContext(_Context):
    """The durable context of a ``def`` task."""

    __slots__ = ("_driver",)

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self._driver = InThread(attempt.pulse)

    @overload
    def run(
        self,
        name: str,
        action: Callable[..., Coroutine[Any, Any, T]],
        options: RunOptions,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> T: ...
    @overload
    def run(self, name: str, action: Callable[..., T], options: RunOptions, /, *args: Any, **kwargs: Any) -> T: ...
    @overload
    def run(
        self, name: str, action: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    def run(self, name: str, action: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    def run(self, name: str, action: Callable[..., Any] = MISSING, /, *args: Any, **kwargs: Any) -> Any:
        """Execute *action* once and journal what it returns; later attempts get that value back.

        ``ctx.run(name, action, [RunOptions(...)], *args, **kwargs)``; mirrors Restate's ``ctx.run_typed``.

        Args:
            name: shown in logs, traces and the journal; checked on replay.
            action: a function, sync or async, called in this thread (async: on the process's loop).
            *args: for the action, after :class:`RunOptions` if there are any. They are not journaled.
            **kwargs: for the action.

        Returns:
            The result as the journal keeps it: equal, and of the same type, on the first execution and on every replay.

        Raises:
            TerminalError: the action raised it; or its retries are spent (:class:`RetriesExhausted`).

        Every other failure ends the attempt, and the task is retried: by the step's options if it has retry options,
        else by the task's policy. An ``except Exception`` around the call does not see it.
        """
        step = make_step(self._attempt, name, action, args, kwargs)
        return step.replay() if step.recorded else run_to_end(perform(step, self._driver))

    run_typed = run

    def sleep(self, duration: Duration, name: str | None = None) -> None:
        """Wait without a worker: the task goes on in a later attempt; mirrors ``ctx.sleep``.

        The journal says when the wait is over, by Redis' clock. If something dies meanwhile, the task goes on as soon
        as that is back. The message is acknowledged, and the state is SUSPENDED. Waits up to
        ``inline_retry_limit`` happen inside the worker.

        Args:
            duration: ``timedelta`` or seconds, from 0 to 10 years.
            name: shown in the journal, and checked on replay. Default ``"sleep"``.

        Raises:
            TaskCancelled: the run was cancelled before the wait was over.
        """
        run_to_end(sleep(make_wait(self._attempt, duration, name), self._driver))

    def time(self) -> int:
        """Milliseconds since the epoch, the same on every attempt; a new reading each time. Mirrors ``ctx.time()``."""
        return self._attempt.draws.time()

    def now(self) -> datetime:
        """The time as an aware ``datetime`` (UTC), the same on every attempt; each call is a new reading."""
        return self._attempt.draws.datetime()


class AsyncDurableContext(_Context):
    """The context of an ``async def`` task: :meth:`run`, :meth:`sleep`, :meth:`time` and :meth:`now` are awaited."""

    __slots__ = ("_driver",)

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self._driver = OnLoop(attempt.pulse, attempt.outbox, attempt.siblings)

    @overload
    def run(
        self,
        name: str,
        action: Callable[..., Coroutine[Any, Any, T]],
        options: RunOptions,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def run(
        self, name: str, action: Callable[..., T], options: RunOptions, /, *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def run(
        self, name: str, action: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def run(
        self, name: str, action: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...

    def run(self, name: str, action: Callable[..., Any] = MISSING, /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Like :meth:`DurableContext.run`, but awaited. A sync action runs in a thread.

        The step gets its position in program order when ``run`` is called, and not when it is awaited.
        """
        try:
            step = make_step(self._attempt, name, action, args, kwargs)
        except Interrupt as interrupt:
            return self._ended(interrupt)
        if step.recorded:
            return _replayed(step)
        return self._attempt.siblings.in_flight.operation(partial(self._driver.perform, perform, step), step.name)

    run_typed = run

    def sleep(self, duration: Duration, name: str | None = None) -> Coroutine[Any, Any, None]:
        """Like :meth:`DurableContext.sleep`, but awaited.

        If several waits are side by side (``asyncio.gather``), the first one that is over wakes the task.
        """
        try:
            wait = make_wait(self._attempt, duration, name)
        except Interrupt as interrupt:
            return self._ended(interrupt)
        return self._attempt.siblings.in_flight.operation(partial(sleep, wait, self._driver), wait.name)

    def _ended(self, interrupt: Interrupt) -> Coroutine[Any, Any, NoReturn]:
        """The attempt ends. Where the call is awaited, raise that when the other coroutines wait, too."""
        if running_step.get() is not None:
            raise interrupt
        return self._attempt.siblings.in_flight.operation(partial(self._driver.end_by, interrupt), "the end")

    def branch(self, key: str) -> AbstractContextManager[None]:
        """Name the branch that this coroutine is, for coroutines that are not begun in a fixed order.

        In ``with ctx.branch(f"order {number}"):`` a replay knows the operations of this coroutine again by the name,
        and not by the number of the coroutine. Use it with ``asyncio.as_completed``, or in coroutines that take their
        work from a queue. In the body, and in a coroutine that has used its context before, it begins a branch inside.

        Args:
            key: any text. Two branches of one parent have different keys.

        Raises:
            InvalidStepError: the key is not valid, or is used twice. It ends the run; no ``except Exception`` sees it.
        """
        return _in_branch(self._attempt, key)

    async def time(self) -> int:
        """Milliseconds since the epoch, the same on every attempt; a new reading each time. Mirrors ``ctx.time()``."""
        return self._attempt.draws.time()

    async def now(self) -> datetime:
        """The time as an aware ``datetime`` (UTC), the same on every attempt; each call is a new reading."""
        return self._attempt.draws.datetime()


@contextmanager
def _in_branch(attempt: Attempt, key: str) -> Iterator[None]:
    check_usable(attempt.pulse, draws=True)
    try:
        leave = attempt.order.name(key)
    except InvalidStepError as error:
        raise attempt.pulse.invalid(error) from None
    try:
        yield
    finally:
        leave()


@gives_operations
async def _replayed(step: Step) -> Any:
    return await off_loop(step.replay) if step.entry is not None and len(step.entry.value) > LARGE else step.replay()


class StepInfo:
    """What :func:`current_step` gives: the step that is running, seen from inside.

    Attributes:
        name: as passed to ``ctx.run``.
        attempt: which execution of this step this is; the first is 1.
        task_id: id of the task.
        request: Celery's request of the task.
        logger: a logger for the task.
        idempotency_key: a UUID, the same for every execution of this step.
        is_cancelled: whether the run is to be cancelled.

    And :meth:`heartbeat`, for long steps.
    """

    __slots__ = ("_step",)

    def __init__(self, step: Step) -> None:
        self._step = step

    @property
    def name(self) -> str:
        return self._step.name

    @property
    def attempt(self) -> int:
        return self._step.executions

    @property
    def task_id(self) -> str:
        return self._step.pulse.info.task_id

    @property
    def request(self) -> Any:
        return self._step.pulse.info.request

    @property
    def logger(self) -> logging.Logger:
        return self._step.attempt.logger

    @property
    def is_cancelled(self) -> bool:
        """Whether the run is to be cancelled: a long step may end early. Known within about a second."""
        return self._step.pulse.hears_of_cancellation()

    @property
    def idempotency_key(self) -> UUID:
        """The same for every execution of this step of this run, also after Retry, and for no other."""
        step = self._step
        return derived_uuid(step.attempt.state.seed, self.task_id, "step", step.position)

    def heartbeat(self) -> None:
        """Say that the step makes progress. This is for the attempt's ``inactivity_timeout`` only.

        It costs nothing, and nothing is sent. ``RunOptions(timeout=...)`` goes on counting.
        """
        self._step.pulse.progressed_at = time.monotonic()


def current_step() -> StepInfo:
    """The step that is running, as a :class:`StepInfo`; mirrors Restate's ``RunContext``.

    Raises:
        ContextClosedError: called outside of a step.
    """
    step = running_step.get()
    if step is None:
        raise ContextClosedError("current_step() is known inside a step only: call it in the action of ctx.run")
    return StepInfo(step)
