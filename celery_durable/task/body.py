"""The body of a task, wrapped: each call of it is an execution, and the models among its arguments are kept."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from celery_durable.drivers.interruption import user_code_boundary
from celery_durable.exceptions import ConfigurationError
from celery_durable.invocation.current import current, is_executing
from celery_durable.seams.celery import validating_otherwise

from .execution import Execution

_ITSELF = "celery_durable_run"
"""An attribute by which a ``run`` of ours names itself; where a decorator has copied it, it names another one."""


def is_wrapped(run: Any) -> bool:
    """Whether a ``run`` is one of ours."""
    return getattr(run, _ITSELF, None) is run


def wrap_run(cls: Any, declared: Any) -> None:
    """Put an :class:`Execution` around ``run``, inside of Celery's autoretry, which is to see the first exception."""
    declared = accepting(declared)
    body = declared if inspect.isfunction(declared) else _as_method(cls, declared)

    @functools.wraps(body)
    @user_code_boundary
    def run(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if type(self).run is not run and is_executing(self):
            # Called by the run() of a subclass.
            return body(self, *args, **kwargs)
        return Execution(self, args, kwargs).run(body)

    # It is found by way of the body. Here, a wrapper of the bound method, such as Celery's autoretry, would copy it.
    vars(run).pop("__signature__", None)
    setattr(run, _ITSELF, run)
    cls.run = run
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
    @user_code_boundary
    def body(task: Any, /, *args: Any, **kwargs: Any) -> Any:
        return declared.__get__(task, type(task))(*args, **kwargs)

    signature = inspect.signature(found)
    itself = inspect.Parameter("_task", inspect.Parameter.POSITIONAL_ONLY)
    # Positional-only first: the task's own parameters keep their kinds.
    body.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])  # type: ignore[attr-defined]
    return body


# -- arguments that are models -----------------------------------------------------------------------------------------


def accepting(run: Any) -> Any:
    """*run*, a task's, with Celery's validation of its arguments made durable, if there is one."""
    wrapper = run.__func__ if isinstance(run, staticmethod) else run
    durable = validating_otherwise(wrapper, lambda validate: functools.partial(_accept, validate))
    if durable is None:
        return run
    return staticmethod(durable) if isinstance(run, staticmethod) else durable


def _accept(validate: Callable[[Any, Any], Any], model: Any, value: Any) -> Any:
    """The next argument that is a *model*: as it was accepted before, else by Celery's *validate*."""
    invocation = current.get()
    if invocation is None or invocation.direct:
        return validate(model, value)
    return invocation.arguments.next(validate, model, value)
