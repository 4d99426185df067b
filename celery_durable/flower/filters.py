"""Which runs a request asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any, NamedTuple
from urllib.parse import urlencode

from celery_durable.exceptions import ConfigurationError
from celery_durable.operate.runs import PAGE
from celery_durable.operate.search import read_pair, read_time
from celery_durable.seams.flower import FlowerPage

from .asking import Refusal

_FIELD = "%Y-%m-%dT%H:%M"
"""How browsers write a time."""
_LOST_PLUS = re.compile("(T.*) ([0-9]{2}:?[0-9]{2})$")
_NUMBER = re.compile("[0-9]{1,9}")


class Filters(NamedTuple):
    """The query of an address, read."""

    states: tuple[str, ...]
    tasks: tuple[str, ...]
    text: str
    attributes: Mapping[str, str]
    since: datetime | None
    until: datetime | None
    limit: int
    cursor: str | None

    @classmethod
    def none(cls) -> Filters:
        """All runs."""
        return cls((), (), "", {}, None, None, PAGE, None)

    @classmethod
    def of(cls, page: FlowerPage) -> Filters:
        """What a request asks for.

        Raises:
            Refusal: it cannot be read.
        """
        zone = page.capp.timezone
        return cls(
            states=tuple(_given(page, "state")),
            tasks=tuple(_given(page, "task")),
            text=" ".join(_given(page, "text")),
            attributes=_pairs(page),
            since=_time(page, "since", zone),
            until=_time(page, "until", zone),
            limit=number(page, "limit", PAGE),
            cursor=next(iter(_given(page, "cursor")), None),
        )

    def asked(self) -> dict[str, Any]:
        """The arguments of :meth:`Runs.list`."""
        wanted = {
            "state": self.states,
            "task": self.tasks,
            "text": self.text,
            "attributes": self.attributes,
            "since": self.since,
            "until": self.until,
            "cursor": self.cursor,
        }
        return {name: value for name, value in wanted.items() if value} | {"limit": self.limit}

    @property
    def are_counted(self) -> bool:
        """Whether the index knows how many such runs there are in each state."""
        return not (self.text or self.attributes or self.since or self.until)

    def pairs(self) -> list[str]:
        """The attributes as people write them."""
        return [f"{name}={value}" for name, value in self.attributes.items()]

    def query(self, **changes: Any) -> str:
        """The query of the address of other runs: what changes is said, the rest stays. It begins with the newest."""
        changed = self._replace(cursor=None, **changes) if "cursor" not in changes else self._replace(**changes)
        pairs = [("state", state) for state in changed.states] + [("task", task) for task in changed.tasks]
        pairs += [("attribute", pair) for pair in changed.pairs()]
        pairs += [("text", changed.text), ("since", _exact(changed.since)), ("until", _exact(changed.until))]
        pairs += [("limit", str(changed.limit) if changed.limit != PAGE else ""), ("cursor", changed.cursor or "")]
        return "?" + urlencode([(name, value) for name, value in pairs if value], errors="replace")


_NAMES = ("state", "task", "text", "attribute", "since", "until", "limit", "cursor")


def check_names(page: FlowerPage) -> None:
    """Let a request of a program say nothing that is no filter, and none without a value: it would get other runs.

    Raises:
        Refusal: it does.
    """
    for name, values in page.request.query_arguments.items():
        if name not in _NAMES:
            raise Refusal(400, f"{name} is no filter; what there is: {', '.join(_NAMES)}")
        if not all(values):
            raise Refusal(400, f"{name} is empty: leave it out, or give it a value")


def field(when: datetime | None) -> str:
    """A time as the field of a form has it."""
    return "" if when is None else when.strftime(_FIELD)


def _exact(when: datetime | None) -> str:
    return "" if when is None else when.isoformat()


def _given(page: FlowerPage, name: str) -> list[str]:
    return [text for text in page.get_query_arguments(name) if text]


def number(page: FlowerPage, name: str, otherwise: int) -> int:
    """A number that a request says.

    Raises:
        Refusal: it is none.
    """
    for text in _given(page, name):
        if not _NUMBER.fullmatch(text):
            raise Refusal(400, f"{name} must be a number, got {text!r}")
        return int(text)
    return otherwise


def _pairs(page: FlowerPage) -> dict[str, str]:
    try:
        return dict(map(read_pair, _given(page, "attribute")))
    except ConfigurationError as error:
        raise Refusal(400, str(error)) from None


def _time(page: FlowerPage, name: str, zone: tzinfo) -> datetime | None:
    try:
        # In an address, a plus that is not encoded stands for a space.
        given = (_LOST_PLUS.sub(r"\1+\2", text) for text in _given(page, name))
        return next((read_time(text, zone) for text in given), None)
    except ConfigurationError as error:
        raise Refusal(400, f"{name}: {error}") from None
