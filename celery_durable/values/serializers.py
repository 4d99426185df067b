"""Custom serializers and compression of step results, by name (kombu's registries) or by object."""

from __future__ import annotations

import base64
import json
from typing import Any, Protocol, runtime_checkable

from kombu.utils import json as kombu_json

from celery_durable.exceptions import ConfigurationError
from celery_durable.seams.kombu import compressions, content_types

from .tagged import NotEncodable

# To make an encoder, as kombu does each time, costs as much as to encode a message.
json_of = kombu_json.JSONEncoder().encode
"""A value as kombu's serializer ``json`` writes it."""

Marks = dict[str, str]
"""What says how a text is to be read."""

JSON_ONLY = frozenset({"json"})
_PICKLE = "application/x-python-serialize"
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


def check_serializer(serializer: Any, accept: frozenset[str], name: str = "serializer") -> None:
    """Refuse a serializer that is unknown, or that runs code from the journal without the app's ``accept_content``.

    *name*: what it was given as.
    """
    if not isinstance(serializer, str):
        if not isinstance(serializer, Serializer):
            raise ConfigurationError(
                f"{name} must be a name of kombu's registry or have serialize() and deserialize(), got {serializer!r}"
            )
        return
    if serializer == "json":
        return  # always there, and asked for at every attempt
    from kombu.serialization import dumps

    known = content_types()
    if serializer not in known:
        raise ConfigurationError(f"{name} {serializer!r} is not registered with kombu; known: {sorted(known)}")
    _check_content(known[serializer], accept, name)
    try:
        dumps("", serializer)
    except Exception as error:  # kombu registers the names of packages that are not installed, too
        raise ConfigurationError(f"{name} {serializer!r} does not work here: {error}") from error


def check_compression(compression: Any) -> None:
    """Refuse a compression that kombu does not know."""
    try:
        squeeze(b"", compression)
    except KeyError:
        known = sorted(compressions())
        raise ConfigurationError(f"compression {compression!r} is not registered with kombu; known: {known}") from None


def dump(value: Any, serializer: str | Serializer, accept: frozenset[str]) -> tuple[bytes, Marks]:
    """*value* as bytes, with the marks by which :func:`load` reads them."""
    if isinstance(serializer, str):
        from kombu.serialization import dumps

        check_serializer(serializer, accept)
        content_type, charset, data = dumps(value, serializer)
        raw: Any = data
        marks = {"serializer": serializer, "content_type": content_type, "charset": charset}
        return raw.encode() if isinstance(raw, str) else raw, marks
    raw = serializer.serialize(value)
    name = f"{type(serializer).__module__}.{type(serializer).__qualname__}"
    if not isinstance(raw, bytes):
        raise NotEncodable(f"{name}.serialize must return bytes, got {type(raw).__name__}")
    return raw, {"serializer": name}


def load(raw: bytes, marks: Marks, serializer: str | Serializer | None, accept: frozenset[str]) -> Any:
    """The value that :func:`dump` was given."""
    if "content_type" in marks:
        return load_content(raw, marks["content_type"], marks["charset"], accept)
    if isinstance(serializer, str) or serializer is None:
        raise NotEncodable(f"recorded by the serializer {marks['serializer']}, which this step no longer passes")
    return serializer.deserialize(raw)


def load_content(raw: bytes, content_type: str, charset: str, accept: frozenset[str]) -> Any:
    """What kombu serialized; never what runs code, unless the app accepts that."""
    from kombu.serialization import loads

    _check_content(content_type, accept)
    return loads(raw, content_type, charset, accept={content_type})


def _check_content(content_type: str, accept: frozenset[str], name: str = "serializer") -> None:
    if content_type == _PICKLE and not accept & {"pickle", _PICKLE}:
        raise ConfigurationError(
            f"{name} 'pickle' runs code found in the journal: allow it with the app's accept_content"
        )


def squeeze(raw: bytes, compression: str) -> tuple[bytes, str]:
    """Compressed bytes, and the content type that says by what."""
    from kombu.compression import compress

    return compress(raw, compression)


def expand(raw: bytes, content_type: str) -> bytes:
    """What :func:`squeeze` was given."""
    from kombu.compression import decompress

    return decompress(raw, content_type)


def as_text(raw: bytes) -> str:
    """Bytes as a JSON string."""
    return json.dumps(base64.b64encode(raw).decode())


def as_bytes(text: str | bytes) -> bytes:
    """What :func:`as_text` was given."""
    return base64.b64decode(json.loads(text))
