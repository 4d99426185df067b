"""Value ⇄ JSON text. A value comes back equal and of its type, or is refused; nothing is degraded silently.

Two ways to text: *typed*, through Pydantic, where the result has a declared type, and *plain*, JSON in which the kinds
that JSON lacks are tagged. Imports neither Celery nor Redis; kombu serves for named serializers and compression.
"""

from __future__ import annotations

import base64
import inspect
import json
import types
import typing
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable
from uuid import UUID
from weakref import WeakKeyDictionary

import pydantic
from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from .exceptions import ConfigurationError

TAG, CONTENT = "$type", "$value"

ACCEPT_ANY = frozenset({"pickle"})
"""For a check of names only: what the app accepts is known when a serializer is used."""


@runtime_checkable
class Serializer(Protocol):
    """What ``serializer=`` takes besides a name of kombu's registry."""

    def serialize(self, obj: Any) -> bytes:
        """The value as bytes."""
        ...

    def deserialize(self, data: bytes) -> Any:
        """The value that ``serialize`` was given."""
        ...


class NotEncodable(Exception):
    """A value has no faithful text; the message says why and what to do."""


class Encoded(NamedTuple):
    """A value as JSON text, with the marks that say how to read it again.

    ``value`` is what :func:`decode` makes of it: first run and replay hand out the same.
    """

    text: str
    marks: dict[str, str]
    value: Any


_NO_MARKS: dict[str, str] = {}
_PLAIN_MARKS = {"encoding": "plain"}


def encode(
    value: Any,
    hint: Any = None,
    *,
    serializer: str | Serializer | None = None,
    compression: str | None = None,
    accept: frozenset[str] = frozenset({"json"}),
) -> Encoded:
    """*value* as text, by its declared type *hint* (None: undeclared) or by a custom serializer."""
    if serializer is not None and serializer != "json":
        return _encode_custom(value, serializer, compression, accept)
    encoded = _encode_json(value, hint)
    return encoded if compression is None else _compress(encoded, compression)


def decode(
    text: str | bytes,
    marks: dict[str, str],
    hint: Any = None,
    *,
    serializer: str | Serializer | None = None,
    accept: frozenset[str] = frozenset({"json"}),
) -> Any:
    """The value that *text* and *marks* keep."""
    if "serializer" in marks:
        return _decode_custom(text, marks, serializer, accept)
    if "compression" in marks:
        text = _decompress(text, marks["compression"])
    encoding = marks.get("encoding")
    if hint is None or encoding == "plain":
        return _loads(text)
    if encoding == "python":
        return adapter(hint).validate_python(_loads(text))
    return adapter(hint).validate_json(text)


# -- JSON, typed and plain ---------------------------------------------------------------------------------------------


def _encode_json(value: Any, hint: Any) -> Encoded:
    if hint is not None:
        for way in (_as_typed_json, _as_typed_python):
            encoded = way(value, hint)
            if encoded is not None:
                return encoded
    text = _dumps(value)
    return Encoded(text, _NO_MARKS if hint is None else _PLAIN_MARKS, _loads(text))


def _as_typed_json(value: Any, hint: Any) -> Encoded | None:
    """Pydantic's own JSON; None where it would lose something (bytes that are not UTF-8, NaN, a subclass's fields)."""
    typed = adapter(hint)
    try:
        raw = typed.serializer.to_json(value, warnings="error")
        decoded = typed.validator.validate_json(raw)
    except (ValueError, TypeError):  # pydantic's errors are ValueErrors
        return None
    return Encoded(raw.decode(), _NO_MARKS, decoded) if _same(value, decoded) else None


def _as_typed_python(value: Any, hint: Any) -> Encoded | None:
    """Pydantic down to plain Python, then tagged JSON: slower, keeps what JSON alone cannot."""
    typed = adapter(hint)
    try:
        text = _dumps(typed.dump_python(value, warnings="error"), enums=True)
        decoded = typed.validate_python(_loads(text))
    except (ValueError, TypeError, NotEncodable):
        return None
    return Encoded(text, {"encoding": "python"}, decoded) if _same(value, decoded) else None


def _same(value: Any, decoded: Any) -> bool:
    # NaN is not equal to itself, but it reads the same.
    return bool(value == decoded) or repr(value) == repr(decoded)


_SCALARS = frozenset({str, int, float, bool, type(None)})
_TAGGED: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    datetime: ("datetime", datetime.isoformat, datetime.fromisoformat),
    date: ("date", date.isoformat, date.fromisoformat),
    time: ("time", time.isoformat, time.fromisoformat),
    timedelta: (
        "timedelta",
        lambda delta: [delta.days, delta.seconds, delta.microseconds],
        lambda parts: timedelta(*parts),
    ),
    UUID: ("uuid", str, UUID),
    Decimal: ("decimal", str, Decimal),
    bytes: ("bytes", lambda raw: base64.b64encode(raw).decode(), base64.b64decode),
    set: ("set", list, set),
    frozenset: ("frozenset", list, frozenset),
}
_UNTAG = {tag: (back, kind) for kind, (tag, _, back) in _TAGGED.items()}


def _dumps(value: Any, *, enums: bool = False) -> str:
    kinds = _survey(value, enums)
    if _ESCAPED in kinds:
        value = _escape(value)
    elif not kinds:
        try:
            return to_json(value, inf_nan_mode="constants").decode()
        except ValueError:  # a lone surrogate, which the slower encoder writes as ASCII
            pass
    return _to_json(value)


def _loads(text: str | bytes) -> Any:
    if (b'"$type"' if isinstance(text, bytes) else '"$type"') in text:  # type: ignore[operator]
        return json.loads(text, object_hook=_untag)
    try:
        return from_json(text)
    except ValueError:  # a lone surrogate
        return json.loads(text)


_ESCAPED = "escaped"


def _survey(value: Any, enums: bool) -> set[Any]:
    """Refuse what JSON would degrade; the kinds in *value* that JSON lacks.

    ``_ESCAPED`` is among them if a dict of the user's looks like one of our tags.
    """
    kinds: set[Any] = set()
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind in _SCALARS or id(item) in seen:
            continue  # what contains itself is left for the encoder to refuse
        seen.add(id(item))
        if kind is dict:
            for key in item:
                if type(key) is not str:
                    _check_keys(item)
                    kinds.add(dict)
                    break
            if TAG in item:
                kinds.add(_ESCAPED)
            pending.extend(item.values())
        elif kind is list or kind is tuple:
            pending.extend(item)
        elif kind in _TAGGED:
            kinds.add(kind)
            if kind is set or kind is frozenset:
                pending.extend(item)
        elif enums and isinstance(item, Enum):
            kinds.add(_ESCAPED)
        else:
            raise NotEncodable(_refusal(item))
    return kinds


def _check_keys(item: dict[Any, Any]) -> None:
    for key in item:
        if type(key) not in _SCALARS:
            raise NotEncodable(f"a dict key of type {type(key).__name__} has no JSON form: {key!r}")
    if any(type(key) is not str for key in item) and len(json.loads(json.dumps(dict.fromkeys(item)))) != len(item):
        raise NotEncodable(f"two keys of a dict become the same JSON string: {list(item)!r}")


def _refusal(item: Any) -> str:
    kind = type(item).__name__
    if isinstance(item, (pydantic.BaseModel, Enum)) or hasattr(type(item), "__dataclass_fields__"):
        return f"a {kind} needs a declared type: annotate {{action}} with its return type or pass type_hint={kind}"
    return (
        f"a {kind} has no JSON form: return plain data from {{action}}, declare its type with type_hint=, "
        f"or pass serializer="
    )


def _tag(item: Any) -> dict[str, Any]:
    tag, to_json, _ = _TAGGED[type(item)]
    return {TAG: tag, CONTENT: to_json(item)}


_to_json = json.JSONEncoder(default=_tag, separators=(",", ":")).encode


def _untag(item: dict[str, Any]) -> Any:
    if len(item) != 2 or TAG not in item or CONTENT not in item:
        return item
    if item[TAG] == "dict":
        return dict(item[CONTENT])
    return _UNTAG[item[TAG]][0](item[CONTENT])


def _escape(item: Any) -> Any:
    """The same data with dicts that look like a tag written as pairs, and enums as their values."""
    if isinstance(item, Enum):
        return _escape(item.value)
    if isinstance(item, dict):
        pairs = {key: _escape(value) for key, value in item.items()}
        return {TAG: "dict", CONTENT: list(pairs.items())} if TAG in pairs else pairs
    if isinstance(item, (list, tuple)):
        return [_escape(value) for value in item]
    if isinstance(item, (set, frozenset)):
        return type(item)(_escape(value) for value in item)
    return item


# -- declared types ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _cached_adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def adapter(hint: Any) -> TypeAdapter[Any]:
    """Pydantic's adapter for a type; building one costs a hundred times its use, so each is built once."""
    try:
        return _cached_adapter(hint)
    except TypeError:  # an unhashable hint, such as Annotated[int, [...]]
        return TypeAdapter(hint)


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


def _read_declared_type(function: Any) -> Any:
    try:
        hint = typing.get_type_hints(function, include_extras=True).get("return", Any)
    except Exception:  # a name that exists for type checkers only: as good as no annotation
        return None
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
    return True


# -- custom serializers and compression --------------------------------------------------------------------------------


def _encode_custom(
    value: Any, serializer: str | Serializer, compression: str | None, accept: frozenset[str]
) -> Encoded:
    if isinstance(serializer, str):
        content_type, charset, data = _kombu_dumps(value, serializer, accept)
        marks = {"serializer": serializer, "content_type": content_type, "charset": charset}
    else:
        data = serializer.serialize(value)
        marks = {"serializer": f"{type(serializer).__module__}.{type(serializer).__qualname__}"}
        if not isinstance(data, bytes):
            raise NotEncodable(f"{marks['serializer']}.serialize must return bytes, got {type(data).__name__}")
    raw = data.encode() if isinstance(data, str) else bytes(data)
    if compression is not None:
        raw, marks["compression"] = _squeeze(raw, compression)
    text = json.dumps(base64.b64encode(raw).decode())
    return Encoded(text, marks, _decode_custom(text, marks, serializer, accept))


def _decode_custom(
    text: str | bytes, marks: dict[str, str], serializer: str | Serializer | None, accept: frozenset[str]
) -> Any:
    raw = base64.b64decode(json.loads(text))
    if "compression" in marks:
        raw = _expand(raw, marks["compression"])
    if "content_type" in marks:
        from kombu.serialization import loads

        check_serializer(marks["serializer"], accept)
        return loads(raw, marks["content_type"], marks["charset"], accept={marks["content_type"]})
    if isinstance(serializer, str) or serializer is None:
        raise NotEncodable(f"recorded by the serializer {marks['serializer']}, which this step no longer passes")
    return serializer.deserialize(raw)


def _kombu_dumps(value: Any, serializer: str, accept: frozenset[str]) -> tuple[str, str, str | bytes]:
    from kombu.serialization import dumps

    check_serializer(serializer, accept)
    return dumps(value, serializer)


def check_serializer(serializer: Any, accept: frozenset[str]) -> None:
    """Refuse a serializer that is unknown, or that runs code from the journal without the app's ``accept_content``."""
    if not isinstance(serializer, str):
        if not isinstance(serializer, Serializer):
            raise ConfigurationError(
                f"serializer must be a name of kombu's registry or have serialize() and deserialize(), "
                f"got {serializer!r}"
            )
        return
    import kombu.serialization

    known: dict[str, str] = kombu.serialization.registry.name_to_type  # type: ignore[attr-defined]
    if serializer not in known:
        raise ConfigurationError(f"serializer {serializer!r} is not registered with kombu; known: {sorted(known)}")
    content_type = known[serializer]
    if serializer == "pickle" and not accept & {"pickle", content_type}:
        raise ConfigurationError(
            "serializer 'pickle' runs code found in the journal: allow it with the app's accept_content"
        )


def check_compression(compression: str) -> None:
    """Refuse a compression that kombu does not know."""
    from kombu.compression import encoders

    # kombu knows each by its short name and by its content type; the short names are listed nowhere.
    try:
        _squeeze(b"", compression)
    except KeyError:
        raise ConfigurationError(
            f"compression {compression!r} is not registered with kombu; known: {sorted(encoders())}"
        ) from None


def _compress(encoded: Encoded, compression: str) -> Encoded:
    raw, method = _squeeze(encoded.text.encode(), compression)
    text = json.dumps(base64.b64encode(raw).decode())
    return Encoded(text, {**encoded.marks, "compression": method}, encoded.value)


def _decompress(text: str | bytes, method: str) -> bytes:
    return _expand(base64.b64decode(json.loads(text)), method)


def _squeeze(raw: bytes, compression: str) -> tuple[bytes, str]:
    from kombu.compression import compress

    return compress(raw, compression)


def _expand(raw: bytes, content_type: str) -> bytes:
    from kombu.compression import decompress

    return decompress(raw, content_type)
