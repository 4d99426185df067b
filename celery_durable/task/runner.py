"""Runs the body of a task under Celery: calls it, and gives Celery its value or its end."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any

from celery_durable.delivery import backend, message
from celery_durable.drivers import upkeep
from celery_durable.drivers.interruption import AsyncBody
from celery_durable.drivers.loop import in_coroutine, wait_apart, wait_for
from celery_durable.drivers.pulse import running_step
from celery_durable.drivers.threads import actions
from celery_durable.ending.completion import complete, complete_with_value
from celery_durable.invocation import (
    current_task,  # noqa: F401  prepares the threads in which bodies and actions run
    eager_journals,
    span,
)
from celery_durable.invocation.current import current
from celery_durable.invocation.invocation import Invocation, Mode
from celery_durable.user_code import user_code_boundary

from .opening import open_context, watch
from .run_lookup import has_journal


class Runner:
    """Runs one call of a task's body, which is an :class:`Invocation`."""

    def __init__(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.invocation = Invocation(task, args, kwargs, current.get())
        self._awaited = False
        """Whether the body was called by a coroutine, which awaits it and closes the run."""

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
            if self.invocation.span is not None:
                span.end(self.invocation.span, self.invocation)
            current.reset(token)
            if sender is not None:
                running_step.reset(sender)
            if mode is Mode.DIRECT and not self._awaited:
                self._close()

    def _run(self, body: Callable[..., Any]) -> Any:
        invocation = self.invocation
        try:
            value = self._call(body)
            return value if invocation.session is None else complete_with_value(invocation, value)
        except BaseException as error:
            if invocation.session is None:
                raise  # the context was not used: the task ends as in plain Celery
            ended = error
        # This is outside of the except block, so that a new exception does not have this one as its context.
        try:
            return complete(invocation, ended)
        finally:
            del ended  # it refers to this frame, and the frame to it: the attempt would wait for the garbage collector

    def _close(self) -> None:
        if self.invocation.session is not None:
            self.invocation.session.close_attempt()

    @user_code_boundary
    def _call(self, body: Callable[..., Any]) -> Any:
        invocation = self.invocation
        task, mode = invocation.task, invocation.mode
        if task.auto_retry or task.is_async or self._has_begun():
            # An async task opens its run here, because on the event loop the opening would block other tasks.
            open_context(invocation)
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
        return message.is_redelivered(request) and has_journal(self.invocation.task, request.id)

    async def _awaitable(self, body: Coroutine[Any, Any, Any]) -> Any:
        invocation = self.invocation
        token = current.set(invocation)
        try:
            try:
                value = await self._on_loop(body)
                return value if invocation.session is None else complete_with_value(invocation, value)
            except BaseException as error:
                if invocation.session is None:
                    raise
                ended = error
            return complete(invocation, ended)
        finally:
            current.reset(token)
            self._close()

    async def _on_loop(self, body: Coroutine[Any, Any, Any]) -> Any:
        attempt = self.invocation.attempt
        if attempt is not None:
            attempt.begin_here()
            watch(self.invocation, attempt, AsyncBody())
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
