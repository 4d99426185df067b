"""``DurableTask``, the base class of tasks with a durable context."""

from __future__ import annotations

import inspect
import sys
from functools import cache, cached_property
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from celery import Celery, Task, signals
from celery.exceptions import Retry
from celery.utils import uuid

from celery_durable.app.settings import settings_of
from celery_durable.config import build
from celery_durable.config.retry import TaskRetryRules
from celery_durable.config.settings import FUNCTION_OPTIONS, TASK_OPTIONS, AttemptSettings, Settings
from celery_durable.delivery import backend
from celery_durable.delivery.seed import draw_for
from celery_durable.exceptions import ConfigurationError
from celery_durable.invocation.current import current, invocation_of, opened_by
from celery_durable.seams.celery import (
    RequestsOwnLimit,
    app_of_task_class,
    set_backend,
    symbol_by_name,
    task_class_of_django,
)

from .body import is_wrapped, wrap_run
from .run_lookup import has_journal

if TYPE_CHECKING:
    from celery_durable.steps.context import AsyncDurableContext, DurableContext

P = ParamSpec("P")
R = TypeVar("R")


class DurableTask(RequestsOwnLimit, Task[P, R]):
    """A Celery task with a durable context, ``self.ctx``. The context is opened when it is first used.

    Use it with ``@app.task(base=DurableTask, bind=True)``, for class-based tasks, with mixins, or for all tasks of an
    app: ``Celery(task_cls=DurableTask)``. It is based on the app's own task class: the one given as ``task_cls``, or
    Django's, with ``delay_on_commit``. A task that never touches ``self.ctx`` behaves exactly as in plain Celery.

    A step with retry options is retried by them. A step without them ends the attempt with its own exception, and
    Celery's ``autoretry_for`` and ``max_retries`` decide.

    Class attributes (also options of ``@app.task`` and ``@durable_task``; default: the app's ``durable_*`` setting):
    ``inline_retry_limit``, ``inactivity_timeout``, ``abort_timeout``, ``max_recoveries``, ``retention``,
    ``failure_retention``, ``max_entry_size``, ``journal_sync``, ``durable_serializer``, ``build``, ``stall_timeout``,
    ``redact``.
    """

    abstract = True

    auto_retry: ClassVar[bool] = False
    """True for ``@durable_task``: every exception except ``TerminalError`` retries the task."""
    is_async: ClassVar[bool] = False
    retry_rules: ClassVar[TaskRetryRules]

    task_retry_policy: Any = None
    inline_retry_limit: Any = None
    inactivity_timeout: Any = None
    abort_timeout: Any = None
    max_recoveries: Any = None
    retention: Any = None
    failure_retention: Any = None
    max_entry_size: Any = None
    journal_sync: Any = None
    durable_serializer: Any = None
    build: Any = None
    stall_timeout: Any = None
    redact: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if (own := _task_class_of_app(cls)) is not None and not issubclass(cls, own):
            # Celery makes this class from the base that it was given. Only here the app's own class can be added.
            cls.__bases__ = (*(base for base in cls.__bases__ if not issubclass(own, base)), own)
        super().__init_subclass__(**kwargs)
        cls._make_durable()

    @classmethod
    def _make_durable(cls) -> None:
        # The class resolves it, because run() may come from a base that is no DurableTask.
        run = inspect.getattr_static(cls, "run")
        if run is not inspect.getattr_static(Task, "run") and not is_wrapped(run):
            wrap_run(cls, run)

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Celery calls this when the class gets its *app*. From then on, workers of this app recover its runs.

        Raises:
            ConfigurationError: the task has a task retry policy, but Celery retries it.
        """
        app.steps["worker"].add("celery_durable.worker.bootstep:RecoveryStep")
        bound = super().bind(app)
        # If the class has no name, Celery gives it this one later.
        draw_for(cls.name or app.gen_task_name(cls.__name__, cls.__module__))
        # An annotation of the app ("@run") may have replaced run().
        cls._make_durable()
        if cls.task_retry_policy is not None and not cls.auto_retry:
            raise ConfigurationError(
                f"{cls.name}: task_retry_policy is an option of @durable_task; with base=DurableTask Celery retries "
                f"the task (autoretry_for, retry_backoff, max_retries), and RunOptions its steps"
            )
        return bound

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Any:
        """Celery calls this when a worker begins to take messages of this task."""
        # It is looked up by its name, because only a worker needs it, and the room of the worker is above this one.
        self.Request = symbol_by_name("celery_durable.worker.request:durable_request_class")(self.Request)
        return super().start_strategy(app, consumer, **kwargs)

    @property
    def ctx(self) -> DurableContext | AsyncDurableContext:
        """The durable context of the running task.

        Raises:
            NoContextError: the task is not running.
            ConfigurationError: no Redis is configured.
        """
        invocation = invocation_of(self)
        if invocation.context is not None:
            return invocation.context
        from .opening import open_context  # a process that only sends tasks does without it

        return open_context(invocation)

    @cached_property
    def durable_settings(self) -> Settings:
        """The settings of the app, with those that this task sets itself."""
        given = {option: self._given(option) for option in TASK_OPTIONS}
        return settings_of(self.app).of_task({option: value for option, value in given.items() if value is not None})

    def _given(self, option: str) -> Any:
        """The value that this task has for an option; None: that of the app."""
        value = getattr(self, option)
        if not inspect.isroutine(value):
            return value
        # A task of the user may have a method with the name of an option, such as ``build``.
        if option not in FUNCTION_OPTIONS:
            return None
        if not inspect.ismethod(value):
            return value
        # Celery makes attributes of the class of options, and so a method of a function.
        is_of_the_user = next(iter(inspect.signature(value.__func__).parameters), "") == "self"
        return None if is_of_the_user else value.__func__

    @cached_property
    def durable_attempt_settings(self) -> AttemptSettings:
        """The settings of each attempt. They are read once, because Celery takes microseconds to find a setting."""
        conf, settings = self.app.conf, self.durable_settings
        return AttemptSettings.of(
            settings,
            build=settings.build or build.of(type(self).run),
            abort_timeout=inf if self._has_time_limit else settings.abort_timeout,
            # The content types that the app reads in messages or in results.
            accept=frozenset([*conf.accept_content, *(conf.result_accept_content or ())]),
            progress_forgives=not self.auto_retry or self.retry_rules.resets_on_progress,
            db_reuse_max=int(conf.get("CELERY_DB_REUSE_MAX") or 0),
        )

    @cached_property
    def durable_result_serializer(self) -> str:
        """The name of Celery's result serializer. It is read once, too."""
        return str(self.app.conf.result_serializer)

    @property
    def _has_time_limit(self) -> bool:
        """Whether a time limit of Celery's replaces the abort timeout, because the task does not set one itself."""
        conf = self.app.conf
        limits = (self.time_limit, self.soft_time_limit, conf.task_time_limit, conf.task_soft_time_limit)
        return self.abort_timeout is None and any(limits)

    @property
    def request(self) -> Any:
        """Celery's request. On the thread of the event loop, it is that of the task to which this code belongs."""
        request = self.request_stack.top
        if request is None:
            invocation = current.get()
            while invocation is not None and invocation.task is not self:
                invocation = invocation.outer
            return super().request if invocation is None else invocation.request
        return request

    @property
    def backend(self) -> Any:
        """Celery's result backend; a :class:`SuppressingBackend` while the library has stored a state itself."""
        own = super().backend
        known = backend.suppressed_run.get() or backend.stored_retry.get()
        return own if known is None else backend.SuppressingBackend(own)

    @backend.setter
    def backend(self, value: Any) -> None:
        set_backend(self, value)

    if not TYPE_CHECKING:  # its types are Celery's

        def apply(
            self,
            args: Any = None,
            kwargs: Any = None,
            link: Any = None,
            link_error: Any = None,
            task_id: str | None = None,
            retries: int | None = None,
            throw: bool | None = None,
            **options: Any,
        ) -> Any:
            """Celery's ``apply``. With ``throw`` it retries a run, too, before it raises the exception of the run.

            Plain Celery raises ``Retry`` then.
            """
            throw = self.app.conf.task_eager_propagates if throw is None else throw
            task_id = task_id or uuid()
            try:
                return super().apply(args, kwargs, link, link_error, task_id, retries, throw, **options)
            except Retry as retry:
                from celery_durable.invocation import eager_journals

                again = retry.sig  # type: ignore[attr-defined]
                if again is None or not eager_journals.has(task_id):
                    raise
            return again.apply(retries=(retries or 0) + 1, throw=throw)

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Any = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Celery's ``retry``. Retries that the library has sent do not count towards ``max_retries``.

        With ``throw=False`` the body goes on. As in plain Celery, its value or its exception is the outcome until the
        retry has run. The retry replays the steps that the body has recorded by then.
        """
        arguments = {"args": args, "kwargs": kwargs, "exc": exc, "eta": eta, "countdown": countdown}
        arguments |= {"max_retries": max_retries, "throw": None if throw else False}
        from . import user_retry  # a process that only sends tasks does without it

        return user_retry.retry(self, opened_by(self.request), super().retry, arguments, options)


def _task_class_of_app(cls: type) -> type | None:
    """The app's own task class, which ``base=`` and ``task_cls=`` would replace; None if there is none."""
    app = app_of_task_class(cls)
    return app.Task if isinstance(app, Celery) and cls.__bases__ == (DurableTask,) else task_class_of_django(cls)


@signals.task_postrun.connect(weak=False, dispatch_uid="celery_durable")
def _finish(task: Any = None, retval: Any = None, state: str | None = None, **_: Any) -> None:
    invocation = opened_by(task.request)
    if invocation is not None:
        # If an exception of Celery itself is on its way while this signal is sent, the result may not be stored.
        _finishing()(invocation, state, retval, delivered=sys.exc_info()[1] is invocation.outer_exception)


@cache
def _finishing() -> Any:
    from celery_durable.ending.postrun import finish  # a process that only sends tasks does without it

    return finish


@signals.task_internal_error.connect(weak=False, dispatch_uid="celery_durable")
def _suppress_failure(sender: Any = None, task_id: str | None = None, **_: Any) -> None:
    if isinstance(sender, DurableTask) and task_id is not None:
        begun = backend.opened_run.get() == task_id or has_journal(sender, task_id)
        backend.suppressed_run.set(task_id if begun else None)
