"""The private names of Celery's apps and tasks. What only a worker needs is in :mod:`results` and :mod:`requests`.

A public name of a class that Celery documents (``Task``, ``Context``, a signal) stays where it is used.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Collection
from types import CellType, FunctionType
from typing import Any

from celery import _state as _untyped_state
from celery.app.base import Celery

from .lookup import Package

CELERY = Package("celery", ">=5.7,<5.8")

Proxy: Any = CELERY.look_up("celery.local", "Proxy")
PromiseProxy: Any = CELERY.look_up("celery.local", "PromiseProxy")
symbol_by_name: Any = CELERY.look_up("celery.utils.imports", "symbol_by_name")
"""The object itself, or what a text like ``shop.tasks:Base`` names."""
cwd_in_path: Any = CELERY.look_up("celery.utils.imports", "cwd_in_path")
"""A block: modules in the folder in which the process works are found, as where Celery looks for an app."""
X_DEATH_HEADERS: Collection[str] = CELERY.look_up("celery.app.task", "X_DEATH_HEADERS")
"""The headers by which RabbitMQ says that a message has waited in a queue."""
ignores_result: Callable[[Any, Any], bool] = CELERY.look_up("celery.app.task", "get_actual_ignore_result")
"""Whether the result of *task* is stored nowhere, by what its *request* asks for."""

_state: Any = _untyped_state
_tls: Any = CELERY.look_up("celery._state", "_tls")
_task_stack: Any = CELERY.look_up("celery._state", "_task_stack")
_active_apps: Callable[[], Collection[Any]] = CELERY.look_up("celery._state", "_get_active_apps")
_find_app: Callable[[str], Any] = CELERY.look_up("celery.app.utils", "find_app")
_detect_quorum_queues: Callable[[Any, str], Any] = CELERY.look_up("celery.utils.quorum_queues", "detect_quorum_queues")
for _module, _path in (
    ("celery._state", "_tls.current_app"),
    ("celery._state", "_task_stack.push"),
    ("celery._state", "connect_on_app_finalize"),
    ("celery._state", "default_app"),
    ("celery._state", "get_current_app"),
    ("celery.app.base", "Celery._task_from_fun"),
    ("celery.app.task", "Context.as_execution_options"),
    ("celery.app.task", "Task._app"),
    ("celery.app.task", "Task._backend"),
    ("celery.app.task", "Task._get_exec_options"),
    ("celery.app.task", "Task.request_stack"),
    # Undocumented names of Celery that DurableTask overrides.
    ("celery.app.task", "Task.backend"),
    ("celery.app.task", "Task.bind"),
    ("celery.app.task", "Task.request"),
    ("celery.app.task", "Task.start_strategy"),
    ("celery.local", "Proxy._get_current_object"),
):
    CELERY.look_up(_module, _path)
CELERY.check_inside(
    "celery.app.base",
    "Celery.__init__",
    "_finalize_mutex",
    "_fixups",
    "_pending",
    "finalized",
    "main",
    "set_as_current",
)
CELERY.check_inside("celery.app.task", "Task.retry", "override_max_retries")
CELERY.check_inside("celery.utils.dispatch.signal", "Signal.__init__", "receivers")


# -- apps --------------------------------------------------------------------------------------------------------------


def app_of_this_thread() -> Any:
    """The current app of this thread; None if it has none."""
    return _tls.current_app


def chosen_default_app() -> Any:
    """The app that somebody has made the default one; None if nobody has."""
    app = _state.default_app
    return app if app is not None and not _is_makeshift(app) else None


def apps_made() -> list[Any]:
    """All apps that this process has made, and that are still there."""
    return [app for app in list(_active_apps()) if not _is_makeshift(app)]


def makeshift_app() -> Any:
    """The app that Celery makes if none is current."""
    return _state.get_current_app()


def _is_makeshift(app: Any) -> bool:
    return bool(app.main == "default" and not app.set_as_current)


def unproxied(app: Any) -> Any:
    """The app itself, if *app* is a proxy for it (``current_app``)."""
    return app._get_current_object() if isinstance(app, Proxy) else app


def app_named(name: str) -> Any:
    """The app that ``celery -A <name>`` finds. Its module is imported."""
    return _find_app(name)


def uses_quorum_queues(app: Any) -> bool:
    """Whether RabbitMQ keeps the tasks of an app in quorum queues."""
    return bool(_detect_quorum_queues(app, app.producer_pool.connections.connection.transport.driver_type)[0])


# -- tasks of functions ------------------------------------------------------------------------------------------------


def task_from(app: Any, function: Callable[..., Any], **options: Any) -> Any:
    """Make a task of a function, as ``app.task`` does; *options* are those of that decorator."""
    return app._task_from_fun(function, **options)


def give_to_all_apps(register: Callable[[Any], Any]) -> None:
    """Call this for every app, present and future, when it is complete."""
    _state.connect_on_app_finalize(register)
    for app in _active_apps():
        if app.finalized:
            with app._finalize_mutex:
                register(app)


def made_when_complete(app: Any, make: Callable[[], Any], doc: str | None) -> Any:
    """A task, as ``app.task`` gives it: made now if its app is complete, else when that is, or when it is used."""
    if app.finalized:
        return make()
    task = PromiseProxy(make, __doc__=doc)
    app._pending.append(task)
    return task


_VALIDATES = "validate_argument"
"""In the function around a body (``pydantic=True``): the name of the function that validates an argument."""
CELERY.check_inside("celery.app.base", "pydantic_wrapper", _VALIDATES)


def validating_otherwise(wrapper: Any, otherwise: Callable[[Any], Any]) -> Any:
    """Celery's function around a body, with another function that validates its arguments.

    *otherwise* makes it from Celery's own. Both get the model and the value. None if *wrapper* validates nothing.
    """
    if not isinstance(wrapper, FunctionType) or _VALIDATES not in wrapper.__code__.co_freevars:
        return None
    # Only the wrapper gets the new one: the same function checks what a caller sends.
    cells = [
        CellType(otherwise(cell.cell_contents)) if name == _VALIDATES else cell
        for name, cell in zip(wrapper.__code__.co_freevars, wrapper.__closure__ or (), strict=True)
    ]
    made: Any = FunctionType(
        wrapper.__code__, wrapper.__globals__, wrapper.__name__, wrapper.__defaults__, tuple(cells)
    )
    functools.update_wrapper(made, wrapper)
    made.__wrapped__ = wrapper.__wrapped__  # type: ignore[attr-defined]
    return made


# -- task classes ------------------------------------------------------------------------------------------------------


def app_of_task_class(kind: type) -> Any:
    """The app for which Celery makes this class of one task; None, or something else, for any other class."""
    return vars(kind).get("app")


def task_class_of_django(kind: type) -> type | None:
    """The class that Celery gives the tasks of this class's app under Django, with ``delay_on_commit``.

    None if there is no Django, or if Celery does not make the class for an app. Celery leaves Django's class out if
    another one is given: ``task_cls="celery_durable:DurableTask"`` gives one, too.
    """
    app = app_of_task_class(kind)
    app = app if isinstance(app, Celery) else vars(kind).get("_app")
    fixups = getattr(app, "_fixups", None) or ()
    if not any(type(fixup).__module__ == "celery.fixups.django" for fixup in fixups):
        return None
    from celery.contrib.django.task import DjangoTask  # it imports Django

    return DjangoTask


class RequestsOwnLimit:
    """It keeps the last ``max_retries`` of ``retry()`` in the request. Celery keeps it on the task, for all."""

    @property
    def override_max_retries(self: Any) -> Any:
        try:
            return self.request.__dict__["override_max_retries"]
        except KeyError:
            raise AttributeError("override_max_retries") from None

    @override_max_retries.setter
    def override_max_retries(self: Any, value: Any) -> None:
        self.request.__dict__["override_max_retries"] = value

    @override_max_retries.deleter
    def override_max_retries(self: Any) -> None:
        self.request.__dict__.pop("override_max_retries", None)


def set_backend(task: Any, backend: Any) -> None:
    """Give a task a result backend of its own."""
    task._backend = backend


def sending_options(task: Any) -> dict[str, Any]:
    """The options that a task has for all its messages: its queue, its serializer."""
    return task._get_exec_options()  # type: ignore[no-any-return]


# -- what runs ---------------------------------------------------------------------------------------------------------


def push_current_task(task: Any) -> None:
    """Let this be Celery's current task in the thread that calls it."""
    # It is looked up here: with USE_FAST_LOCALS, each thread has a push() of its own. Celery's push_current_task has
    # that of the thread that imported it.
    _task_stack.push(task)


EXIT_BY_SIGTERM = -(256 - signal.SIGTERM)
"""The exit code of a child of billiard's pool that the worker ends by this signal."""


def says_replaced(error: BaseException) -> bool:
    """Whether this is how ``Task.replace`` ends a task, whose id another one has now."""
    return error.args == ("Replaced by new task",)


def has_receivers(celerys: Any) -> bool:
    """Whether somebody listens to a signal of Celery's kind."""
    return bool(celerys.receivers)
