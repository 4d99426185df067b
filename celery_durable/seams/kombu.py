"""The private names of kombu: its registries of serializers and compressions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .lookup import Package

KOMBU = Package("kombu", ">=5.7,<5.8")

_registry: Any = KOMBU.look_up("kombu.serialization", "registry")
KOMBU.check_inside("kombu.serialization", "SerializerRegistry.__init__", "name_to_type", "type_to_name")
_aliases: Mapping[str, str] = KOMBU.look_up("kombu.compression", "_aliases")


def content_types() -> Mapping[str, str]:
    """The content type of each serializer, by its name."""
    return _registry.name_to_type  # type: ignore[no-any-return]


def serializer_of(content_type: str) -> str:
    """The name of the serializer that writes this; the content type itself if there is none."""
    name: str = _registry.type_to_name.get(content_type, content_type)
    return name


def compressions() -> Iterable[str]:
    """The names of all compressions."""
    return _aliases
