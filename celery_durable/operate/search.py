"""What runs are searched for: a text in what is shown of them, and attributes; and how people write that."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any

from celery_durable.exceptions import ConfigurationError
from celery_durable.journal.attributes import pair_text
from celery_durable.records import Run
from celery_durable.redis.index import Sieve

_PLAIN = re.compile(r"[A-Za-z0-9@._+/-]+")
"""What JSON writes as it is, and what cannot stand between two values."""
_ESCAPED = re.compile(r'\\(["\\])')


class Search:
    """A search among runs.

    Args:
        text: it must be in the id of a run, in the name of its task, or in its arguments as JSON shows them; in small
            or in capital letters.
        attributes: the run must have all of these, with exactly these values.

    Raises:
        ConfigurationError: they are no texts.
    """

    def __init__(self, text: str | None, attributes: Mapping[str, str] | None) -> None:
        self._text = _checked("text", text or "")
        if not isinstance(attributes or {}, Mapping):
            raise ConfigurationError(f"attributes must be a dict of texts, got {attributes!r}")
        self._attributes = dict(attributes or {})
        for name, value in self._attributes.items():
            _checked("the name of an attribute", name)
            _checked(f"the attribute {name!r}", value)

    @property
    def is_certain_in_redis(self) -> bool:
        """Whether the sieve of Redis leaves hardly any run that lacks what is searched for."""
        return not self._text

    def sieve(self, *, as_recorded: bool) -> Sieve:
        """What Redis leaves out; *as_recorded*: arguments are shown as they are recorded."""
        # Redis looks for the longest part that reads the same in the journal and in what is shown.
        plain = max(_PLAIN.findall(self._text), key=len, default="") if as_recorded else ""
        return Sieve(plain.lower(), tuple(pair_text(*pair) for pair in self._attributes.items()))

    def finds(self, run: Run) -> bool:
        """Whether the run has what is searched for."""
        if any(run.attributes.get(name) != value for name, value in self._attributes.items()):
            return False
        needle = self._text.lower()
        return not needle or any(needle in said.lower() for said in _searched_texts(run))


def _searched_texts(run: Run) -> tuple[str, ...]:
    return run.id, run.task, _json(run.args), _json(run.kwargs)


def _json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # keys that JSON does not have, for example
        return repr(value)
    return _ESCAPED.sub(r"\1", text)  # people search for what a text says


def _checked(what: str, text: Any) -> str:
    if not isinstance(text, str):
        raise ConfigurationError(f"{what} must be a text, got {text!r}")
    return text


# -- as people write it ------------------------------------------------------------------------------------------------


def read_time(text: str, zone: tzinfo | None = None) -> datetime:
    """A time in ISO 8601, as an aware datetime. One that names no zone is of *zone*; None: of that of this machine.

    Raises:
        ConfigurationError: it is no time.
    """
    try:
        # Python 3.10 does not read a Z.
        when = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
        return (when.replace(tzinfo=zone) if when.tzinfo is None else when).astimezone(zone)
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{text!r} is no time: write it as 2030-01-31T12:00:00+00:00") from None


def read_pair(text: str) -> tuple[str, str]:
    """An attribute, ``name=value``. Spaces around both do not count.

    Raises:
        ConfigurationError: it has no name or no ``=``.
    """
    name, equals, value = text.partition("=")
    if not (name.strip() and equals):
        raise ConfigurationError(f"an attribute is written as name=value, got {text!r}")
    return name.strip(), value.strip()
