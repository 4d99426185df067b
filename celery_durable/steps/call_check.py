"""The checks of a call of ``ctx.run``. They are made before it takes a position and before the action runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from celery_durable.config.retry import RunOptions
from celery_durable.drivers.pulse import Pulse
from celery_durable.exceptions import ConfigurationError
from celery_durable.interrupts import Interrupt
from celery_durable.values import declared_types
from celery_durable.values.serializers import check_serializer

MISSING: Any = object()
"""It stands for an action that was not given."""

_signatures: WeakKeyDictionary[Any, inspect.Signature] = WeakKeyDictionary()


def check_call(
    pulse: Pulse, name: Any, action: Any, options: RunOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """End the run if no step can be made of this call."""
    if not isinstance(name, str):
        raise _without_name(pulse, name)
    if action is MISSING:
        raise pulse.invalid(f'step {name!r} has no action: write ctx.run("{name}", function, ...)')
    if not callable(action):
        raise _no_function(pulse, name, action)
    if not args_fit_fast(action, args, kwargs):
        _check_arguments(pulse, name, action, args, kwargs)
    if options.serializer is not None:
        _check_serializer(pulse, options)
    # RunOptions does not check it: modules make their options at import, and half of the import time would be Pydantic.
    if options.type_hint is not None and not declared_types.usable(options.type_hint):
        _refuse_type_hint(pulse, name, options)


def _without_name(pulse: Pulse, name: Any) -> Interrupt:
    called = str(getattr(name, "__name__", ""))  # code cannot use the name of a lambda
    corrected = f'write ctx.run("{called}", {called}, ...)' if called.isidentifier() else ""
    advice = f": {corrected}" if corrected else ', as in ctx.run("charge", charge)'
    return pulse.invalid(f"the first argument of ctx.run is the step's name, a string, got {name!r}{advice}")


def _no_function(pulse: Pulse, name: str, action: Any) -> Interrupt:
    if inspect.iscoroutine(action):
        action.close()
        return pulse.invalid(
            f"step {name!r} was given a coroutine, which can run only once: pass the function and its "
            f'arguments, ctx.run("{name}", {action.__name__}, ...)'
        )
    return pulse.invalid(
        f"the action of step {name!r} must be callable, got {action!r}: pass a function and its arguments, "
        f'ctx.run("{name}", function, ...)'
    )


def _check_serializer(pulse: Pulse, options: RunOptions) -> None:
    try:
        check_serializer(options.serializer, pulse.settings.accept)
    except ConfigurationError as error:
        raise pulse.end_run(error) from None


def _refuse_type_hint(pulse: Pulse, name: str, options: RunOptions) -> None:
    if type_matters(pulse, options):
        text = f"type_hint must be a type that Pydantic can write and read, got {options.type_hint!r}"
        raise pulse.end_run(ConfigurationError(f"task {pulse.info.task_id}: step {name!r}: {text}"))


def type_matters(pulse: Pulse, options: RunOptions) -> bool:
    """Whether the type of the value is needed to record it: only JSON needs one."""
    return (options.serializer or pulse.settings.serializer) in (None, "json")


# -- arguments ---------------------------------------------------------------------------------------------------------


def args_fit_fast(action: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether positional arguments fit a plain function. To bind them to its signature costs as much as the write."""
    if kwargs or type(action) is not FunctionType:
        return False
    code = action.__code__
    most = code.co_argcount
    return not code.co_kwonlyargcount and most - len(action.__defaults__ or ()) <= len(args) <= most


def _check_arguments(
    pulse: Pulse, name: str, action: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    signature = _signature_of(action)
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        strays = (key for key in kwargs if key not in signature.parameters)
        option = next((key for key in strays if key in RunOptions.__dataclass_fields__), None)
        if option is None and _is_taken_by_a_decorator(action, args, kwargs):
            return
        advice = f"; options go into RunOptions({option}=...)" if option else ""
        called = getattr(action, "__qualname__", repr(action))
        raise pulse.invalid(f"step {name!r}: the arguments do not fit {called}{signature}: {error}{advice}") from None


def _signature_of(action: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return _signatures[action]
    except (KeyError, TypeError):
        pass
    try:
        signature = inspect.signature(action)
    except (TypeError, ValueError):  # some builtins have none
        return None
    if isinstance(action, FunctionType):
        _signatures[action] = signature
    return signature


def _is_taken_by_a_decorator(action: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a decorator takes them: it shows the signature of the function inside, but may take more itself."""
    try:
        inspect.signature(action, follow_wrapped=False).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True
