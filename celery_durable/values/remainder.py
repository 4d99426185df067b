"""What the text of a value does not say: it is found when the value is written, and put back when it is read.

JSON does not say which fields of a model were set, what time zone a time has, or which of two equal times at a clock
change is meant; Pydantic's JSON does not, either. These facts are kept as notes beside the text. The text can be read
without them.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, time
from decimal import Decimal
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from .tagged import NotEncodable, dumps, is_model, loads

Note = list[Any]
"""``[path, what, content]``: the part at *path* is to get *content* as its *what* (``"zone"``, for example).

A path has names of fields, and numbers of items in lists and dicts."""

_NOTHING: list[Note] = []
_MISSING = object()


def same(value: Any, decoded: Any) -> bool:
    """Whether nothing was lost: both are equal, and all their parts have the same types, or the declared ones."""
    return remainder_of(value, decoded) == _NOTHING


def remainder_of(value: Any, decoded: Any) -> list[Note] | None:
    """What *decoded* lacks of *value*; None if they differ in something that no note can put back."""
    kind = type(value)
    if kind is int and type(decoded) is float:
        # The declared type is float, and Python accepts an int as one.
        return _if(value == decoded)
    if type(decoded) is not kind:
        return None
    if kind in _PLAIN:
        return _if(value == decoded)
    return _comparison_of(kind)(value, decoded)


def is_certain(notes: list[Note]) -> bool:
    """Whether these notes give back the value in any case, so that nobody has to compare."""
    return all(what in ("unset", "set") for _, what, _ in notes)


def put_back(decoded: Any, notes: Iterable[Note]) -> Any:
    """*decoded* with what it lacked. A note about a part that is no longer there is ignored."""
    for path, what, content in notes:
        if what in _IN_PLACE:
            part = decoded
            for where in path:
                part = _part(part, where)
            if hasattr(part, "__pydantic_fields_set__"):
                _IN_PLACE[what](part, content)
        else:
            decoded = _with(decoded, path, what, content)
    return decoded


def _if(kept: bool) -> list[Note] | None:
    return _NOTHING if kept else None


def _of_number(value: float, decoded: float) -> list[Note] | None:
    if math.isnan(value):
        return _if(math.isnan(decoded))
    return _if(value == decoded and math.copysign(1, value) == math.copysign(1, decoded))


def _of_complex(value: complex, decoded: complex) -> list[Note] | None:
    return _if(_of_number(value.real, decoded.real) == _of_number(value.imag, decoded.imag) == _NOTHING)


def _of_decimal(value: Decimal, decoded: Decimal) -> list[Note] | None:
    # A NaN equals nothing, and a signaling NaN cannot even be compared.
    return _if(str(value) == str(decoded))


def _of_opaque(value: Any, decoded: Any) -> list[Note] | None:
    return _if(value == decoded)


def _of_scalar(value: Any, decoded: Any) -> list[Note] | None:
    """A value whose class is derived from one of Python's."""
    return _if(value == decoded and _same_attributes(value, decoded))


def _of_parts(parts: Iterable[tuple[str | int, Any, Any]]) -> list[Note] | None:
    """Each of the *parts* is (where it is, the part of the value, the decoded part)."""
    notes = _NOTHING
    for where, value, decoded in parts:
        found = remainder_of(value, decoded)
        if found is None:
            return None
        if found:
            notes = [*notes, *([[where, *path], what, content] for path, what, content in found)]
    return notes


def _of_names(value: dict[str, Any], decoded: dict[str, Any]) -> list[Note] | None:
    """Attributes by their names."""
    if value.keys() != decoded.keys():
        return None
    return _of_parts((name, part, decoded[name]) for name, part in value.items())


def _of_sequence(value: Any, decoded: Any) -> list[Note] | None:
    if len(value) != len(decoded) or not _same_attributes(value, decoded):
        return None
    if isinstance(value, deque) and value.maxlen != decoded.maxlen:
        return None
    return _of_parts((number, *pair) for number, pair in enumerate(zip(value, decoded, strict=True)))


def _of_set(value: Any, decoded: Any) -> list[Note] | None:
    if value != decoded or not _same_attributes(value, decoded):
        return None
    itself = {item: item for item in decoded}
    # The items of a set have no numbers, so nothing can be put back into it.
    return _if(all(same(item, itself[item]) for item in value))


def _of_dict(value: Any, decoded: Any) -> list[Note] | None:
    if value.keys() != decoded.keys() or not _same_attributes(value, decoded):
        return None
    if isinstance(value, OrderedDict) and list(value) != list(decoded):
        return None
    if isinstance(value, defaultdict) and value.default_factory is not decoded.default_factory:
        return None
    if not all(type(key) is str for key in value) or not all(type(key) is str for key in decoded):
        itself = {key: key for key in decoded}
        if not all(same(key, itself[key]) for key in value):
            return None
    return _of_parts((number, value[key], item) for number, (key, item) in enumerate(decoded.items()))


def _of_model(value: Any, decoded: Any) -> list[Note] | None:
    notes = _of_names(_own(value), _own(decoded))
    if value.__pydantic_extra__ or decoded.__pydantic_extra__:
        extra = _of_names(value.__pydantic_extra__ or {}, decoded.__pydantic_extra__ or {})
        notes = None if notes is None or extra is None else notes + extra
    if notes is None:
        return None
    were, are = value.__pydantic_fields_set__, decoded.__pydantic_fields_set__
    if were != are:
        changes = [("unset", are - were), ("set", were - are)]
        notes = [*notes, *([[], what, sorted(names)] for what, names in changes if names)]
    if same(value.__pydantic_private__, decoded.__pydantic_private__):
        return notes
    return [*notes, [[], "private", _privately(value.__pydantic_private__)]]


def _privately(attributes: dict[str, Any] | None) -> Any:
    """The private attributes of a model as text; None if they are not plain data."""
    with suppress(NotEncodable):
        return dumps(attributes, faithful=True)
    return None


def _of_dataclass(value: Any, decoded: Any) -> list[Note] | None:
    names = [field.name for field in dataclasses.fields(value)]
    if _own(value).keys() - names != _own(decoded).keys() - names:
        return None
    names += _own(value).keys() - names
    pairs = [(name, getattr(value, name, _MISSING), getattr(decoded, name, _MISSING)) for name in names]
    return _of_parts(pair for pair in pairs if pair[1] is not pair[2])


def _of_time(value: Any, decoded: Any) -> list[Note] | None:
    if value.replace(tzinfo=None, fold=0) != decoded.replace(tzinfo=None, fold=0):
        return None
    if value.utcoffset() != decoded.utcoffset():
        return None
    # A zone without a key was read from a file. Its offset is kept, as that of any other class of zones.
    if isinstance(value.tzinfo, ZoneInfo) and value.tzinfo.key is not None:
        alike = value.tzinfo is decoded.tzinfo and value.fold == decoded.fold
        return _NOTHING if alike else [[[], "zone", [value.tzinfo.key, value.fold]]]
    if value.tzinfo is None and value.fold != decoded.fold:
        return [[[], "fold", value.fold]]
    return _if((value.tzinfo is None) == (decoded.tzinfo is None))


def _own(item: Any) -> dict[str, Any]:
    """The attributes of an object, without those that it has computed from others and can compute again."""
    kept: dict[str, Any] = getattr(item, "__dict__", {})
    kind: Any = type(item)
    computed = _computed_by(kind)
    return {name: part for name, part in kept.items() if name not in computed} if computed else kept


@lru_cache(maxsize=1024)
def _computed_by(kind: type) -> frozenset[str]:
    return frozenset(
        name for base in kind.__mro__ for name, part in vars(base).items() if isinstance(part, cached_property)
    )


def _same_attributes(value: Any, decoded: Any) -> bool:
    """Whether two values of a derived class have the same attributes."""
    mine, theirs = getattr(value, "__dict__", None), getattr(decoded, "__dict__", None)
    return not (mine or theirs) or same(mine, theirs)


_PLAIN = frozenset({str, int, bool, type(None), bytes})
_KINDS: dict[type, Callable[[Any, Any], list[Note] | None]] = {
    dict: _of_dict,
    list: _of_sequence,
    tuple: _of_sequence,
    float: _of_number,
    complex: _of_complex,
    Decimal: _of_decimal,
    datetime: _of_time,
    time: _of_time,
}
_FAMILIES: tuple[tuple[Any, Callable[[Any, Any], list[Note] | None]], ...] = (
    (dict, _of_dict),
    ((list, tuple, deque), _of_sequence),
    ((set, frozenset), _of_set),
    ((str, int, float, bytes), _of_scalar),
)


def _find_comparison(kind: type) -> Callable[[Any, Any], list[Note] | None]:
    if kind in _KINDS:
        return _KINDS[kind]
    if is_model(kind):
        return _of_model
    for bases, comparison in _FAMILIES:
        if issubclass(kind, bases):
            return comparison
    return _of_dataclass if dataclasses.is_dataclass(kind) else _of_opaque


_comparison_of: Callable[[Any], Callable[[Any, Any], list[Note] | None]] = lru_cache(maxsize=1024)(_find_comparison)


# -- putting back ------------------------------------------------------------------------------------------------------


def _with(item: Any, path: list[Any], what: str, content: Any) -> Any:
    if not path:
        return _INSTEAD[what](item, content) if isinstance(item, (datetime, time)) else item
    where, *further = path
    part = _part(item, where)
    if part is _MISSING:
        return item
    changed = _with(part, further, what, content)
    return item if changed is part else _replaced(item, where, changed)


def _part(item: Any, where: Any) -> Any:
    if type(where) is str:
        return getattr(item, where, _MISSING)
    if isinstance(item, dict):
        return next(islice(item.values(), where, None), _MISSING)
    return item[where] if isinstance(item, (list, tuple, deque)) and where < len(item) else _MISSING


def _replaced(item: Any, where: Any, part: Any) -> Any:
    if isinstance(where, str):
        if is_model(type(item)):
            kept = item.__dict__ if where in item.__dict__ else item.__pydantic_extra__
            kept[where] = part
        else:
            object.__setattr__(item, where, part)
        return item
    if isinstance(item, tuple):
        parts = [*item[:where], part, *item[where + 1 :]]
        make: Callable[[list[Any]], Any] = getattr(item, "_make", type(item))
        return make(parts)
    item[list(item)[where] if isinstance(item, dict) else where] = part
    return item


def _unset(model: Any, names: list[str]) -> None:
    model.__pydantic_fields_set__.difference_update(names)


def _set(model: Any, names: list[str]) -> None:
    model.__pydantic_fields_set__.update(names)


def _private(model: Any, attributes: str | None) -> None:
    if attributes is not None:
        object.__setattr__(model, "__pydantic_private__", loads(attributes))


def _folded(item: Any, fold: int) -> Any:
    return item.replace(fold=fold)


def _zoned(item: Any, content: list[Any]) -> Any:
    key, fold = content
    zone = ZoneInfo(key)
    zoned = item.replace(tzinfo=zone, fold=fold)
    # The rules of the zone may have changed since: the moment counts, and not the clock time.
    return zoned if zoned.utcoffset() == item.utcoffset() else item.astimezone(zone)


_IN_PLACE: dict[str, Callable[[Any, Any], None]] = {"unset": _unset, "set": _set, "private": _private}
_INSTEAD: dict[str, Callable[[Any, Any], Any]] = {"fold": _folded, "zone": _zoned}
