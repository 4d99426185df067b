"""Lengths of time as users give them, in seconds. Nothing of this package is imported here."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

Duration = timedelta | float
"""A ``timedelta`` or a number of seconds."""


def in_seconds(name: str, value: Any, *, zero: bool = True) -> float:
    """*value* as finite, non-negative seconds; *zero* says whether 0 is allowed.

    Raises:
        ValueError: *value* is no such duration; the message calls it by its *name*.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a timedelta or a number of seconds, got {value!r}")  # noqa: TRY004
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {'0 or more' if zero else 'more than 0'} seconds, got {value!r}")
    return value  # type: ignore[no-any-return]
