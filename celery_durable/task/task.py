"""``DurableTask``: the task base class, and how it wraps the body of each task."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from celery import Celery, Task, signals
from celery.exceptions import Reject, Retry, SoftTimeLimitExceeded
from celery.utils import uuid

from celery_durable.config import build
from celery_durable.config.retry import TaskRetryRules
from celery_durable.config.settings import TASK_OPTIONS, Settings
from celery_durable.delivery import report
from celery_durable.delivery.call import changed_by_retry
from celery_durable.delivery.message import (
    as_it_came,
    check_encodable,
    header_of,
    headers_with,
    lasting,
    left_to_journal,
    library_retries,
    our_headers,
    seconds_until,
    sendable_delay,
    step_retries,
    unsent,
)
from celery_durable.delivery.seed import draw_for
from celery_durable.drivers.strike import door
from celery_durable.exceptions import ConfigurationError
from celery_durable.seams.celery import RequestsOwnLimit, app_of_task_class, set_backend, task_class_of_django
from celery_durable.steps.attempt import Terms

from . import retry_task  # noqa: F401  registers celery_durable.retry with every app
from .arguments import accepting
from .current import current, execution_of, is_executing, opened_by
from .ending import Ending
from .execution import Execution, has_journal, is_eager_run

if TYPE_CHECKING:
    from celery_durable.steps.context import AsyncDurableContext, DurableContext

P = ParamSpec("P")
R = TypeVar("R")


class DurableTask(RequestsOwnLimit, Task[P, R]):
    """A Celery task with a durable context, ``self.ctx``, that is opened when it is first used.

    ``@app.task(base=DurableTask, bind=True)``, class-based tasks, mixins, and ``Celery(task_cls=DurableTask)``. It sits
    on the app's own task class: one that was given as ``task_cls``, or Django's, with ``delay_on_commit``. A task that
    never touches ``self.ctx`` behaves exactly as in plain Celery. A step with retry options is retried by them; a
    step without ends the attempt with its own exception, and Celery's ``autoretry_for`` and ``max_retries`` decide.

    Class attributes (also options of ``@app.task`` and ``@durable_task``; default: the app's ``durable_*`` setting):
    ``inline_retry_limit``, ``inactivity_timeout``, ``abort_timeout``, ``max_recoveries``, ``retention``,
    ``failure_retention``, ``max_entry_size``, ``journal_sync``, ``durable_serializer``, ``build``, ``stall_timeout``.
    """

    abstract = True

    opinionated: ClassVar[bool] = False
    """Of ``@durable_task``: every exception but ``TerminalError`` retries the task."""
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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if (own := _apps_own_class(cls)) is not None and not issubclass(cls, own):
            # Celery makes the class from the base that it was given, and nothing of ours comes between.
            cls.__bases__ = (*(base for base in cls.__bases__ if not issubclass(own, base)), own)
        super().__init_subclass__(**kwargs)
        cls._make_durable()

    @classmethod
    def _make_durable(cls) -> None:
        # As the class resolves it: run() may come from a base that is no DurableTask.
        run = inspect.getattr_static(cls, "run")
        if run is not inspect.getattr_static(Task, "run") and getattr(run, _ITSELF, None) is not run:
            _wrap_run(cls, run)

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Part of Celery: the class belongs to *app* now, whose workers recover its runs.

        Raises:
            ConfigurationError: it has a task retry policy, and Celery is to retry it.
        """
        app.steps["worker"].add("celery_durable.worker.worker:RecoveryStep")
        bound = super().bind(app)
        # Of a class without a name Celery makes one up after this.
        draw_for(cls.name or app.gen_task_name(cls.__name__, cls.__module__))
        # An annotation ("@run") replaces what it decorates.
        cls._make_durable()
        if cls.task_retry_policy is not None and not cls.opinionated:
            raise ConfigurationError(
                f"{cls.name}: task_retry_policy is an option of @durable_task; with base=DurableTask Celery retries "
                f"the task (autoretry_for, retry_backoff, max_retries), and RunOptions its steps"
            )
        return bound

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Any:
        """Part of Celery: a worker begins to take messages of this task."""
        from celery_durable.worker.request import made_durable  # nobody but a worker needs Celery's requests

        self.Request = made_durable(self.Request)
        return super().start_strategy(app, consumer, **kwargs)

    @property
    def ctx(self) -> DurableContext | AsyncDurableContext:
        """The durable context of the running task.

        Raises:
            NoContextError: the task is not running.
            ConfigurationError: no Redis is configured.
        """
        return execution_of(self).open()

    @property
    def durable_settings(self) -> Settings:
        """The app's settings with this task's own."""
        try:
            return self.__dict__["_durable_settings"]  # type: ignore[no-any-return]
        except KeyError:
            app = self.app
            base = Settings.of(app)
            given = {ours: getattr(self, option) for option, ours in TASK_OPTIONS.items()}
            # A task of the user's may have a method that is called ``build``.
            own = base.with_options(
                {name: value for name, value in given.items() if not (value is None or inspect.isroutine(value))}
            )
            self.__dict__["_durable_settings"] = own
            return own

    @property
    def durable_terms(self) -> Terms:
        """What every attempt works by; read once, since Celery takes microseconds to find a setting."""
        try:
            return self.__dict__["_durable_terms"]  # type: ignore[no-any-return]
        except KeyError:
            conf, settings = self.app.conf, self.durable_settings
            self.__dict__["_durable_terms"] = terms = Terms(
                inline_retry_limit=settings.inline_retry_limit,
                inactivity_timeout=settings.inactivity_timeout,
                abort_timeout=inf if self._has_time_limit else settings.abort_timeout,
                max_entry_size=settings.max_entry_size,
                step_threads=settings.step_threads,
                serializer=settings.serializer,
                # What the app reads of serialized content, in messages or in results.
                accept=frozenset([*conf.accept_content, *(conf.result_accept_content or ())]),
                progress_forgives=not self.opinionated or self.retry_rules.resets_on_progress,
                result_serializer=conf.result_serializer,
                db_reuse_max=int(conf.get("CELERY_DB_REUSE_MAX") or 0),
                allow_atomic=settings.allow_atomic,
                build=settings.build or build.of(type(self).run),
            )
            return terms

    @property
    def _has_time_limit(self) -> bool:
        """Whether a time limit of Celery's takes the place of the abort timeout that the task does not set itself."""
        conf = self.app.conf
        limits = (self.time_limit, self.soft_time_limit, conf.task_time_limit, conf.task_soft_time_limit)
        return self.abort_timeout is None and any(limits)

    @property
    def request(self) -> Any:
        """Celery's request; in an async task, on the event loop's thread, that of the task the code belongs to."""
        request = self.request_stack.top
        if request is None:
            execution = current.get()
            while execution is not None and execution.task is not self:
                execution = execution.outer
            return super().request if execution is None else execution.request
        return request

    @property
    def backend(self) -> Any:
        """Celery's result backend."""
        backend = super().backend
        known = report.spared.get() or report.announced.get()
        return backend if known is None else report.SparingBackend(backend)

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
            """Celery's ``apply``; the retries of a run come first, also where its exception is raised here (``throw``).

            Plain Celery raises its ``Retry`` then.
            """
            throw = self.app.conf.task_eager_propagates if throw is None else throw
            task_id = task_id or uuid()
            try:
                return super().apply(args, kwargs, link, link_error, task_id, retries, throw, **options)
            except Retry as retry:
                again = retry.sig  # type: ignore[attr-defined]
                if again is None or not is_eager_run(task_id):
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
        """Celery's ``retry``; retries that the library sent do not count towards ``max_retries``.

        With ``throw=False`` the body goes on, and its value or its exception is the task's until the retry has run, as
        in plain Celery. The steps that it has recorded by then are replayed.
        """
        request = self.request
        # The retry() of another base may know fewer of them: only those that were given are handed on.
        arguments = {"args": args, "kwargs": kwargs, "exc": exc, "eta": eta, "countdown": countdown}
        arguments |= {"max_retries": max_retries, "throw": None if throw else False}
        if request.called_directly:
            return super().retry(**_given(arguments), **options)
        execution = opened_by(request)
        if execution is not None and execution.decided is not None and exc is execution.decided:
            # Celery's autoretry asks for what is decided already.
            raise execution.decided
        limit = self.max_retries if max_retries is None else max_retries
        if limit is not None and (ours := self._uncounted_retries(request)):
            limit = arguments["max_retries"] = limit + ours
        changed = execution.attempt.changes if execution is not None and execution.attempt is not None else 0
        # Where no run has begun, other arguments are at odds with nothing.
        may_have_begun = execution is not None or bool(header_of(request))
        changed_now = changed if may_have_begun and not (args is None and kwargs is None) else None
        header = self._retry_header(request, changed_now, begun=execution is not None)
        changes: Mapping[str, str] = {}
        if execution is not None:
            execution.restore_arguments()
            changes = execution.retry_changes = changed_by_retry(self, request, args, kwargs, options, header)
        if header:
            options = self._with_header(request, options, header)
        if execution is None:
            return super().retry(**_given(arguments), **options)
        # Expiry was honoured until the first attempt began.
        options.setdefault("expires", None)
        options = {**as_it_came(self, request), **options}
        delay = seconds_until(self, eta or (self.default_retry_delay if countdown is None else countdown))
        if (possible := sendable_delay(self.app, delay)) != delay:
            delay = possible
            arguments |= {"eta": None, "countdown": possible}
        send = functools.partial(super().retry, **_given(arguments), **options)
        if throw and execution.before_user_retry(delay, limit, changes, exc):
            # The journal carries the wait: nothing is to be published.
            execution.said = Retry(exc=exc, when=delay)  # type: ignore[arg-type]
            raise execution.said
        signature = functools.partial(self.signature_from_request, request, args, kwargs, **options)
        return self._send_retry(execution, send, delay, signature)

    @staticmethod
    def _retry_header(request: Any, changed: int | None, *, begun: bool) -> dict[str, Any]:
        """What the message of a retry says to us; *changed*: how often it was, if it changes the arguments."""
        header = lasting(header_of(request))
        if begun:
            # It says that there is a run.
            header.setdefault("retries", 0)
        if changed is not None:
            header["changed"] = max(header.get("changed", 0), changed) + 1
        return header

    @staticmethod
    def _with_header(request: Any, options: dict[str, Any], header: dict[str, Any]) -> dict[str, Any]:
        """The options of a retry and our header; headers that are given replace all others, as in plain Celery."""
        given = "headers" in options
        headers = {**(options["headers"] or {}), **our_headers(request, header)} if given else None
        return {**options, "headers": headers or headers_with(request, header)}

    def _send_retry(
        self, execution: Execution, send: Callable[[], Any], delay: float, signature: Callable[[], Any]
    ) -> Any:
        """Let Celery publish, and keep what it raises: that stands, whatever user code makes of it."""
        due = time.monotonic() + delay
        try:
            try:
                retry = send()
            except Reject as rejected:
                # A soft time limit strikes once, and what it was to stop has ended.
                if not isinstance(rejected.reason, SoftTimeLimitExceeded):  # type: ignore[attr-defined]
                    raise
                retry = send()
        except Retry as said:
            execution.said = said
            raise
        except Reject as rejected:
            reason: Any = rejected.reason  # type: ignore[attr-defined]
            try:
                check_encodable(self, signature())
            except Exception:
                Ending(execution).fail_after_all(rejected)
                raise rejected from None
            # Whatever else keeps a message from being sent passes.
            if self.acks_late:
                raise unsent(execution.request, reason) from rejected
            if execution.hold is not None and execution.hold.suspended:
                left_to_journal(execution.request, reason)
                execution.said = Retry(exc=reason, when=delay)  # type: ignore[arg-type]
                raise execution.said from rejected
            Ending(execution).fail_after_all(rejected)
            raise
        except Exception as error:
            execution.gave_up = error
            raise
        if not execution.eager:
            # The body goes on (``throw=False``), and it is not the last attempt, however it ends.
            execution.sent_for = due
        return retry

    def _uncounted_retries(self, request: Any) -> int:
        """The library's retries, which ``max_retries`` is not about; the policy that it became counts its own."""
        shares_budget = self.opinionated and not self.retry_rules.resets_on_progress
        return step_retries(request) if shares_budget else library_retries(request)


def _apps_own_class(cls: type) -> type | None:
    """The task class of the app for which Celery makes this one: what ``base=`` and ``task_cls=`` take the place of."""
    app = app_of_task_class(cls)
    return app.Task if isinstance(app, Celery) and cls.__bases__ == (DurableTask,) else task_class_of_django(cls)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


_ITSELF = "celery_durable_run"
"""An attribute by which a ``run`` of ours names itself; where a decorator has copied it, it names another one."""


def _wrap_run(cls: type[DurableTask[Any, Any]], declared: Any) -> None:
    """Put an :class:`Execution` around ``run``, inside of Celery's autoretry, which is to see the first exception."""
    declared = accepting(declared)
    body = declared if inspect.isfunction(declared) else _as_method(cls, declared)

    @functools.wraps(body)
    @door
    def run(self: DurableTask[Any, Any], /, *args: Any, **kwargs: Any) -> Any:
        if type(self).run is not run and is_executing(self):
            # Called by the run() of a subclass.
            return body(self, *args, **kwargs)
        return Execution(self, args, kwargs).run(body)

    # It is found by way of the body. Here, a wrapper of the bound method, such as Celery's autoretry, would copy it.
    vars(run).pop("__signature__", None)
    setattr(run, _ITSELF, run)
    cls.run = run  # type: ignore[assignment]
    cls.is_async = inspect.iscoroutinefunction(inspect.unwrap(declared))


# Python 3.13 warns of a partial that it will be a method from 3.14 on, and calls it without the task as before.
_STATIC = frozenset({functools.partial} if sys.version_info < (3, 14) else ())


def _as_method(cls: type, declared: Any) -> Callable[..., Any]:
    """What a class has as ``run`` that is no function, called as Python calls it: a static method, without a task."""
    if type(declared) in _STATIC or not hasattr(declared, "__get__"):
        declared = staticmethod(declared)
    found = declared.__get__(None, cls)
    if not callable(found):
        raise ConfigurationError(f"{cls.__name__}.run must be a function, got {found!r}")

    @functools.wraps(found)
    @door
    def body(task: Any, /, *args: Any, **kwargs: Any) -> Any:
        return declared.__get__(task, type(task))(*args, **kwargs)

    signature = inspect.signature(found)
    itself = inspect.Parameter("_task", inspect.Parameter.POSITIONAL_ONLY)
    # Positional-only first: the task's own parameters keep their kinds.
    body.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])  # type: ignore[attr-defined]
    return body


@signals.task_postrun.connect(weak=False, dispatch_uid="celery_durable")
def _after(task: Any = None, retval: Any = None, state: str | None = None, **_: Any) -> None:
    execution = opened_by(task.request)
    if execution is not None:
        # Sent while an exception of Celery's own passes, the result may be nowhere.
        execution.after(state, retval, delivered=sys.exc_info()[1] is execution.began_amid)


@signals.task_internal_error.connect(weak=False, dispatch_uid="celery_durable")
def _spare(sender: Any = None, task_id: str | None = None, **_: Any) -> None:
    if isinstance(sender, DurableTask) and task_id is not None:
        begun = report.begun.get() == task_id or has_journal(sender, task_id)
        report.spared.set(task_id if begun else None)
