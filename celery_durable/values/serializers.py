"""Custom serializers of step results: by a name of kombu's registry, or an object."""

from __future__ import annotations

import base64
import json
from typing import Any, Protocol, runtime_checkable

from celery_durable.exceptions import ConfigurationError

from . import registry
from .tagged import NotEncodable

Metadata = dict[str, str]
"""It says how a text is read."""


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

    *name* is the option that it was given as.

    Raises:
        ConfigurationError: the serializer is refused.
    """
    if isinstance(serializer, str):
        registry.check_name(serializer, accept, name)
    elif not isinstance(serializer, Serializer):
        raise ConfigurationError(
            f"{name} must be a name of kombu's registry or have serialize() and deserialize(), got {serializer!r}"
        )


def dump(value: Any, serializer: str | Serializer, accept: frozenset[str]) -> tuple[bytes, Metadata]:
    """*value* as bytes, with the metadata by which :func:`load` reads them.

    Raises:
        ConfigurationError: the app does not accept the serializer.
        NotEncodable: the serializer returns something else than bytes.
    """
    if isinstance(serializer, str):
        registry.check_name(serializer, accept, "serializer")
        raw, content_type, charset = registry.dump_content(value, serializer)
        return raw, {"serializer": serializer, "content_type": content_type, "charset": charset}
    raw = serializer.serialize(value)
    name = f"{type(serializer).__module__}.{type(serializer).__qualname__}"
    if not isinstance(raw, bytes):
        raise NotEncodable(f"{name}.serialize must return bytes, got {type(raw).__name__}")
    return raw, {"serializer": name}


def load(raw: bytes, metadata: Metadata, serializer: str | Serializer | None, accept: frozenset[str]) -> Any:
    """The value that :func:`dump` was given.

    Raises:
        ConfigurationError: the value runs code, and the app does not accept that.
        NotEncodable: the step passes no such serializer any more.
    """
    if "content_type" in metadata:
        return registry.load_content(raw, metadata["content_type"], metadata["charset"], accept)
    if isinstance(serializer, str) or serializer is None:
        raise NotEncodable(f"recorded by the serializer {metadata['serializer']}, which this step no longer passes")
    return serializer.deserialize(raw)


def as_text(raw: bytes) -> str:
    """Bytes as a JSON string."""
    return json.dumps(base64.b64encode(raw).decode())


def as_bytes(text: str | bytes) -> bytes:
    """What :func:`as_text` was given."""
    return base64.b64decode(json.loads(text))
