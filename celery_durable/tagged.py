"""Plain JSON in which the kinds that JSON lacks are tagged: ``{"$type": "datetime", "$value": "..."}``.

A value comes back equal and of its type, or is refused. Two exceptions, as in JSON: tuples become lists, and the keys
of a dict become strings. Imports nothing of this package.
"""

from __future__ import annotations

import base64
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json

TAG, CONTENT = "$type", "$value"


class NotEncodable(Exception):
    """A value has no faithful text; the message says why and what to do."""


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
"""Characters; a number of more than 4,300 digits is not read again."""

KINDS = frozenset({*_SCALARS, dict, list, tuple, *_COLLECTIONS, *_TAGGED})
"""What can be written here; all else needs a declared type."""


def dumps(value: Any, *, tuples: bool = False, enums: bool = False, any_keys: bool = True) -> str:
    """*value* as text; *tuples* stay tuples, *enums* become their values, *any keys* become strings, or are refused.

    Raises:
        NotEncodable: some part of it would be degraded.
    """
    if _survey(value, tuples=tuples, enums=enums, any_keys=any_keys):
        value = _plain(value, tuples=tuples)
    return _written(value)


def loads(text: str | bytes) -> Any:
    """What :func:`dumps` was given."""
    if (b'"$type"' if isinstance(text, bytes) else '"$type"') in text:  # type: ignore[operator]
        return json.loads(text, object_hook=_untag)
    try:
        return from_json(text)
    except ValueError:  # a lone surrogate
        return json.loads(text)


def round_trip(value: Any, *, faithful: bool = False) -> tuple[str, Any]:
    """*value* as :func:`dumps` writes it, and what :func:`loads` makes of that; *faithful*: tuples and keys, too.

    Raises:
        NotEncodable: as :func:`dumps`.
    """
    if type(value) is dict and _is_flat(value):
        # It comes back as a copy of itself, which is made in a tenth of the time.
        text = _written(value)
        return text, value.copy() if len(text) < _NO_LONG_NUMBER else loads(text)
    text = dumps(value, tuples=faithful, any_keys=not faithful)
    return text, loads(text)


def _is_flat(item: dict[Any, Any]) -> bool:
    """Whether there is nothing in a dict that JSON does not have, and nothing to look into."""
    return _SCALARS.issuperset(map(type, item.values())) and _TEXT.issuperset(map(type, item)) and TAG not in item


def _written(value: Any) -> str:
    try:
        return to_json(value, inf_nan_mode="constants").decode()
    except ValueError:  # a lone surrogate, which the slower encoder writes as ASCII; or a value that contains itself
        return json.dumps(value, separators=(",", ":"))


def _survey(value: Any, *, tuples: bool, enums: bool, any_keys: bool) -> bool:
    """Refuse what would be degraded; whether anything in *value* needs a tag."""
    tags = False
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind in _SCALARS or id(item) in seen:
            continue  # what contains itself is left for the encoder to refuse
        seen.add(id(item))
        parts: Iterable[Any] = ()
        if kind is dict:
            tags = _check_keys(item, any_keys) or tags
            parts = item.values()
        elif kind is list or kind is tuple:
            tags = tags or (tuples and kind is tuple)
            parts = item
        elif kind in _COLLECTIONS:
            tags = True
            parts = item
        elif kind in _TAGGED or (enums and isinstance(item, Enum)):
            tags = True
        else:
            raise NotEncodable(_refusal(item, whole=item is value))
        if not _SCALARS.issuperset(map(type, parts)):  # most often there is nothing more to look at
            pending.extend(parts)
    return tags


def _check_keys(item: dict[Any, Any], any_keys: bool) -> bool:
    """Refuse keys that JSON would lose; whether the dict is to be rewritten: it looks like one of our tags, say."""
    if not _TEXT.issuperset(map(type, item)):
        if not any_keys:
            raise NotEncodable(f"a dict has keys that are no strings: {list(item)!r}")
        for key in item:
            if type(key) not in _SCALARS:
                raise NotEncodable(f"a dict key of type {type(key).__name__} has no JSON form: {key!r}")
        if len({_key(key) for key in item}) != len(item):
            raise NotEncodable(f"two keys of a dict become the same JSON string: {list(item)!r}")
        return True
    return TAG in item


def _key(key: Any) -> str:
    return key if type(key) is str else json.dumps(key)


def is_model(kind: Any) -> bool:
    """Whether *kind* is a class of Pydantic's models; there are none before that part of Pydantic is imported."""
    models = sys.modules.get("pydantic.main")
    return models is not None and inspect.isclass(kind) and issubclass(kind, models.BaseModel)


def _refusal(item: Any, *, whole: bool) -> str:
    kind = type(item).__name__
    if is_model(type(item)) or isinstance(item, Enum) or hasattr(type(item), "__dataclass_fields__"):
        hint = f"type_hint={kind}" if whole else f"the type of the whole result, such as type_hint=list[{kind}]"
        return f"a {kind} has no JSON form of its own: annotate {{action}} with its return type or pass {hint}"
    return (
        f"a {kind} has no JSON form: return plain data from {{action}}, declare its type with type_hint=, "
        f"or pass serializer="
    )


def _plain(item: Any, *, tuples: bool) -> Any:  # noqa: PLR0911  a line per kind
    """The same data in what JSON has."""
    kind = type(item)
    if kind in _SCALARS:
        return item
    if kind is dict:
        pairs = {_key(key): _plain(value, tuples=tuples) for key, value in item.items()}
        return _tagged("dict", pairs.items()) if TAG in pairs else pairs
    if kind is list or (kind is tuple and not tuples):
        return [_plain(value, tuples=tuples) for value in item]
    if kind is tuple:
        return _tagged("tuple", (_plain(value, tuples=True) for value in item))
    if kind in _COLLECTIONS:
        # A list cannot be an element of a set: tuples in it stay tuples.
        return _tagged(_COLLECTIONS[kind], (_plain(value, tuples=True) for value in item))
    if isinstance(item, Enum):
        return _plain(item.value, tuples=tuples)
    tag, to_text, _ = _TAGGED[kind]
    return {TAG: tag, CONTENT: to_text(item)}


def _tagged(tag: str, items: Iterable[Any]) -> dict[str, Any]:
    return {TAG: tag, CONTENT: [*items]}


def _untag(item: dict[str, Any]) -> Any:
    if len(item) != 2 or TAG not in item or CONTENT not in item:
        return item
    return _UNTAG[item[TAG]](item[CONTENT])
