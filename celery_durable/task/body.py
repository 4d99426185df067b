"""Wraps the body of a task: a :class:`Runner` runs each call of it, and models among its arguments are kept."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from celery_durable.exceptions import ConfigurationError
from celery_durable.invocation.current import current, is_executing
from celery_durable.seams.celery import validating_otherwise
from celery_durable.user_code import user_code_boundary

_OWN_RUN = "celery_durable_run"
"""The attribute in which a ``run`` of ours keeps itself. If a decorator has copied it, it is another function's."""


def is_wrapped(run: Any) -> bool:
    """Whether *run* is already wrapped by us."""
    return getattr(run, _OWN_RUN, None) is run


def wrap_run(cls: Any, declared: Any) -> None:
    """Put a :class:`~celery_durable.task.runner.Runner` around ``run``.

    Celery's autoretry stays outside of it, and sees only what the runner raises.
    """
    declared = with_kept_models(declared)
    body = declared if inspect.isfunction(declared) else _as_method(cls, declared)

    @functools.wraps(body)
    @user_code_boundary
    def run(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if type(self).run is not run and is_executing(self):
            # The run() of a subclass calls this one.
            return body(self, *args, **kwargs)
        return _runner()(self, args, kwargs).run(body)

    # Python finds the signature of the body. A signature here would be copied by Celery's autoretry, which wraps the
    # bound method.
    vars(run).pop("__signature__", None)
    setattr(run, _OWN_RUN, run)
    cls.run = run
    cls.is_async = inspect.iscoroutinefunction(inspect.unwrap(declared))


@functools.cache
def _runner() -> Any:
    from .runner import Runner  # a process that only sends tasks does without it

    return Runner


# Before Python 3.14 a partial is no method: it is called without the task. Python 3.13 warns of the change.
_STATIC = frozenset({functools.partial} if sys.version_info < (3, 14) else ())


def _as_method(cls: type, declared: Any) -> Callable[..., Any]:
    """A body for a ``run`` that is no function. Python's rules hold: a static method, for example, gets no task."""
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
    # This parameter is positional-only, so the task's own parameters keep their kinds.
    body.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])  # type: ignore[attr-defined]
    return body


# -- arguments that are models -----------------------------------------------------------------------------------------


def with_kept_models(run: Any) -> Any:
    """*run* of a task. If Celery validates its arguments, a model that was accepted once is kept."""
    wrapper = run.__func__ if isinstance(run, staticmethod) else run
    durable = validating_otherwise(wrapper, lambda validate: functools.partial(_accept_model, validate))
    if durable is None:
        return run
    return staticmethod(durable) if isinstance(run, staticmethod) else durable


def _accept_model(validate: Callable[[Any, Any], Any], model: Any, value: Any) -> Any:
    """The next argument that is a *model*: as the first attempt accepted it, else as Celery's *validate* gives it."""
    invocation = current.get()
    if invocation is None or invocation.direct:
        return validate(model, value)
    return invocation.arguments.next(validate, model, value)
