"""Follows a journal live. A small question asks whether it has changed; only then it is read."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

from celery_durable.journal.layout import Fields, State, entries_of, step_field
from celery_durable.redis.runs import StoredRuns

PAUSE = 0.5
"""Seconds between two questions."""

_STATE = re.compile(rb'"state":"(\w+)"')
_CHANGING = (b"status", b"attempt", b"waits", b"due", b"ended", b"cancel", b"actions")


def changes_of(stored: StoredRuns, task_id: str, pause: float) -> Iterator[Fields]:
    """The journal of a run as it is now, and again whenever it may have changed. Empty: there is none any more.

    There are *pause* seconds between two looks.

    Raises:
        JournalUnavailableError: Redis does not answer.
        JournalUnreadableError: it is of another layout.
    """
    while True:
        fields = stored.load(task_id)
        yield fields
        glance = _Glance.at(fields)
        while stored.glance(task_id, glance.names) == (glance.fields, glance.values):
            time.sleep(pause)


class _Glance(NamedTuple):
    """What shows whether a journal has changed: how many fields it has, and those that may get another value.

    An entry that is settled stays as it is.
    """

    fields: int
    names: tuple[bytes, ...]
    values: tuple[bytes | None, ...]

    @classmethod
    def at(cls, fields: Fields) -> _Glance:
        unsettled = [step_field(place).encode() for place, raw in entries_of(fields).items() if not _is_settled(raw)]
        names = (*_CHANGING, *unsettled)
        return cls(len(fields), names, tuple(fields.get(name) for name in names))


def _is_settled(entry: bytes) -> bool:
    # A quote inside a step's name is escaped, so this finds the entry's own state.
    state = _STATE.search(entry)
    return state is not None and state[1].decode() in State.SETTLED
