"""Serializers and compressions that have a name in kombu's registries. Only this module of the room imports kombu."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import kombu.compression
from kombu import serialization
from kombu.utils import json as kombu_json

from celery_durable.exceptions import ConfigurationError
from celery_durable.seams.kombu import compressions, content_types

# To make an encoder, as kombu does each time, costs as much as to encode a message.
json_of = kombu_json.JSONEncoder().encode
"""A value as kombu's serializer ``json`` writes it."""

JSON_ONLY = frozenset({"json"})
ACCEPT_ANY = frozenset({"pickle"})
"""For a check of names only: what the app accepts is known when a serializer is used."""
_PICKLE = "application/x-python-serialize"


def check_name(serializer: str, accept: frozenset[str], name: str) -> None:
    """Refuse a serializer that kombu does not know, that does not work here, or that the app does not accept.

    *accept* holds what the app accepts; *name* is the option that the serializer was given as.

    Raises:
        ConfigurationError: the serializer is refused.
    """
    if serializer == "json":
        return  # always there, and asked for at every attempt
    known = content_types()
    if serializer not in known:
        raise ConfigurationError(f"{name} {serializer!r} is not registered with kombu; known: {sorted(known)}")
    _check_content(known[serializer], accept, name)
    try:
        serialization.dumps("", serializer)
    except Exception as error:  # kombu registers the names of packages that are not installed, too
        raise ConfigurationError(f"{name} {serializer!r} does not work here: {error}") from error


def _check_content(content_type: str, accept: frozenset[str], name: str = "serializer") -> None:
    if content_type == _PICKLE and not accept & {"pickle", _PICKLE}:
        raise ConfigurationError(
            f"{name} 'pickle' runs code found in the journal: allow it with the app's accept_content"
        )


def dump_content(value: Any, serializer: str) -> tuple[bytes, str, str]:
    """*value* as bytes, with their content type and their charset."""
    content_type, charset, data = serialization.dumps(value, serializer)
    raw: Any = data
    return raw.encode() if isinstance(raw, str) else raw, content_type, charset


def load_content(raw: bytes, content_type: str, charset: str, accept: frozenset[str]) -> Any:
    """What kombu serialized; never what runs code, unless the app accepts that.

    Raises:
        ConfigurationError: it runs code, and the app does not accept that.
    """
    _check_content(content_type, accept)
    return serialization.loads(raw, content_type, charset, accept={content_type})


def content_text(raw: bytes, content_type: str, charset: str) -> str:
    """What :func:`dump_content` gives, as text for the journal."""
    return json.dumps({"content_type": content_type, "charset": charset, "data": base64.b64encode(raw).decode()})


def read_content(facts: Mapping[str, Any], accept: frozenset[str]) -> Any:
    """The value in what :func:`content_text` has written, when its JSON is read."""
    return load_content(base64.b64decode(facts["data"]), facts["content_type"], facts["charset"], accept)


def check_compression(compression: Any) -> None:
    """Refuse a compression that kombu does not know.

    Raises:
        ConfigurationError: the compression is refused.
    """
    try:
        compress(b"", compression)
    except KeyError:
        known = sorted(compressions())
        raise ConfigurationError(f"compression {compression!r} is not registered with kombu; known: {known}") from None


def compress(raw: bytes, compression: str) -> tuple[bytes, str]:
    """Compressed bytes, and the content type that says by what."""
    return kombu.compression.compress(raw, compression)


def decompress(raw: bytes, content_type: str) -> bytes:
    """What :func:`compress` was given."""
    return kombu.compression.decompress(raw, content_type)
