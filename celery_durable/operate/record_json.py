"""Records as JSON, for programs."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from datetime import datetime
from typing import Any


def record_json(record: Any) -> str:
    """A record, or what contains records, as one line of JSON.

    The attributes of a record are its keys. Times are in ISO 8601. What JSON does not know is written as text.
    """
    return json.dumps(record, default=_plain)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return vars(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)
