"""Checks of names and values that users give. Each check of a value returns it as it is kept.

A check is called with the name of what it checks, and raises a ``ConfigurationError`` that has this name and the value.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from celery_durable.durations import in_seconds
from celery_durable.exceptions import ConfigurationError

# The names of these options in other systems, and names that people type first.
_KNOWN_AS = {
    "retry_interval": "initial_retry_interval",
    "initial_interval": "initial_retry_interval",
    "retry_interval_multiplier": "retry_interval_factor",
    "exponentiation_factor": "retry_interval_factor",
    "max_interval": "max_retry_interval",
    "max_retries": "max_attempts",
    "max_retry_attempts": "max_attempts",
    "on_max_attempts": "on_exhausted",
    "serde": "serializer",
}


def suggestion(unknown: str, known: Iterable[str], also_known_as: dict[str, str] | None = None) -> str:
    """`` (did you mean ...?)`` for the nearest known name, or nothing."""
    import difflib  # late: only the message of an error needs it

    known = list(known)
    alias = (also_known_as or {}).get(unknown)
    near = [alias] if alias in known else difflib.get_close_matches(unknown, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def seconds(name: str, value: Any, *, zero: bool = True) -> float:
    """*value* as finite, non-negative seconds; *zero* says whether 0 is allowed."""
    try:
        return in_seconds(name, value, zero=zero)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def factor(name: str, value: Any) -> float:
    """*value* as a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < sys.float_info.max:
        raise ConfigurationError(f"{name} must be a number above 0, got {value!r}")
    return float(value)


def whole(name: str, value: Any, *, least: int) -> int:
    """*value* as an integer of at least *least*."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ConfigurationError(f"{name} must be {least} or more, got {value!r}")
    return value


def text(name: str, value: Any) -> str:
    """*value* as a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{name} must be a text, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """*value* as True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, got {value!r}")
    return value


def function(name: str, value: Any) -> Any:
    """*value* as something that can be called: given itself, or by its dotted path."""
    found = value
    if isinstance(value, str):
        from pkgutil import resolve_name  # late: few apps need it

        from celery_durable.seams.celery import cwd_in_path

        try:
            with cwd_in_path():  # as Celery finds an app, and its modules of tasks
                found = resolve_name(value)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(f"{name} names {value!r}, which cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigurationError(f"{name} must be a function, or its dotted path, got {value!r}")
    return found


def exception_classes(name: str, value: Any) -> tuple[type[BaseException], ...]:
    """*value* as exception classes: one of them, or several."""
    kinds = (value,) if isinstance(value, type) or not isinstance(value, Iterable) else tuple(value)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ConfigurationError(f"{name} must hold exception classes, got {kind!r}")
    return kinds


if TYPE_CHECKING:
    # Type checkers read the signature of the dataclass, to which the metaclass adds nothing.
    KeywordOptions = type
else:

    class KeywordOptions(type):
        """Refuses unknown keywords with the name that was probably meant."""

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if args:
                raise ConfigurationError(f"{cls.__name__} takes keyword arguments only, got {args!r}")
            known = [field.name for field in fields(cls)]
            for name in kwargs:
                if name not in known:
                    raise ConfigurationError(
                        f"{cls.__name__} has no option {name!r}{suggestion(name, known, _KNOWN_AS)}; "
                        f"it has: {', '.join(known)}"
                    )
            return super().__call__(**kwargs)
