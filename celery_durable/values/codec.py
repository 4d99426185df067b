"""A value as text, and the text as a value again: equal and of its type, or refused. Nothing is lost silently.

A custom serializer comes first. Without one, a value that has a declared type goes through Pydantic if plain JSON does
not keep it; all other values are :mod:`tagged` JSON.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any, NamedTuple

from . import registry, serializers, tagged
from .registry import JSON_ONLY
from .remainder import is_certain, put_back, remainder_of, same
from .serializers import Metadata, Serializer
from .tagged import NotEncodable
from .unvalidated import declared

__all__ = [
    "Encoded",
    "NotEncodable",
    "decode",
    "encode",
    "same",
    "seems_large",
]


class Encoded(NamedTuple):
    """A value as JSON text, with the metadata that says how to read it again.

    ``value`` is what :func:`decode` makes of the text. So the first execution returns what a replay will return.
    """

    text: str
    metadata: Metadata
    value: Any


_KNOWN = frozenset({"encoding", "read", "member", "rest", "serializer", "content_type", "charset", "compression"})
_ENCODINGS = ("typed", "python")
_NO_METADATA: Metadata = {}
_TYPED: Metadata = {"encoding": "typed"}
_PYTHON: Metadata = {"encoding": "python"}


def encode(
    value: Any,
    hint: Any = None,
    *,
    serializer: str | Serializer | None = None,
    compression: str | None = None,
    accept: frozenset[str] = JSON_ONLY,
) -> Encoded:
    """*value* as text, by its declared type *hint* (None if it has none) or by a custom serializer.

    *accept* holds what the app accepts of serialized content.

    Raises:
        NotEncodable: some part of it would not come back as it is.
    """
    if serializer is not None and serializer != "json":
        return _encode_custom(value, serializer, compression, accept)
    if compression is None and (flat := tagged.flat_round_trip(value)):
        return Encoded(flat[0], _NO_METADATA, flat[1])
    encoded = _encode_json(value, hint)
    if compression is None:
        return encoded
    raw, method = registry.compress(encoded.text.encode(), compression)
    return Encoded(serializers.as_text(raw), {**encoded.metadata, "compression": method}, encoded.value)


_PARTS = 200
_SHORT = frozenset({int, float, bool, type(None)})


def seems_large(value: Any, size: int) -> bool:
    """Whether *value* has more than *size* characters, as far as a quick look tells.

    A value of many parts counts as large.
    """
    kind = type(value)
    if kind is str or kind is bytes:
        return len(value) > size
    if kind in tagged.KINDS and not isinstance(value, (dict, list, tuple, set, frozenset)):
        return False
    parts, pending = 0, [value]
    while pending:
        part = pending.pop()
        parts += 1
        if type(part) in _SHORT:
            continue
        if isinstance(part, (str, bytes, bytearray)):
            size -= len(part)
        elif type(part) is dict or isinstance(part, Mapping):
            size -= len(part)
            pending += islice(part.values(), _PARTS)
        elif isinstance(part, (list, tuple, set, frozenset)):
            size -= len(part)
            pending += islice(part, _PARTS)
        elif hasattr(part, "__dict__"):
            pending += islice(vars(part).values(), _PARTS)
        if size < 0 or parts + len(pending) > _PARTS:
            return True
    return False


def decode(
    text: str | bytes,
    metadata: Metadata,
    hint: Any = None,
    *,
    serializer: str | Serializer | None = None,
    accept: frozenset[str] = JSON_ONLY,
) -> Any:
    """The value that *text* and *metadata* keep.

    Raises:
        NotEncodable: this version, or this step, does not know how to read it.
        Exception: the value is not of its declared type, *hint*, or the text is damaged.
    """
    if not metadata:
        return tagged.loads(text)
    if not metadata.keys() <= _KNOWN or metadata.get("encoding", "typed") not in _ENCODINGS:
        raise NotEncodable(f"recorded in a way that this version does not know: {dict(metadata)}")
    if "serializer" in metadata:
        return _decode_custom(text, metadata, serializer, accept)
    if "compression" in metadata:
        text = registry.decompress(serializers.as_bytes(text), metadata["compression"])
    value = _read(text, metadata, hint)
    return put_back(value, json.loads(metadata["rest"])) if "rest" in metadata else value


def _read(text: str | bytes, metadata: Metadata, hint: Any) -> Any:
    encoding = metadata.get("encoding")
    if encoding is None:
        return tagged.loads(text)
    if hint is None:
        raise NotEncodable("recorded by its declared type, which the action no longer declares")
    if "member" in metadata:
        members = _members(hint)
        if metadata["member"] not in members:
            raise NotEncodable(f"recorded as {metadata['member']}, which is not in the declared type any more")
        hint = members[metadata["member"]]
    refused: Exception | None = None
    for validator in _validators(hint, metadata.get("read", "")):
        try:
            if encoding == "python":
                return validator.validate_python(tagged.loads(text), by_name=True, by_alias=False)
            return validator.validate_json(text, by_name=True, by_alias=False)
        except Exception as error:
            refused = refused or error
    assert refused is not None  # noqa: S101
    raise refused


def _validators(hint: Any, read: str) -> Iterator[Any]:
    """The ways to read a value, best first; the next one is for a value that the last one has refused.

    *read* says which way gave back the value when it was recorded. This way comes first as long as the type has the
    shape that it had then. If the type has changed, or nothing is known of it (before version 0.2), the type itself
    comes first: it may know how to read old values.
    """
    known = declared(hint)
    way, _, shape = read.partition(" ")
    unchanged = shape == known.shape
    if unchanged and way == "bare":
        yield known.bare
    if unchanged and way == "lenient":
        yield known.lenient
    yield known.adapter.validator
    if not unchanged:
        yield known.lenient
        yield known.bare


def _encode_custom(
    value: Any, serializer: str | Serializer, compression: str | None, accept: frozenset[str]
) -> Encoded:
    raw, metadata = serializers.dump(value, serializer, accept)
    if compression is not None:
        raw, metadata["compression"] = registry.compress(raw, compression)
    text = serializers.as_text(raw)
    return Encoded(text, metadata, _decode_custom(text, metadata, serializer, accept))


def _decode_custom(
    text: str | bytes, metadata: Metadata, serializer: str | Serializer | None, accept: frozenset[str]
) -> Any:
    raw = serializers.as_bytes(text)
    if "compression" in metadata:
        raw = registry.decompress(raw, metadata["compression"])
    return serializers.load(raw, metadata, serializer, accept)


# -- JSON, typed and plain ---------------------------------------------------------------------------------------------


def _encode_json(value: Any, hint: Any) -> Encoded:
    if hint is None:
        return _plainly(value)
    for way in (_as_plain_data, _as_typed_json, _as_typed_python, _as_member):
        encoded = way(value, hint)
        if encoded is not None:
            return encoded
    return _despite_its_type(value, hint)


def _plainly(value: Any, *, faithful: bool = False) -> Encoded:
    text, decoded = tagged.round_trip(value, faithful=faithful)
    if not tagged.has_odd_times(value, text):
        return Encoded(text, _NO_METADATA, decoded)
    encoded = _with_the_rest(text, _NO_METADATA, value if faithful else tagged.as_in_json(value), decoded)
    if encoded is None:
        raise NotEncodable(
            "a time in it has a time zone that is no zoneinfo.ZoneInfo and no fixed offset: return it as UTC from "
            "{action}, or pass serializer="
        )
    return encoded


def _with_the_rest(text: str, metadata: Metadata, value: Any, decoded: Any) -> Encoded | None:
    """*text*, from which *decoded* was read, with what *decoded* lacks of *value*; None if the two would differ."""
    rest = remainder_of(value, decoded)
    if not rest:
        return None if rest is None else Encoded(text, metadata, decoded)
    decoded = put_back(decoded, rest)
    kept = is_certain(rest) or same(value, decoded)
    return Encoded(text, {**metadata, "rest": json.dumps(rest)}, decoded) if kept else None


def _despite_its_type(value: Any, hint: Any) -> Encoded:
    """Tagged JSON of a value that is not of its declared type. An enum is taken if its value is of that type."""
    try:
        return _plainly(value, faithful=True)
    except NotEncodable as refused:
        reason = str(refused).partition(":")[0]  # without the advice, which is for values without a declared type
    with suppress(Exception):
        text = tagged.dumps(value, faithful=True, enums=True)
        decoded = tagged.loads(text)
        if value == decoded and same(declared(hint).adapter.validator.validate_python(value), decoded):
            return Encoded(text, _NO_METADATA, decoded)
    name = hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else hint
    raise NotEncodable(
        f"{reason}, and by the declared type, {name}, Pydantic does not give it back equal and of its type in all "
        f"its parts: declare the type that it has (a union with a discriminator, say), return plain data from "
        f"{{action}}, or pass serializer="
    )


def _as_plain_data(value: Any, hint: Any) -> Encoded | None:  # noqa: ARG001
    """Tagged JSON, three times as fast as Pydantic's; None if only the declared type can give the value back."""
    if type(value) not in tagged.KINDS:
        return None
    try:
        return _plainly(value, faithful=True)
    except NotEncodable:
        return None


def _as_typed_json(value: Any, hint: Any) -> Encoded | None:
    """Pydantic's own JSON; None if it would lose something (bytes that are not UTF-8, NaN, fields of a subclass)."""
    try:
        raw = declared(hint).adapter.serializer.to_json(value, round_trip=True, by_alias=False, warnings="error")
        text = raw.decode()
    except Exception:
        return None
    return _typed(text, _TYPED, value, hint, lambda way: way.validate_json(raw, by_name=True, by_alias=False))


def _as_typed_python(value: Any, hint: Any) -> Encoded | None:
    """Plain Python objects from Pydantic as tagged JSON. This is slower, and keeps what JSON alone cannot."""
    try:
        data = declared(hint).adapter.serializer.to_python(value, round_trip=True, by_alias=False, warnings="error")
        text = tagged.dumps(data, faithful=True, enums=True)
    except Exception:
        return None
    return _typed(
        text, _PYTHON, value, hint, lambda way: way.validate_python(tagged.loads(text), by_name=True, by_alias=False)
    )


def _typed(text: str, metadata: Metadata, value: Any, hint: Any, read: Callable[[Any], Any]) -> Encoded | None:
    """*text*, and how to read it: best without the user's own code, which may decide in another way some day."""
    known = declared(hint)
    ways = (("bare", lambda: known.bare), ("lenient", lambda: known.lenient), ("", lambda: known.adapter.validator))
    for name, way in ways:
        said = {**metadata, "read": f"{name} {known.shape}"} if name else metadata
        with suppress(Exception):  # a validator that cannot be built, or user code in validators and in __eq__
            encoded = _with_the_rest(text, said, value, read(way()))
            if encoded is not None:
                return encoded
    return None


def _as_member(value: Any, hint: Any) -> Encoded | None:
    """The JSON of one member of a union. If two members fit the data, Pydantic may choose the wrong one."""
    members = _members(hint)
    for name, member in members.items() if len(members) > 1 else ():
        encoded = _as_typed_json(value, member) or _as_typed_python(value, member)
        if encoded is not None:
            return encoded._replace(metadata={**encoded.metadata, "member": name})
    return None


def _members(hint: Any) -> dict[str, Any]:
    """The members of a union, and of the unions in it, by their names; a type that is no union is its only member."""
    bare = hint.__origin__ if typing.get_origin(hint) is Annotated else hint
    bare = getattr(bare, "__value__", bare)  # of an alias (type X = A | B)
    if typing.get_origin(bare) in (typing.Union, types.UnionType):
        return {name: member for part in typing.get_args(bare) for name, member in _members(part).items()}
    named = inspect.isclass(bare) and not typing.get_args(bare)
    return {f"{bare.__module__}.{bare.__qualname__}" if named else str(bare): hint}
