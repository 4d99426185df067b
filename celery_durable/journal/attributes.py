"""The attributes of a run: short texts that its code gives it, so that people find it. One field has them, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

from .entries import damaged
from .layout import Fields

FIELD = "attributes"
MOST = 16
LONGEST = 256
"""Characters of a name, and of a value."""


def read_attributes(fields: Fields) -> dict[str, str]:
    """The attributes that a journal holds.

    Raises:
        JournalUnreadableError: the field is damaged.
    """
    raw = fields.get(FIELD.encode())
    if not raw:
        return {}
    try:
        return {str(name): str(value) for name, value in json.loads(raw).items()}
    except (ValueError, AttributeError):
        raise damaged(FIELD, raw) from None


def attributes_text(attributes: Mapping[str, str]) -> str:
    """The text of the field."""
    return json.dumps(attributes, separators=(",", ":"))


def pair_text(name: str, value: str) -> str:
    """What stands in that text if the attribute *name* has this value."""
    return attributes_text({name: value})[1:-1]
