"""Runs the body of a task under Celery: opens the run, calls the body, and gives Celery its value or its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from functools import cache
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

from celery_durable import django
from celery_durable.delivery import backend, call, message
from celery_durable.drivers import upkeep
from celery_durable.drivers.info import TaskInfo
from celery_durable.drivers.interruption import AsyncBody, Target, current_target, user_code_boundary
from celery_durable.drivers.loop import in_coroutine, wait_apart, wait_for
from celery_durable.drivers.pulse import running_step
from celery_durable.drivers.threads import actions
from celery_durable.drivers.watchdog import Watch, watchdog
from celery_durable.ending.completion import complete
from celery_durable.ending.orphan import OrphanedAttempt
from celery_durable.ending.result_text import encode_result
from celery_durable.ending.suspension import await_retry
from celery_durable.exceptions import RecoveryLimitExceeded
from celery_durable.interrupts import Interrupt
from celery_durable.invocation import eager_journals
from celery_durable.invocation.current import current, keep_opened
from celery_durable.invocation.invocation import Invocation, Mode
from celery_durable.invocation.session import RunSession
from celery_durable.journal.layout import Status
from celery_durable.journal.memory import MemoryJournal
from celery_durable.journal.port import NO_RESULT, Delivery
from celery_durable.steps.attempt import Attempt
from celery_durable.steps.context import AsyncDurableContext, DurableContext

from .run_lookup import has_journal

if TYPE_CHECKING:
    from celery_durable.app.store import Store

logger = logging.getLogger("celery_durable")

# Celery looks a logger up each time that it is asked for it.
_task_logger = cache(get_task_logger)


class Runner:
    """Runs one call of a task's body, which is an :class:`Invocation`."""

    def __init__(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.invocation = Invocation(task, args, kwargs, current.get())
        self.invocation.open = self.open
        self._context: DurableContext | AsyncDurableContext | None = None
        self._refused: Interrupt | None = None
        """Why the run was not opened; None if it was, or was not tried."""
        self._store: Store | None = None
        """Where the run is kept; None for a run in memory."""
        self._awaited = False
        """Whether the body was called by a coroutine, which awaits it and closes the run."""

    @property
    def interrupt(self) -> Interrupt | None:
        """The interrupt that ended the attempt, even if user code has swallowed it; None if there was none."""
        attempt = self.invocation.attempt
        return self._refused or (attempt.pulse.interrupt if attempt is not None else None)

    # -- the main path

    def run(self, body: Callable[..., Any]) -> Any:
        """Call the body. Returns its result to Celery, or raises the exception that tells Celery how to go on."""
        mode = self.invocation.mode
        token = current.set(self.invocation)
        if mode is not Mode.DIRECT:
            backend.forget_previous_run()
        # An eager task was sent, though it runs here at once. The step that has sent it is not a step of this task.
        sender = running_step.set(None) if mode is Mode.EAGER else None
        try:
            return self._run(body)
        finally:
            current.reset(token)
            if sender is not None:
                running_step.reset(sender)
            if not self._awaited:
                self._close_if_direct()

    def _run(self, body: Callable[..., Any]) -> Any:
        invocation = self.invocation
        try:
            value = self._call(body)
            return value if invocation.session is None else self._succeed(invocation.session, value)
        except BaseException as error:
            if invocation.session is None:
                raise  # the context was not used: the task ends as in plain Celery
            ended = error
        # This is outside of the except block, so that a new exception does not have this one as its context.
        try:
            return complete(invocation, ended, self.interrupt)
        finally:
            del ended  # it refers to this frame, and the frame to it: the attempt would wait for the garbage collector

    def _close_if_direct(self) -> None:
        if self.invocation.direct and self.invocation.session is not None:
            self.invocation.session.close_attempt()

    def open(self) -> DurableContext | AsyncDurableContext:
        """The durable context of this call. The first use opens the run.

        Raises:
            Interrupt: the run cannot be opened, now or ever.
        """
        if self._refused is not None:
            raise self._refused
        if self._context is None:
            try:
                attempt = self._begin()
            except Interrupt as refused:
                self._refused = refused
                raise
            make = AsyncDurableContext if self.invocation.task.is_async else DurableContext
            self._context = make(attempt)
        return self._context

    @user_code_boundary
    def _call(self, body: Callable[..., Any]) -> Any:
        invocation = self.invocation
        task, mode = invocation.task, invocation.mode
        if task.auto_retry or task.is_async or self._has_begun():
            # An async task opens its run here, because on the event loop the opening would block other tasks.
            self.open()
        value = body(task, *invocation.args, **invocation.kwargs)
        if type(value) is not CoroutineType:
            return value
        if in_coroutine():
            if mode is Mode.DIRECT:
                # A coroutine has called the task as a function, and awaits it.
                self._awaited = True
                return self._awaitable(value)
            return wait_apart(self._on_loop(value))
        return wait_for(self._on_loop(value), self._interrupted, lends=mode is not Mode.WORKER)

    def _has_begun(self) -> bool:
        """Whether an earlier attempt has opened the run: then this one must open it, too, before it can end."""
        request, mode = self.invocation.request, self.invocation.mode
        if mode is not Mode.WORKER:
            return mode is Mode.EAGER and eager_journals.has(request.id)
        if message.header_of(request):
            return True
        redelivered = bool((request.delivery_info or {}).get("redelivered"))
        return redelivered and has_journal(self.invocation.task, request.id)

    async def _awaitable(self, body: Coroutine[Any, Any, Any]) -> Any:
        invocation = self.invocation
        token = current.set(invocation)
        try:
            try:
                return await self._on_loop(body)
            except BaseException as error:
                if invocation.session is None:
                    raise
                ended = error
            return complete(invocation, ended, self.interrupt)
        finally:
            current.reset(token)
            self._close_if_direct()

    async def _on_loop(self, body: Coroutine[Any, Any, Any]) -> Any:
        attempt = self.invocation.attempt
        if attempt is not None:
            attempt.begin_here()
            self._watch(attempt, AsyncBody())
        try:
            with upkeep.OfBody(attempt.pulse if attempt is not None else None):
                return await body
        except BaseException:
            if attempt is not None:
                actions.withdraw(attempt.pulse)
            raise
        finally:
            if attempt is not None:
                await attempt.siblings.wait_all()

    def _interrupted(self, by: BaseException) -> None:
        if self.invocation.attempt is not None:
            self.invocation.attempt.pulse.interrupted_by = by

    # -- the beginning

    def _begin(self) -> Attempt:
        invocation = self.invocation
        task, mode, request = invocation.task, invocation.mode, invocation.request
        session, delivery = self._in_redis() if mode is Mode.WORKER else self._in_memory()
        invocation.session, invocation.delivery = session, delivery
        info = TaskInfo(
            delivery.task_id, task.name, request, _task_logger(task.name),
            direct=mode is Mode.DIRECT, eager=mode is Mode.EAGER, control_flow=(Retry, Ignore, Reject),
            limits=(SoftTimeLimitExceeded,),
            # In a worker, Celery calls the body outside of any atomic block. So every block was entered by the task.
            atomic_blocks={} if mode is Mode.WORKER else django.atomic_blocks(),
        )  # fmt: skip
        keep_opened(invocation)
        backend.opened_run.set(delivery.task_id)
        attempt = session.open(delivery, info, task.durable_attempt_settings)
        message.apply_newest(request, attempt.state.resume)
        if self._store is not None:
            message.set_seed(request, attempt.state.seed)
        if attempt.state.reopened:
            logger.info("task %s: the failed run is reopened, with fresh budgets", delivery.task_id)
        attempt.check_whole()
        _check_recoveries(attempt, session.settings.max_recoveries)
        invocation.arguments.begin(attempt)
        if not task.is_async:
            self._watch(attempt, current_target())
        return attempt

    def _watch(self, attempt: Attempt, target: Target | None) -> None:
        invocation = self.invocation
        inactivity, abort = attempt.settings.inactivity_timeout, attempt.settings.abort_timeout
        if invocation.mode is not Mode.WORKER:
            inactivity = abort = inf
        elif any(invocation.request.timelimit or ()) and invocation.task.abort_timeout is None:
            abort = inf
        assert invocation.session is not None  # noqa: S101
        orphan = OrphanedAttempt(invocation, invocation.session)
        watchdog.watch(Watch(attempt.pulse, orphan, target, inactivity, abort))

    def _in_redis(self) -> tuple[RunSession, Delivery]:
        from celery_durable.app.store import store_of  # a process that only sends tasks does without it

        invocation = self.invocation
        task, request, settings = invocation.task, invocation.request, invocation.task.durable_settings
        self._store = store = store_of(task.app)
        journal, lease = store.journal_for(request.id, settings)
        # If the body opens the run late, it may have changed its arguments in place before.
        sent = (request.properties or {}).get(message.ARGUMENTS) or (invocation.args, invocation.kwargs)
        return RunSession(journal, settings, lease), call.delivery_of(task, request, *sent)

    def _in_memory(self) -> tuple[RunSession, Delivery]:
        task, direct = self.invocation.task, self.invocation.direct
        task_id = str(uuid4()) if direct else self.invocation.request.id
        journal = MemoryJournal() if direct else eager_journals.journal_of(task_id)
        delivery = Delivery(task_id, task.name, "", "{}", build=task.durable_attempt_settings.build)
        return RunSession(journal, task.durable_settings), delivery

    # -- a good end

    def _succeed(self, session: RunSession, value: Any) -> Any:
        invocation, attempt = self.invocation, session.attempt
        task, retry = invocation.task, invocation.retry
        if self.interrupt is not None:
            # User code has swallowed the interrupt in a bare ``except``. The value that it returned does not count.
            raise self.interrupt
        if retry.raised is not None:
            raise retry.raised
        if invocation.direct or attempt is None:
            return value
        attempt.check_all_awaited()
        if retry.due is None:
            attempt.replay.check_nothing_left()
        if task.auto_retry and hasattr(value, "model_dump"):
            value = value.model_dump(mode="json")
        if retry.due is not None:
            await_retry(invocation, retry.due)
            return value
        self._finish(session, attempt, value)
        eager_journals.forget(invocation)
        return value

    def _finish(self, session: RunSession, attempt: Attempt, value: Any) -> None:
        """Write the outcome of a success, and its result together with it if possible."""
        invocation = self.invocation
        request = invocation.request
        result = None
        if self._store is not None and session.outcome.may_be_written_with_outcome:
            result = self._store.result_of(invocation.task, request, value)
        if (
            session.finish(Status.SUCCEEDED, encode_result(invocation, attempt, value), result)
            and result is not NO_RESULT
        ):
            backend.suppressed_run.set(request.id)


def _check_recoveries(attempt: Attempt, limit: int) -> None:
    if attempt.state.recoveries > limit:
        raise attempt.pulse.end_run(
            RecoveryLimitExceeded(
                f"task {attempt.info.task_id}: {attempt.state.recoveries} attempts in a row died without recording "
                f"a step (max_recoveries={limit}); the journal is kept: look at why the worker dies, then "
                f"retry the task"
            )
        )
