"""The Retry of a failed run: which message is one, and which entries it takes back, so that their actions run again.

These rules exist here only. The opening of a run and the note of ``celery_durable.retry`` use them; ``open.lua`` is
given their result.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection

from .actions import newest_restart
from .entries import read_entry
from .layout import Fields, Kind, State, entries_of, step_field
from .port import Delivery
from .positions import in_order, path_of

_QUICK = 0.1
"""Seconds. A reply takes longer only if the connection was lost, or if one of the processes stood still."""

# A quote inside of a step's name is escaped, so the first match is a fact of the entry itself.
_STATE = rb'(?:"kind":"(\w+)",)?"state":"(\w+)"'
_AT, _MS = rb'"(?:at|until)":(\d+)', rb'"ms":(\d+)'


def decided(delivery: Delivery, fields: Fields, asked: float, now: int) -> Delivery:
    """The delivery again, now that the run is known to have failed: it reopens that failure, or it is not fresh.

    *asked*: when the question was sent, by the monotonic clock of this machine.
    *now*: when Redis answered it, in ms of its own clock.
    """
    name = delivery.reopen or _name(delivery, fields, asked, now)
    if not name or f"\n{name}\n" in fields.get(b"reopened", b"").decode():
        # Each request reopens a run once, however often its message is delivered.
        return delivery._replace(fresh=False)
    if delivery.restarted is not None and delivery.restarted != newest_restart(fields):
        # While its message was on the way, the run was restarted: that one does this work.
        return delivery._replace(fresh=False)
    attempt = fields.get(b"attempt", b"").decode()
    if delivery.failed not in (None, attempt):
        # It was asked twice before the first message arrived. That one has been carried out, and has failed again.
        return delivery._replace(fresh=False)
    actions = len(fields.get(b"actions", b""))
    return delivery._replace(reopen=name, over=attempt, taken_back=tuple(taken_back(fields)), actions=actions)


def _name(delivery: Delivery, fields: Fields, asked: float, now: int) -> str:
    """The name of the message's request to reopen the run. Empty: it is no such request."""
    if delivery.sent and delivery.sent == fields.get(b"seed", b"").decode():
        # This is a copy of the message that has begun the run. Not every broker says so.
        return ""
    ended = int(fields.get(b"ended", 0))
    # A message may be held up, and another one may have begun and ended the run meanwhile. It must not reopen that.
    return "" if ended > _arrived(delivery, asked, now) else delivery.sent or f"failed at {ended}"


def _arrived(delivery: Delivery, asked: float, now: int) -> float:
    """When the message arrived, or the first one that it repeats, in ms of Redis' clock."""
    if delivery.asked is not None:
        return delivery.asked * 1000
    answered = time.monotonic()
    age = max(0.0, (asked if answered - asked < _QUICK else answered) - delivery.received)
    return now - age * 1000


# -- what is taken back ------------------------------------------------------------------------------------------------


class _Step:
    def __init__(self, position: str, raw: bytes) -> None:
        self.position, self.branch = position, path_of(position)
        self.number = int(position[len(self.branch) :])
        kind, state = found.groups() if (found := re.search(_STATE, raw)) else (None, b"")
        # What a newer version has written, this one does not take back.
        self.state = state.decode() if kind is None or kind.decode() in Kind.KNOWN else ""
        self.raw = raw

    @property
    def time(self) -> int:
        """When it has ended, or when it will."""
        return _found(_AT, self.raw)

    @property
    def begun(self) -> dict[str, list[int | str]] | None:
        """Of a failure: how many operations and branches had begun by then, in each branch around it.

        None: version 0.1.0 has recorded it, and did not say that.
        """
        try:
            return json.loads(self.raw).get("begun")  # type: ignore[no-any-return]
        except ValueError:
            return None  # it is damaged, and the attempt finds that

    def precedes(self, other: _Step) -> bool:
        """The rule for entries of version 0.1.0: in one branch the number decides, between branches the time."""
        if self.branch == other.branch:
            return self.number < other.number
        if other.state == State.DONE:
            return other.time - _found(_MS, other.raw) >= self.time
        return other.time > self.time


def _found(pattern: bytes, raw: bytes) -> int:
    found = re.search(pattern, raw)
    return int(found[1]) if found else 0


class _Failure:
    """A step that has failed for good, and what the code did after that."""

    def __init__(self, step: _Step, steps: Collection[_Step]) -> None:
        self.step = step
        self._begun = step.begun
        if self._begun is None:
            # Version 0.1.0 has not recorded in which branch the code went on.
            self.went_on = {step.branch for other in steps if step.precedes(other)}
        else:
            self.went_on = {branch for other in steps if (branch := self._beyond(self._begun, other)) is not None}

    @staticmethod
    def _beyond(begun: dict[str, list[int | str]], other: _Step) -> str | None:
        """The branch around the failure in which *other* began after it. None: it had begun before.

        A branch that had begun before goes on beside the failure, and does not know of it.
        """
        around = max((branch for branch in begun if other.position.startswith(branch)), key=len)
        operations, branches, *names = begun[around]
        first, *inside = other.position[len(around) :].split(".")
        if not inside:
            new = int(first) > int(operations)
        else:
            new = int(first) > int(branches) if first.isdigit() else first not in names
        return around if new else None

    def was_beside(self, other: _Failure) -> bool:
        """Whether this one had begun when the *other* one failed."""
        return other._begun is not None and self._beyond(other._begun, self.step) is None

    def is_taken_back(self, others: Collection[_Failure]) -> bool:
        """Whether no code has dealt with it: nothing began after it, nor after one beside it."""
        if self.went_on:
            return False
        beside = [other for other in others if self.was_beside(other)]
        return not any(self.step.branch.startswith(branch) for other in beside for branch in other.went_on)


def taken_back(fields: Fields) -> list[str]:
    """The entries that a Retry deletes: executions that have not ended, and failures that no code has dealt with."""
    steps = _steps(fields)
    failures = [_Failure(step, steps) for step in steps if step.state == State.FAILED]
    again = [failure.step for failure in failures if failure.is_taken_back(failures)]
    return [step_field(step.position) for step in steps if step.state in State.UNENDED or step in again]


def replayed_failures(fields: Fields) -> list[str]:
    """The names of the steps whose failure a Retry replays, in program order.

    Raises:
        JournalUnreadableError: an entry is damaged, or its position is not valid.
    """
    recorded, again = entries_of(fields), taken_back(fields)
    kept = [position for position in sorted(recorded, key=in_order) if step_field(position) not in again]
    entries = [read_entry(step_field(position), recorded[position]) for position in kept]
    return [entry.name for entry in entries if entry.state == State.FAILED]


def _steps(fields: Fields) -> list[_Step]:
    found = entries_of(fields).items()
    # If a position is not valid, the attempt finds that.
    return [_Step(position, raw) for position, raw in found if position.rpartition(".")[2].isdigit()]
