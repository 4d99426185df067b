"""The headings of the index of all runs: a run stands under its status; if it is suspended, under what it waits for."""

from __future__ import annotations

from .layout import Fields, Status, Wait

LIVE_HEADINGS = (Status.RUNNING, Wait.RETRY, Wait.SLEEP, Wait.STALL, Wait.PAUSE, Status.SUSPENDED)
"""The last one is of runs that version 0.1.0 has suspended: it does not say what they wait for."""
ENDED_HEADINGS = tuple(sorted(Status.ENDED))
HEADINGS = (*LIVE_HEADINGS, *ENDED_HEADINGS)


REPLACED = "replaced"
"""The field that says that another task has the id of an ended run."""


def is_at_work(fields: Fields) -> bool:
    """Whether somebody may do the work of the run: it is live, or the task that has replaced it has yet to begin."""
    return fields.get(b"status", b"").decode() in Status.LIVE or REPLACED.encode() in fields


def heading_of(fields: Fields) -> str:
    """Where the run belongs in the index."""
    status = fields[b"status"].decode()
    return fields.get(b"waits", b"suspended").decode() if status == Status.SUSPENDED else status
