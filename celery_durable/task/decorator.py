"""``@durable_task``: a function with a durable context becomes a Celery task."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from celery import Celery, Task

from celery_durable.config.checks import suggestion
from celery_durable.config.retry import RetryPolicy, TaskRetryRules
from celery_durable.config.settings import PREFIX, TASK_OPTIONS, Settings
from celery_durable.exceptions import ConfigurationError
from celery_durable.invocation.current import invocation_of
from celery_durable.seams.celery import Proxy, give_to_all_apps, made_when_complete, task_from, unproxied
from celery_durable.user_code import user_code_boundary
from celery_durable.values.declared_types import hints_of
from celery_durable.values.tagged import is_model

from .apps import resolve_app
from .base import DurableTask
from .retry_rules import CELERY_RETRY_OPTIONS, rules_from_celery, set_by_classes

if TYPE_CHECKING:
    from celery_durable.steps.context import AsyncDurableContext, DurableContext

P = ParamSpec("P")
R = TypeVar("R")


class _Decorator(Protocol):
    @overload
    def __call__(
        self, fun: Callable[Concatenate[AsyncDurableContext, P], Coroutine[Any, Any, R]], /
    ) -> DurableTask[P, R]: ...
    @overload
    def __call__(self, fun: Callable[Concatenate[DurableContext, P], R], /) -> DurableTask[P, R]: ...


class _BindingDecorator(Protocol):
    @overload
    def __call__(
        self, fun: Callable[Concatenate[Any, AsyncDurableContext, P], Coroutine[Any, Any, R]], /
    ) -> DurableTask[P, R]: ...
    @overload
    def __call__(self, fun: Callable[Concatenate[Any, DurableContext, P], R], /) -> DurableTask[P, R]: ...


@overload
def durable_task(
    fun: Callable[Concatenate[AsyncDurableContext, P], Coroutine[Any, Any, R]], /
) -> DurableTask[P, R]: ...
@overload
def durable_task(fun: Callable[Concatenate[DurableContext, P], R], /) -> DurableTask[P, R]: ...
@overload
def durable_task(*, bind: Literal[True], app: Celery | None = None, **options: Any) -> _BindingDecorator: ...
@overload
def durable_task(*, bind: Literal[False] = False, app: Celery | None = None, **options: Any) -> _Decorator: ...


def durable_task(*args: Any, **options: Any) -> Any:
    """Make a durable Celery task; bare or with options, before or after the app exists, like ``shared_task``.

    Without ``app=`` the task is in every app, and ``task.delay()`` sends by the current one: that of the thread, else
    of the task that sends it, else the one whose ``set_default()`` was called, else the only one that the process has
    made. Where it has made several, a thread without a current app (a request thread) gets a ``ConfigurationError``.

    The first parameter of the function is the durable context (with ``bind=True`` the second, after ``self``); callers
    do not pass it. ``acks_late`` and ``reject_on_worker_lost`` are on, and every exception of its code but
    :class:`~celery_durable.TerminalError` retries the task by its task retry policy. If the library is used in a wrong
    way, the run fails at once.

    A duration is a ``timedelta`` or a number of seconds. An option that is left out has the value of the app's setting
    of that name, ``durable_*``; the defaults below are those of the settings.

    Args:
        *args: the function, if the decorator is written without options.
        app: the Celery app that alone has the task, whatever thread sends it. Default: every app has it.
        task_retry_policy: how the task is retried, a :class:`~celery_durable.RetryPolicy`. Default: ``RetryPolicy()``.
        inline_retry_limit: a step that waits no longer than this for its retry, or a sleep that is no longer, waits
            inside the worker (duration, 0 or more). Default 0.
        inactivity_timeout: an attempt that has made no progress for this long is reported (duration, more than 0).
            Progress is a new entry of the journal, or ``current_step().heartbeat()``. Default 60 s.
        abort_timeout: after this much longer the attempt is aborted (duration, more than 0). That counts as a failed
            execution of its step. Default 600 s, or never if a time limit of Celery's applies to the task or message.
        max_recoveries: how many attempts in a row may die without progress (a whole number, 0 or more). Default 10.
        retention: how long the journal is kept after SUCCESS or IGNORED (duration, 0 or more). Default 24 h.
        failure_retention: how long it is kept after FAILURE or REVOKED (duration, 0 or more). Default 7 days.
        max_entry_size: the largest result of one step in bytes (a whole number, 1 or more). Default 32 MiB.
        journal_sync: where the result of a step must be before it counts as recorded: in the ``"memory"`` of the
            server, also on one of its ``"replicas"``, or on its ``"disk"``. Default ``"memory"``.
        build: the name of this version of the task's code (text), see docs/deploys.md. Default: a fingerprint of the
            function.
        stall_timeout: how long a run whose journal does not fit the code waits for a worker whose code fits (duration,
            0 or more). 0: it fails at once. Default 1 h.
        redact: a function ``(task, where, value) -> value``, or its dotted path: what operators are shown in place of a
            value of this task, see docs/operate.md. Default: none, the value is shown.
        durable_serializer: how results of steps are written: a name of kombu's registry, or an object with
            ``serialize(obj) -> bytes`` and ``deserialize(data)``. (Celery's option ``serializer`` is for messages.)
            Default ``"json"``.
        **options: all of Celery's task options. Its retry options (``max_retries``, ``retry_backoff``, ...) become the
            task retry policy and keep their meaning, also if a base class sets them.

    Raises:
        ConfigurationError: there is no parameter for the context, an option is unknown (the message suggests the
            nearest one), a policy and Celery's retry options are both given, or ``app`` is no Celery app.
    """
    if not args:
        return functools.partial(_make, options=options)
    fun, *more = args
    if more or options or not callable(fun):
        raise ConfigurationError(f"write @durable_task or @durable_task(option=...), got {args!r}")
    return _make(fun, {})


def _make(fun: Callable[..., Any], options: dict[str, Any]) -> Any:
    if isinstance(fun, (Proxy, Task)):
        raise ConfigurationError(
            "@durable_task takes a function, and this is a task already: remove one of the decorators"
        )
    options = dict(options)
    _check_names(fun, options)
    bind = bool(options.pop("bind", False))
    base = options.pop("base", None)
    app = _checked_app(fun, options.pop("app", None))
    body = _body(fun, bind)
    rules = _retry_rules(options)
    defaults: dict[str, Any] = {
        "acks_late": True,
        "reject_on_worker_lost": True,
    }
    options = {**defaults, **options}
    Settings().of_task({name: options[name] for name in TASK_OPTIONS if options.get(name) is not None})

    def register(app: Any) -> Any:
        # The hints are read only now, because a model may be defined below the task in its module.
        hints = hints_of(fun)
        _annotate(body, hints)
        kind = _task_class(app.Task if base in (None, DurableTask) else base, rules)
        return task_from(app, body, base=kind, bind=True, **{"pydantic": _has_models(hints), **options})

    if app is None:
        return _share(fun, options.get("name"), register)
    return made_when_complete(app, functools.partial(register, app), fun.__doc__)


def _checked_app(fun: Callable[..., Any], app: Any) -> Any:
    """The app itself, if *app* is a proxy for it, such as ``current_app``."""
    app = unproxied(app)
    if app is not None and not isinstance(app, Celery):
        raise ConfigurationError(f"@durable_task of {fun.__qualname__}: app must be a Celery app, got {app!r}")
    return app


def _share(fun: Callable[..., Any], name: str | None, register: Callable[[Any], Any]) -> Any:
    """Give the task to every app, present and future, like ``shared_task``. Each app gets a base class of its own."""
    give_to_all_apps(register)

    def of_current_app() -> Any:
        app = resolve_app(f"task {name or fun.__qualname__}")
        return app.tasks[name or app.gen_task_name(fun.__name__, fun.__module__)]

    return Proxy(of_current_app)


def _task_class(base: type, rules: Callable[[DurableTask[Any, Any]], TaskRetryRules]) -> type:
    """A durable task class, made from the app's own task class."""
    bases = (base,) if issubclass(base, DurableTask) else (DurableTask, base)
    members = {
        "abstract": True,
        "auto_retry": True,
        "retry_rules": cached_property(rules),
    }
    return type("DurableTask", bases, members)


# -- the function ------------------------------------------------------------------------------------------------------


def _body(fun: Callable[..., Any], bind: bool) -> Callable[..., Any]:
    """*fun* as the body of a bound task. Its signature has no context, because callers do not pass it."""
    signature = inspect.signature(fun)
    parameters = list(signature.parameters.values())
    _check_context_parameter(fun, parameters, bind)
    own = signature.replace(parameters=parameters[2 if bind else 1 :])
    # With one of these attributes, the signature may differ from what the function itself takes.
    as_written = not (hasattr(fun, "__wrapped__") or hasattr(fun, "__signature__"))

    @functools.wraps(fun)
    @user_code_boundary
    def run(self: DurableTask[Any, Any], /, *args: Any, **kwargs: Any) -> Any:
        invocation = invocation_of(self)
        args_fit_fast, open_context = _needed_by_bodies()
        context = open_context(invocation)
        head = (self, context) if bind else (context,)
        if not (as_written and args_fit_fast(fun, (*head, *args), kwargs)):
            own.bind(*args, **kwargs)
        invocation.arguments.have_fitted = True
        return fun(*head, *args, **kwargs)

    itself = inspect.Parameter("_task", inspect.Parameter.POSITIONAL_ONLY)
    run.__signature__ = own.replace(parameters=[itself, *own.parameters.values()])  # type: ignore[attr-defined]
    return run


@functools.cache
def _needed_by_bodies() -> Any:
    # A process that only sends tasks does without these.
    from celery_durable.steps.call_check import args_fit_fast

    from .opening import open_context

    return args_fit_fast, open_context


def _annotate(body: Any, hints: dict[str, Any]) -> None:
    """Give the body its annotations as types. One name that only type checkers know must not hide the other models."""
    signature = inspect.signature(body)
    typed = [each.replace(annotation=hints.get(name, each.annotation)) for name, each in signature.parameters.items()]
    body.__annotations__ = {name: hint for name, hint in hints.items() if name in {*signature.parameters, "return"}}
    body.__signature__ = signature.replace(parameters=typed)


_PLAIN = (bool, int, float, str, bytes, list, tuple, dict, set)
"""Types that a task often takes as an argument, and that no context has."""


def _check_context_parameter(fun: Callable[..., Any], parameters: list[inspect.Parameter], bind: bool) -> None:
    needed = 2 if bind else 1
    positional = [
        parameter
        for parameter in parameters[:needed]
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(positional) < needed:
        wanted = "self, ctx" if bind else "ctx"
        raise ConfigurationError(
            f"{fun.__qualname__} has no parameter for the durable context: write def {fun.__name__}({wanted}, ...)"
        )
    if _is_an_argument(positional[-1]):
        name = positional[-1].name
        raise ConfigurationError(
            f"the {'second' if bind else 'first'} parameter of {fun.__qualname__}, {name!r}, would be the durable "
            f"context: write def {fun.__name__}({'self, ' if bind else ''}ctx, {name}, ...)"
        )


def _is_an_argument(parameter: inspect.Parameter) -> bool:
    """Whether the parameter in the place of the context looks like one that callers pass."""
    plain = parameter.annotation in (*_PLAIN, *(kind.__name__ for kind in _PLAIN))
    return plain or (parameter.default is not parameter.empty and parameter.name not in ("ctx", "context"))


def _has_models(hints: dict[str, Any]) -> bool:
    """Whether a parameter is a Pydantic model. Then Celery validates the arguments."""
    of_parameters = [hint for name, hint in hints.items() if name != "return"]
    kinds = [kind for hint in of_parameters for kind in (hint, *typing.get_args(hint))]
    return any(map(is_model, kinds))


# -- the options -------------------------------------------------------------------------------------------------------

_CELERY_OPTIONS = frozenset(
    {
        "name", "base", "bind", "shared", "lazy", "filter", "shadow_name",
        "queue", "exchange", "routing_key", "link", "link_error",
        "compression", "delivery_mode", "immediate", "mandatory",
        "pydantic", "pydantic_strict", "pydantic_context", "pydantic_dump_kwargs",
    }
)  # fmt: skip


_NO_OPTIONS = {*dir(DurableTask)} - {*dir(Task)} - TASK_OPTIONS.keys()
"""Attributes that ``DurableTask`` adds for itself: they are no options."""


def _check_names(fun: Callable[..., Any], options: dict[str, Any]) -> None:
    attributes = {name for name in dir(options.get("base") or Task) if not name.startswith("_")} - _NO_OPTIONS
    known = attributes | _CELERY_OPTIONS | CELERY_RETRY_OPTIONS | set(TASK_OPTIONS)
    for name in options:
        if name not in known:
            raise ConfigurationError(
                f"@durable_task of {fun.__qualname__} has no option {name!r}{_hint_at(name, known)}"
            )


def _hint_at(name: str, known: set[str]) -> str:
    bare = name.removeprefix(PREFIX)
    if bare in Settings._fields and bare not in TASK_OPTIONS.values():
        return f": {PREFIX}{bare} is a setting of the app"
    return suggestion(name, sorted(known), {name: bare})


def _retry_rules(options: dict[str, Any]) -> Callable[[DurableTask[Any, Any]], TaskRetryRules]:
    """A function that gives the retry rules of the task. Removes Celery's retry options from *options*."""
    celery = {name: options[name] for name in CELERY_RETRY_OPTIONS if name in options}
    policy = options.get("task_retry_policy")
    if celery and policy is not None:
        raise ConfigurationError(
            f"task_retry_policy and Celery's {', '.join(sorted(celery))} are both given: use one of the two"
        )
    # Celery's own autoretry must not see these options. But ``self.retry()`` needs max_retries and the default delay.
    for name in CELERY_RETRY_OPTIONS - {"max_retries", "default_retry_delay"}:
        options.pop(name, None)
    retry_kwargs = celery.get("retry_kwargs") or {}
    if "max_retries" in retry_kwargs:
        options["max_retries"] = retry_kwargs["max_retries"]
    if celery:
        rules_from_celery(celery, RetryPolicy())

    def of(task: DurableTask[Any, Any]) -> TaskRetryRules:
        default = task.durable_settings.task_retry_policy
        given = celery if policy is not None else {**set_by_classes(type(task)), **celery}
        if given:
            return rules_from_celery(given, default)
        return TaskRetryRules(default.backoff, on_exhausted=default.on_exhausted)

    return of
