"""Records as JSON, for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from math import isfinite
from typing import Any


def record_json(record: Any) -> str:
    """A record, or what contains records, as one line of JSON.

    The attributes of a record are its keys. Times are in ISO 8601. What JSON does not know is written as text.
    """
    try:
        return json.dumps(record, default=_plain, allow_nan=False)
    except (TypeError, ValueError):  # a key that is no text in an argument of another serializer, perhaps; or a NaN
        return json.dumps(_with_texts(record))


def _with_texts(value: Any) -> Any:
    if is_dataclass(value):
        value = _attributes(value)
    if isinstance(value, Mapping):
        return {str(key): _with_texts(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_texts(one) for one in value]
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    return value if value is None or isinstance(value, (str, int)) else _plain(value)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _attributes(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _attributes(record: Any) -> dict[str, Any]:
    return {one.name: getattr(record, one.name) for one in fields(record)}
