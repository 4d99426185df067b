"""Plain JSON in which types that JSON lacks have a tag: ``{"$type": "datetime", "$value": "..."}``.

A value comes back equal and of its type, or is refused. There are two exceptions, as in JSON: tuples become lists, and
the keys of a dict become strings. A *faithful* text has no exceptions.
"""

from __future__ import annotations

import base64
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json

TAG, CONTENT = "$type", "$value"
_DOLLAR = ord("$")


class NotEncodable(Exception):
    """A value has no faithful text. The message says why, and what to do."""


_TEXT = frozenset({str})
_SCALARS = _TEXT | {int, float, bool, type(None)}
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
}
_COLLECTIONS: dict[Any, str] = {set: "set", frozenset: "frozenset"}
_UNTAG: dict[str, Callable[[Any], Any]] = {
    **{tag: back for tag, _, back in _TAGGED.values()},
    "dict": dict,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}


_NO_LONG_NUMBER = 4096
"""Characters: a shorter text has no number of more than 4,300 digits, which Python refuses to read."""

KINDS = frozenset({*_SCALARS, dict, list, tuple, *_COLLECTIONS, *_TAGGED})
"""The types that can be written here. Values of all other types need a declared type."""


def dumps(value: Any, *, faithful: bool = False, enums: bool = False) -> str:
    """*value* as text. If *faithful*, tuples stay tuples, and keys stay what they are; *enums* become their values.

    Raises:
        NotEncodable: some part of it would not come back as it is.
    """
    try:
        if _survey(value, faithful=faithful, enums=enums):
            value = _plain(value, faithful=faithful)
        return _written(value)
    except (ValueError, RecursionError) as error:
        raise _endless(error) from None


def loads(text: str | bytes) -> Any:
    """What :func:`dumps` was given."""
    # Most values have no dollar. To look for its number in bytes takes a tenth of the time of a search for the text.
    if (_DOLLAR in text and b'"$type"' in text) if isinstance(text, bytes) else '"$type"' in text:
        return json.loads(text, object_hook=_untag)
    try:
        return from_json(text)
    except ValueError:  # a lone surrogate
        return json.loads(text)


def round_trip(value: Any, *, faithful: bool = False) -> tuple[str, Any]:
    """*value* as :func:`dumps` writes it, and what :func:`loads` makes of that.

    Raises:
        NotEncodable: as :func:`dumps`.
    """
    text = dumps(value, faithful=faithful)
    return text, _read_again(text)


def flat_round_trip(value: Any) -> tuple[str, Any] | None:
    """The same for a flat value, in a tenth of the time: it comes back as it is, or as a copy.

    None if it is not flat, or too long to be sure.
    """
    kind = type(value)
    if kind is dict:
        if not (_SCALARS.issuperset(map(type, value.values())) and _TEXT.issuperset(map(type, value))) or TAG in value:
            return None
        copy = value.copy()
    elif kind in _SCALARS:
        copy = value
    else:
        return None
    try:
        text = to_json(value, inf_nan_mode="constants").decode()
    except ValueError:  # a lone surrogate
        return None
    return (text, copy) if len(text) < _NO_LONG_NUMBER else None


def has_odd_times(value: Any, text: str) -> bool:
    """Whether *text* leaves out the name of a time zone, or a fold, that a time in *value* has."""
    if 'time","$value":' not in text:
        return False
    pending = [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind is datetime or kind is time:
            if item.fold or not (item.tzinfo is None or type(item.tzinfo) is timezone):
                return True
        elif kind is dict:
            pending += item
            pending += item.values()
        elif kind is list or kind is tuple or kind in _COLLECTIONS:
            pending += item
    return False


def as_in_json(item: Any) -> Any:
    """Data as it comes back from a text that is not *faithful*."""
    if type(item) is dict:
        return {_key(key): as_in_json(part) for key, part in item.items()}
    return [*map(as_in_json, item)] if type(item) in (list, tuple) else item


def _read_again(text: str) -> Any:
    try:
        return loads(text)
    except (ValueError, RecursionError) as error:
        raise _endless(error) from None


def _endless(error: Exception) -> NotEncodable:
    return NotEncodable(
        f"it contains itself, is nested too deeply, or has a number of thousands of digits ({error}): return plain "
        f"data from {{action}}, or pass serializer="
    )


def _written(value: Any) -> str:
    try:
        return to_json(value, inf_nan_mode="constants").decode()
    except ValueError:  # a lone surrogate, which the slower encoder writes as ASCII, or a value that contains itself
        return json.dumps(value, separators=(",", ":"))


def _survey(value: Any, *, faithful: bool, enums: bool) -> bool:
    """Whether anything in *value* needs a tag.

    Raises:
        NotEncodable: some part of it would not come back as it is.
    """
    tags = False
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind in _SCALARS or id(item) in seen:
            continue  # the encoder refuses a value that contains itself
        seen.add(id(item))
        parts: Iterable[Any] = ()
        if kind is dict:
            if not _TEXT.issuperset(map(type, item)):
                tags = True
                pending.extend(item if faithful else _checked_keys(item))
            tags = tags or TAG in item
            parts = item.values()
        elif kind is list or kind is tuple:
            tags = tags or (faithful and kind is tuple)
            parts = item
        elif kind in _COLLECTIONS:
            tags = True
            parts = item
        elif kind in _TAGGED or (enums and isinstance(item, Enum)):
            tags = True
        else:
            raise NotEncodable(_refusal(item, whole=item is value))
        if not _SCALARS.issuperset(map(type, parts)):  # most values have no further parts
            pending.extend(parts)
    return tags


def _checked_keys(item: dict[Any, Any]) -> Iterable[Any]:
    """The keys of a dict, unless JSON would lose some."""
    for key in item:
        if type(key) not in _SCALARS:
            raise NotEncodable(f"a dict key of type {type(key).__name__} has no JSON form: {key!r}")
    if len({_key(key) for key in item}) != len(item):
        raise NotEncodable(f"two keys of a dict become the same JSON string: {list(item)!r}")
    return item


def _key(key: Any) -> str:
    return key if type(key) is str else json.dumps(key)


def is_model(kind: Any) -> bool:
    """Whether *kind* is a class of Pydantic's models. Before Pydantic's models are imported there are none."""
    # Another thread may be importing that module just now: as long as it has no such class, nobody has a model.
    base = getattr(sys.modules.get("pydantic.main"), "BaseModel", None)
    return base is not None and inspect.isclass(kind) and issubclass(kind, base)


def _refusal(item: Any, *, whole: bool) -> str:
    kind = type(item).__name__
    if is_model(type(item)) or isinstance(item, Enum) or hasattr(type(item), "__dataclass_fields__"):
        hint = f"type_hint={kind}" if whole else f"the type of the whole result, such as type_hint=list[{kind}]"
        return f"a {kind} has no JSON form of its own: annotate {{action}} with its return type or pass {hint}"
    return (
        f"a {kind} has no JSON form: return plain data from {{action}}, declare its type with type_hint=, "
        f"or pass serializer="
    )


def _plain(item: Any, *, faithful: bool) -> Any:  # noqa: PLR0911  a line per kind
    """The same data in types that JSON has."""
    kind = type(item)
    if kind in _SCALARS:
        return item
    if kind is dict:
        if faithful and not _TEXT.issuperset(map(type, item)):
            return _tagged(
                "dict", ((_plain(key, faithful=True), _plain(part, faithful=True)) for key, part in item.items())
            )
        pairs = {_key(key): _plain(value, faithful=faithful) for key, value in item.items()}
        return _tagged("dict", pairs.items()) if TAG in pairs else pairs
    if kind is list or (kind is tuple and not faithful):
        return [_plain(value, faithful=faithful) for value in item]
    if kind is tuple:
        return _tagged("tuple", (_plain(value, faithful=True) for value in item))
    if kind in _COLLECTIONS:
        # A list cannot be an element of a set: tuples in it stay tuples.
        return _tagged(_COLLECTIONS[kind], (_plain(value, faithful=True) for value in item))
    if isinstance(item, Enum):
        return _plain(item.value, faithful=faithful)
    tag, to_text, _ = _TAGGED[kind]
    return {TAG: tag, CONTENT: to_text(item)}


def _tagged(tag: str, items: Iterable[Any]) -> dict[str, Any]:
    return {TAG: tag, CONTENT: [*items]}


def _untag(item: dict[str, Any]) -> Any:
    if len(item) != 2 or TAG not in item or CONTENT not in item:
        return item
    return _UNTAG[item[TAG]](item[CONTENT])
