"""Follows a run live. A small question asks whether it has changed; only then its journal is read."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from celery_durable.app.store import store_of
from celery_durable.journal.layout import Fields, State, entries_of, step_field
from celery_durable.records import Run

from .runs import Runs

PAUSE = 0.5
"""Seconds between two questions."""

_STATE = re.compile(rb'"state":"(\w+)"')
_CHANGING = (b"status", b"attempt", b"waits", b"due", b"ended", b"cancel", b"actions")


def follow(runs: Runs, task_id: str, pause: float = PAUSE) -> Iterator[Run]:
    """The run as it is now, and again after each change, until it has ended.

    Args:
        runs: the runs of the app.
        task_id: the id of the run.
        pause: seconds between two looks.

    Raises:
        RunNotFound: it has no journal, or none any more.
        JournalUnavailableError: Redis does not answer.
        JournalUnreadableError: its journal is damaged, or of a newer layout.
    """
    stored, shown = store_of(runs.app).runs, None
    while True:
        # It is made before the record is read. So what changes in between is seen as a change.
        glance = _Glance.at(stored.load(task_id))
        run = runs.get(task_id)
        if shown is None or _without_lease(run) != _without_lease(shown):
            yield run
            shown = run
        if run.ended is not None:
            return
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


def _without_lease(run: Run) -> Run:
    # It is renewed all the time.
    return replace(run, lease=None)
