"""Value ⇄ text. A value comes back equal and of its type, or is refused; nothing is degraded silently.

Where the result has a declared type it goes through Pydantic, else it is :mod:`tagged` JSON; a custom serializer comes
first. Imports neither Celery nor Redis.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from weakref import WeakKeyDictionary

from . import serializers, tagged
from .serializers import JSON_ONLY, Marks, Serializer
from .tagged import NotEncodable, is_model

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["Encoded", "NotEncodable", "adapter", "declared_type", "decode", "encode", "usable"]


class Encoded(NamedTuple):
    """A value as JSON text, with the marks that say how to read it again.

    ``value`` is what :func:`decode` makes of it: first run and replay hand out the same.
    """

    text: str
    marks: Marks
    value: Any


_NO_MARKS: Marks = {}
_TYPED: Marks = {"encoding": "typed"}
_PYTHON: Marks = {"encoding": "python"}


def encode(
    value: Any,
    hint: Any = None,
    *,
    serializer: str | Serializer | None = None,
    compression: str | None = None,
    accept: frozenset[str] = JSON_ONLY,
) -> Encoded:
    """*value* as text, by its declared type *hint* (None: undeclared) or by a custom serializer.

    Raises:
        NotEncodable: it would be degraded.
    """
    if serializer is not None and serializer != "json":
        return _encode_custom(value, serializer, compression, accept)
    encoded = _encode_json(value, hint)
    if compression is None:
        return encoded
    raw, method = serializers.squeeze(encoded.text.encode(), compression)
    return Encoded(serializers.as_text(raw), {**encoded.marks, "compression": method}, encoded.value)


def decode(
    text: str | bytes,
    marks: Marks,
    hint: Any = None,
    *,
    serializer: str | Serializer | None = None,
    accept: frozenset[str] = JSON_ONLY,
) -> Any:
    """The value that *text* and *marks* keep."""
    if "serializer" in marks:
        return _decode_custom(text, marks, serializer, accept)
    if "compression" in marks:
        text = serializers.expand(serializers.as_bytes(text), marks["compression"])
    encoding = marks.get("encoding")
    if encoding is None:
        return tagged.loads(text)
    if hint is None:
        raise NotEncodable("recorded by its declared type, which the action no longer declares")
    if "member" in marks:
        members = _members(hint)
        if marks["member"] not in members:
            raise NotEncodable(f"recorded as {marks['member']}, which is not in the declared type any more")
        hint = members[marks["member"]]
    if encoding == "python":
        return adapter(hint).validator.validate_python(tagged.loads(text), by_name=True, by_alias=False)
    return adapter(hint).validator.validate_json(text, by_name=True, by_alias=False)


def _encode_custom(
    value: Any, serializer: str | Serializer, compression: str | None, accept: frozenset[str]
) -> Encoded:
    raw, marks = serializers.dump(value, serializer, accept)
    if compression is not None:
        raw, marks["compression"] = serializers.squeeze(raw, compression)
    text = serializers.as_text(raw)
    return Encoded(text, marks, _decode_custom(text, marks, serializer, accept))


def _decode_custom(text: str | bytes, marks: Marks, serializer: str | Serializer | None, accept: frozenset[str]) -> Any:
    raw = serializers.as_bytes(text)
    if "compression" in marks:
        raw = serializers.expand(raw, marks["compression"])
    return serializers.load(raw, marks, serializer, accept)


# -- JSON, typed and plain ---------------------------------------------------------------------------------------------


def _encode_json(value: Any, hint: Any) -> Encoded:
    if hint is None:
        text, decoded = tagged.round_trip(value)
        return Encoded(text, _NO_MARKS, decoded)
    for way in (_as_plain_data, _as_typed_json, _as_typed_python, _as_member):
        encoded = way(value, hint)
        if encoded is not None:
            return encoded
    return _despite_its_type(value, hint)


def _despite_its_type(value: Any, hint: Any) -> Encoded:
    """Tagged JSON of what is not what it was declared to be; of enums, those only that equal their values."""
    try:
        text = tagged.dumps(value, tuples=True)
        return Encoded(text, _NO_MARKS, tagged.loads(text))
    except NotEncodable as refused:
        reason = str(refused).partition(":")[0]  # without the advice, which is for what has no declared type
    with suppress(NotEncodable):
        text = tagged.dumps(value, tuples=True, enums=True)
        decoded = tagged.loads(text)
        if value == decoded:
            return Encoded(text, _NO_MARKS, decoded)
    declared = hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else hint
    raise NotEncodable(
        f"{reason}, and by the declared type, {declared}, Pydantic does not give it back equal and of its type in all "
        f"its parts: declare the type that it has (a union with a discriminator, say), return plain data from "
        f"{{action}}, or pass serializer="
    )


def _as_plain_data(value: Any, hint: Any) -> Encoded | None:  # noqa: ARG001
    """Tagged JSON, three times as fast as Pydantic's; None where only the declared type can bring the value back."""
    if type(value) not in tagged.KINDS:
        return None
    try:
        text, decoded = tagged.round_trip(value, faithful=True)
    except NotEncodable:
        return None
    return Encoded(text, _NO_MARKS, decoded)


def _as_typed_json(value: Any, hint: Any) -> Encoded | None:
    """Pydantic's own JSON; None where it would lose something (bytes that are not UTF-8, NaN, a subclass's fields)."""
    typed = adapter(hint)
    try:
        raw = typed.serializer.to_json(value, round_trip=True, by_alias=False, warnings="error")
        decoded = typed.validator.validate_json(raw, by_name=True, by_alias=False)
    except (ValueError, TypeError):  # pydantic's errors are ValueErrors
        return None
    return Encoded(raw.decode(), _TYPED, decoded) if same(value, decoded) else None


def _as_typed_python(value: Any, hint: Any) -> Encoded | None:
    """Pydantic down to plain Python, then tagged JSON: slower, keeps what JSON alone cannot."""
    typed = adapter(hint)
    try:
        data = typed.serializer.to_python(value, round_trip=True, by_alias=False, warnings="error")
        text = tagged.dumps(data, tuples=True, enums=True)
        decoded = typed.validator.validate_python(tagged.loads(text), by_name=True, by_alias=False)
    except (ValueError, TypeError, NotEncodable):
        return None
    return Encoded(text, _PYTHON, decoded) if same(value, decoded) else None


def _as_member(value: Any, hint: Any) -> Encoded | None:
    """By the member of a union that brings the value back: of two that fit its data Pydantic may choose the other."""
    members = _members(hint)
    for name, member in members.items() if len(members) > 1 else ():
        encoded = _as_typed_json(value, member) or _as_typed_python(value, member)
        if encoded is not None:
            return encoded._replace(marks={**encoded.marks, "member": name})
    return None


def _members(hint: Any) -> dict[str, Any]:
    """What a declared type consists of, by name: the members of a union and of the unions in it, else itself."""
    bare = hint.__origin__ if typing.get_origin(hint) is Annotated else hint
    bare = getattr(bare, "__value__", bare)  # of an alias (type X = A | B)
    if typing.get_origin(bare) in (typing.Union, types.UnionType):
        return {name: member for part in typing.get_args(bare) for name, member in _members(part).items()}
    named = inspect.isclass(bare) and not typing.get_args(bare)
    return {f"{bare.__module__}.{bare.__qualname__}" if named else str(bare): hint}


def same(value: Any, decoded: Any) -> bool:  # noqa: PLR0911  a line per kind
    """Whether nothing was lost: equal, and of the same types down to the leaves, or of the declared one."""
    kind = type(value)
    if kind is int and type(decoded) is float:
        return bool(value == decoded)  # declared as float, where Python lets an int pass for one
    if type(decoded) is not kind:
        return False
    if kind in (list, tuple):
        return len(value) == len(decoded) and all(map(same, value, decoded))
    if kind is dict:
        return value.keys() == decoded.keys() and all(same(item, decoded[key]) for key, item in value.items())
    if is_model(kind):
        return all(same(getattr(value, part), getattr(decoded, part)) for part in _PARTS_OF_A_MODEL)
    if dataclasses.is_dataclass(value):
        return same(vars(value), vars(decoded)) if hasattr(value, "__dict__") else bool(value == decoded)
    if kind is float:
        return bool(value == decoded) or (math.isnan(value) and math.isnan(decoded))
    if kind is datetime and value.tzinfo is not None:
        # Python calls times of two zones unequal in the hour of a clock change.
        same_clock = value.replace(tzinfo=None) == decoded.replace(tzinfo=None)
        return same_clock and bool(value.utcoffset() == decoded.utcoffset())
    return bool(value == decoded)


_PARTS_OF_A_MODEL = ("__dict__", "__pydantic_extra__", "__pydantic_private__")


# -- declared types ----------------------------------------------------------------------------------------------------


def _new_adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # half of the package's import time, for the first typed step only

    return TypeAdapter(hint)


_cached_adapter = lru_cache(maxsize=1024)(_new_adapter)


def adapter(hint: Any) -> TypeAdapter[Any]:
    """Pydantic's adapter for a type; building one costs a hundred times its use, so each is built once."""
    try:
        return _cached_adapter(hint)
    except TypeError:  # an unhashable hint, such as Annotated[int, [...]]
        return _new_adapter(hint)


_declared: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def declared_type(action: Callable[..., Any]) -> Any:
    """What *action* says it returns (its result, if it is async); None where it says nothing that Pydantic can use."""
    while isinstance(action, partial):
        action = action.func
    function = getattr(action, "__func__", action)
    if not isinstance(function, types.FunctionType):
        function = type(function).__call__ if callable(function) else function
    if not getattr(function, "__annotations__", None):
        return None
    try:
        return _declared[function]
    except KeyError:
        _declared[function] = hint = _read_declared_type(function)
        return hint
    except TypeError:  # not weakly referable
        return _read_declared_type(function)


# Nor does a bare container say more than JSON does by itself.
_SAYS_NOTHING = (Any, object, inspect.Signature.empty, typing.NoReturn, dict, list)


def hints_of(function: Any) -> dict[str, Any]:
    """The annotations of a function as types, each by itself: one that cannot be resolved hides no other."""
    hints: dict[str, Any] = {}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    for name, note in getattr(function, "__annotations__", {}).items():
        alone = types.SimpleNamespace(__annotations__={name: note})
        with suppress(Exception):  # a name that exists for type checkers only
            hints |= typing.get_type_hints(alone, names, include_extras=True)
    return hints


def _read_declared_type(function: Any) -> Any:
    hint = hints_of(function).get("return", Any)
    origin = typing.get_origin(hint)
    if inspect.isclass(origin) and issubclass(origin, typing.Awaitable) and typing.get_args(hint):
        hint = typing.get_args(hint)[-1]  # Awaitable[T], Coroutine[Any, Any, T]
    if any(hint is nothing for nothing in _SAYS_NOTHING):
        return None
    return hint if usable(hint) else None


def usable(hint: Any) -> bool:
    """Whether Pydantic can read and write values of this type."""
    try:
        adapter(hint)
    except Exception:  # any class without a schema: httpx.Response, a TypeVar, ...
        return False
    return not isinstance(hint, str)  # a name, which means nothing here
