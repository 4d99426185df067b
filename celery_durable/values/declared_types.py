"""The type that a function declares for its result. It decides how the result is written and read."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any
from weakref import WeakKeyDictionary

from . import tagged
from .tagged import is_model
from .unvalidated import declared

_declared: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class _Reasons(WeakKeyDictionary[Any, str]):
    """Reasons by function. Every step asks for one, and most processes have none at all."""

    is_empty = True

    def __setitem__(self, function: Any, reason: str) -> None:
        self.is_empty = False
        super().__setitem__(function, reason)


never_recorded = _Reasons()
"""Functions whose results can never be recorded, with the reason."""


def declared_type(action: Callable[..., Any]) -> Any:
    """The type that *action* declares for its result (of an async action: what it returns when it is awaited).

    None if it declares none, or none that Pydantic can use.
    """
    function = _function_of(action)
    if not getattr(function, "__annotations__", None):
        return None
    try:
        return _declared[function]
    except KeyError:
        _declared[function] = hint = _read_declared_type(function)
        return hint
    except TypeError:  # not weakly referable
        return _read_declared_type(function)


def objection(action: Callable[..., Any], hint: Any = None) -> str | None:
    """Why no result of *action* can ever be recorded; None if its type (*hint*, or the declared one) does not tell."""
    try:
        if hint is not None:
            return _of_hint(hint)
        return never_recorded.get(_function_of(action))
    except TypeError:  # an unhashable hint, a function that is not weakly referable
        return None


def _function_of(action: Any) -> Any:
    if type(action) is types.FunctionType:
        return action
    while isinstance(action, partial):
        action = action.func
    function = getattr(action, "__func__", action)
    if not isinstance(function, types.FunctionType):
        function = type(function).__call__ if callable(function) else function
    return function


# These types say no more about a value than its JSON does.
_SAYS_NOTHING = (Any, object, inspect.Signature.empty, typing.NoReturn, dict, list)


def hints_of(function: Any) -> dict[str, Any]:
    """The annotations of a function as types. One that cannot be resolved is left out, and hides no other."""
    hints: dict[str, Any] = {}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    for name, note in getattr(function, "__annotations__", {}).items():
        alone = types.SimpleNamespace(__annotations__={name: note})
        with suppress(Exception):  # a name that only type checkers know
            hints |= typing.get_type_hints(alone, names, include_extras=True)
    return hints


def _read_declared_type(function: Any) -> Any:
    hint = hints_of(function).get("return", Any)
    origin = typing.get_origin(hint)
    if inspect.isclass(origin) and issubclass(origin, typing.Awaitable) and typing.get_args(hint):
        hint = typing.get_args(hint)[-1]  # Awaitable[T], Coroutine[Any, Any, T]
    if any(hint is nothing for nothing in _SAYS_NOTHING):
        return None
    # A decorator copies the annotations of its function, and may return something else.
    if not hasattr(function, "__wrapped__") and (reason := _never_recordable(hint)):
        with suppress(TypeError):  # not weakly referable
            never_recorded[function] = reason
    return hint if usable(hint) else None


def usable(hint: Any) -> bool:
    """Whether Pydantic can read and write values of this type."""
    try:
        declared(hint)
    except Exception:  # any class without a schema: httpx.Response, a TypeVar, ...
        return False
    return not isinstance(hint, str)  # a name, which means nothing here


def _never_recordable(hint: Any) -> str | None:
    if _keeps_a_secret(hint):
        return "it has a secret in it, of which JSON is to show nothing: return what is no secret"
    if inspect.isclass(hint) and not usable(hint) and not issubclass(hint, typing.Awaitable):
        with suppress(TypeError):  # a protocol
            if not any(issubclass(kind, hint) for kind in tagged.KINDS):
                return "that type has no JSON form: return plain data"
    return None


_of_hint = lru_cache(maxsize=1024)(_never_recordable)


def _keeps_a_secret(hint: Any, seen: frozenset[Any] = frozenset()) -> bool:
    """Whether values of this type are or contain a secret of Pydantic's, and nothing says how to write it."""
    kind = typing.get_origin(hint) or hint
    if hasattr(kind, "get_secret_value"):
        return True
    if not is_model(kind) or kind in seen:
        return False
    own = kind.__pydantic_decorators__
    if own.field_serializers or own.model_serializers or kind.model_config.get("json_encoders"):
        return False
    return any(
        field.is_required() and not field.exclude and not any(hasattr(part, "when_used") for part in field.metadata)
        and _keeps_a_secret(field.annotation, seen | {kind})
        for field in kind.model_fields.values()
    )  # fmt: skip
