"""Tells user code from the library's own: an exception may be raised into the first, and never into the second."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = __name__.partition(".")[0] + "."

_boundaries: set[CodeType] = set()


def user_code_boundary(function: F) -> F:
    """Mark a function of this package that only calls user code, or waits for it."""
    _boundaries.add(function.__code__)
    return function


def in_user_code(frame: FrameType | None) -> bool:
    """Whether the innermost function of this package on a stack is such a boundary."""
    while frame is not None:
        if frame.f_code in _boundaries:
            return True
        if frame.f_globals.get("__name__", "").startswith(_PACKAGE):
            return False
        frame = frame.f_back
    return False
