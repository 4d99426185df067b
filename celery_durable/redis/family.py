"""The family of a run: the runs that do the same work, because one restarts the other. Only one of them may be at it.

Each has a journal of its own, so no script sees two of them. Therefore a run that is about to begin first says so in
its journal, and then looks at the others. Of two that are about to begin at the same moment, at least one sees the
other:

- A restart is written as a paused run, and is named in the runs that it restarts. Then it looks.
- A Retry reserves the failed run: a field says until when. Then it looks. It begins only as long as it has that.

Who sees a run that is at work begins nothing. A Retry makes way for a restart. Of two Retries, the smaller id goes
first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from enum import IntEnum
from math import inf
from typing import NamedTuple

from celery_durable.exceptions import JournalUnavailableError
from celery_durable.journal.actions import kin_of
from celery_durable.journal.layout import REPLACED, RESERVED, Fields, Status, is_at_work

from .client.fence import new_fence
from .client.protocol import pack
from .client.scripts import dated_call
from .keys import ms
from .shards import Shards

logger = logging.getLogger("celery_durable")

_OF_KIN = (
    b"status", b"waits", b"ended", b"cancel", REPLACED.encode(), RESERVED.encode(), b"actions", b"restarted_from",
    b"ancestors",
)  # fmt: skip
_PAUSE = 0.02
"""Seconds between two looks at a Retry that is about to begin: it needs a few milliseconds."""
_RESERVED = 1
"""What the script replies to the Retry that has the run."""


class Standing(IntEnum):
    """How a run stands for another one of its family. The larger one matters more."""

    RESERVED = 1
    """A Retry is about to reopen it."""
    DONE = 2
    """It has succeeded after the other one had ended, and nobody had cancelled it."""
    AT_WORK = 3


class Relative(NamedTuple):
    """A run of the family that is not to be left out of account."""

    standing: Standing
    task_id: str
    fields: Fields
    """Those that say how it stands."""


class Families:
    """The families of the runs of an app."""

    def __init__(self, shards: Shards, lease: float) -> None:
        self._shards = shards
        self._lease = lease

    def nearest(self, task_id: str, fields: Fields) -> Relative | None:
        """The run that matters most for this one, whose journal is known; None: no other one does its work."""
        return max(self._relatives(task_id, fields), default=None, key=lambda relative: relative.standing)

    def reserve(self, task_id: str, fields: Fields, token: str = "") -> str | None:
        """Reserve a failed run for a Retry that is about to begin; None: another run does its work, or has done it.

        *token*: that of this Retry, if it has reserved the run before.

        Returns a token, with which the Retry begins within a lease. Empty: nobody needs one, because the run has no
        family. (A restart that begins meanwhile is named in this very journal, and the script that reopens it sees
        that.)

        Raises:
            JournalUnavailableError: another Retry has reserved it, and does not begin.
        """
        if not kin_of(fields):
            return ""
        token, deadline = token or new_fence(), self._deadline()
        while reply := self._reserve(task_id, token, self._lease):
            if reply == _RESERVED:
                other = self.nearest(task_id, fields)
                if other is None:
                    return token
                if other.standing > Standing.RESERVED or other.task_id < task_id:
                    self._reserve(task_id, token, 0)
                if other.standing > Standing.RESERVED:
                    logger.warning("task %s: its Retry begins nothing, %s does the same work", task_id, other.task_id)
                    return None
            if time.monotonic() > deadline:
                raise JournalUnavailableError(f"task {task_id}: another Retry is about to reopen it, and does not")
            time.sleep(_PAUSE)
        return ""  # another message has reopened it: the script says what comes of this one

    def may_begin(self, task_id: str, fields: Fields) -> bool:
        """Whether a restart, which is written as a paused run, may begin: no other run is at its work."""
        deadline = self._deadline()
        while (other := self.nearest(task_id, fields)) is not None:
            if other.standing > Standing.RESERVED or time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)  # that Retry sees this restart and makes way, or has looked before, and begins
        return True

    def _deadline(self) -> float:
        # What is reserved just now lapses within a lease, if nobody goes on with it.
        return time.monotonic() + 2 * self._lease

    def _relatives(self, task_id: str, fields: Fields) -> Iterator[Relative]:
        ended = _number(fields.get(b"ended"), inf)
        seen, found = {task_id}, kin_of(fields)
        while found:
            other = found.pop()
            if other in seen:
                continue
            seen.add(other)
            known, now = self._kinship(other)
            standing = _standing(known, now, ended)
            if standing is not None:
                yield Relative(standing, other, known)
            found += kin_of(known)

    def _kinship(self, task_id: str) -> tuple[Fields, float]:
        """What the journal says of its family, and the time by the clock of its Redis (ms)."""
        shard = self._shards.of(task_id)
        # The time comes first: what counts as lapsed has lapsed.
        (seconds, microseconds), values = shard.pool.execute(
            pack("TIME"), pack("HMGET", shard.keys(task_id).run, *_OF_KIN)
        )
        known = {name: value for name, value in zip(_OF_KIN, values, strict=True) if value is not None}
        return known, int(seconds) * 1000 + int(microseconds) / 1000

    def _reserve(self, task_id: str, token: str, seconds: float) -> int:
        """Reserve a failed run for so long; 0 s: give it back. Returns what the script replies."""
        shard = self._shards.of(task_id)
        [reply] = shard.pool.execute(dated_call("reserve", shard.keys(task_id).all, token, ms(seconds)))
        return int(reply)


def _standing(fields: Fields, now: float, ended: float) -> Standing | None:
    """How a run with these fields stands for one that has *ended* then (ms)."""
    if is_at_work(fields):
        return Standing.AT_WORK
    has_succeeded = fields.get(b"status") == Status.SUCCEEDED.encode() and b"cancel" not in fields
    if has_succeeded and _number(fields.get(b"ended"), 0) > ended:
        return Standing.DONE
    if _number(fields.get(RESERVED.encode(), b"").partition(b" ")[0], 0) > now:
        return Standing.RESERVED
    return None


def _number(text: bytes | None, otherwise: float) -> float:
    """A time of a journal. If it is damaged, that is told to who reads this journal, and not to its family."""
    try:
        return float(text) if text else otherwise
    except ValueError:
        return otherwise
