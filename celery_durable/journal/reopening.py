"""The Retry of a failed run: which message is one, and what it takes back of the journal, so that it runs again.

The one place for these rules: an opening and the note of ``celery_durable.retry`` go by them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection

from .entries import read_entry
from .layout import Fields, Kind, State, step_field
from .port import Delivery
from .positions import in_order

_QUICK = 0.1
"""Seconds within which a reply comes, unless the connection was lost or one of the processes stood still."""

# A quote inside of a step's name is escaped: the first match is a fact of the entry itself.
_STATE = rb'(?:"kind":"(\w+)",)?"state":"(\w+)"'
_AT, _MS = rb'"(?:at|until)":(\d+)', rb'"ms":(\d+)'


def decided(delivery: Delivery, fields: Fields, asked: float, now: int) -> Delivery:
    """The delivery, of a run that has failed, as one that reopens that failure, or as one that does not.

    *asked*: when Redis was, by the clock of this machine; *now*: when it answered, by its own.
    """
    name = delivery.reopen or _name(delivery, fields, asked, now)
    if not name or f"\n{name}\n" in fields.get(b"reopened", b"").decode():
        # Each request reopens a run once, however often its message is delivered.
        return delivery._replace(fresh=False)
    attempt = fields.get(b"attempt", b"").decode()
    return delivery._replace(reopen=name, over=attempt, taken_back=tuple(taken_back(fields)))


def _name(delivery: Delivery, fields: Fields, asked: float, now: int) -> str:
    """What to call this message as a request; empty if it is none."""
    if delivery.sent and delivery.sent == fields.get(b"seed", b"").decode():
        # A copy of the message that has begun the run: not every broker says of a copy that it is one.
        return ""
    ended = int(fields.get(b"ended", 0))
    # One that was held up must not reopen a run that another one has begun and ended meanwhile.
    return "" if ended > _arrived(delivery, asked, now) else delivery.sent or f"failed at {ended}"


def _arrived(delivery: Delivery, asked: float, now: int) -> float:
    """When the message did, or the first one that it repeats, by Redis' clock, in ms."""
    if delivery.asked is not None:
        return delivery.asked * 1000
    answered = time.monotonic()
    age = max(0.0, (asked if answered - asked < _QUICK else answered) - delivery.received)
    return now - age * 1000


# -- what is taken back ------------------------------------------------------------------------------------------------


class _Step:
    def __init__(self, place: str, raw: bytes) -> None:
        head, dot, number = place.rpartition(".")
        self.place, self.branch, self.number = place, head + dot, int(number)
        kind, state = found.groups() if (found := re.search(_STATE, raw)) else (None, b"")
        # What a newer version has written is not ours to take back.
        self.state = state.decode() if kind is None or kind.decode() in Kind.KNOWN else ""
        self.raw = raw

    @property
    def time(self) -> int:
        """When it ended, or is to end."""
        return _found(_AT, self.raw)

    @property
    def begun(self) -> dict[str, list[int | str]] | None:
        """Of a failure: how much of each branch that it is in had begun; None where version 0.1.0 has recorded it."""
        try:
            return json.loads(self.raw).get("begun")  # type: ignore[no-any-return]
        except ValueError:
            return None  # the attempt finds that it is damaged

    def precedes(self, other: _Step) -> bool:
        """As far as entries of version 0.1.0 tell: in its own branch by the number, among branches by the time."""
        if self.branch == other.branch:
            return self.number < other.number
        if other.state == State.DONE:
            return other.time - _found(_MS, other.raw) >= self.time
        return other.time > self.time


def _found(pattern: bytes, raw: bytes) -> int:
    found = re.search(pattern, raw)
    return int(found[1]) if found else 0


class _Failure:
    """A step that has failed for good, and what the run did after that."""

    def __init__(self, step: _Step, steps: Collection[_Step]) -> None:
        self.step = step
        self._begun = step.begun
        if self._begun is None:
            # Of what 0.1.0 has recorded it is not known in which branch the code went on.
            self.went_on = {step.branch for other in steps if step.precedes(other)}
        else:
            self.went_on = {branch for other in steps if (branch := self._beyond(self._begun, other)) is not None}

    @staticmethod
    def _beyond(begun: dict[str, list[int | str]], other: _Step) -> str | None:
        """The branch around the failure in which *other* began after it; None if it had begun by then.

        A branch that had begun by then goes on beside: it does not know of the failure.
        """
        around = max((branch for branch in begun if other.place.startswith(branch)), key=len)
        operations, branches, *names = begun[around]
        first, *inside = other.place[len(around) :].split(".")
        if not inside:
            new = int(first) > int(operations)
        else:
            new = int(first) > int(branches) if first.isdigit() else first not in names
        return around if new else None

    def was_beside(self, other: _Failure) -> bool:
        """Whether this one had begun when the *other* one failed."""
        return other._begun is not None and self._beyond(other._begun, self.step) is None

    def is_taken_back(self, others: Collection[_Failure]) -> bool:
        """Whether nothing began because of it, or because of one beside: the code around both has dealt with both."""
        if self.went_on:
            return False
        beside = [other for other in others if self.was_beside(other)]
        return not any(self.step.branch.startswith(branch) for other in beside for branch in other.went_on)


def taken_back(fields: Fields) -> list[str]:
    """The entries that a Retry deletes: executions that did not end, and failures that the run did not deal with."""
    steps = _steps(fields)
    failures = [_Failure(step, steps) for step in steps if step.state == State.FAILED]
    again = [failure.step for failure in failures if failure.is_taken_back(failures)]
    return [step_field(step.place) for step in steps if step.state in State.UNENDED or step in again]


def replayed_failures(fields: Fields) -> list[str]:
    """The names of the steps whose failure a Retry replays, in program order.

    Raises:
        JournalUnreadableError: an entry is damaged, or at no place.
    """
    positions = sorted((field.decode()[5:] for field in fields if field.startswith(b"step:")), key=in_order)
    again = taken_back(fields)
    kept = [field for field in map(step_field, positions) if field not in again]
    entries = [read_entry(field, fields[field.encode()]) for field in kept]
    return [entry.name for entry in entries if entry.state == State.FAILED]


def _steps(fields: Fields) -> list[_Step]:
    found = {field.decode()[5:]: raw for field, raw in fields.items() if field.startswith(b"step:")}
    # What is at no place the attempt finds.
    return [_Step(place, raw) for place, raw in found.items() if place.rpartition(".")[2].isdigit()]
