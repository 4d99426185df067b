"""The headings of the index of all runs: a run stands under its status; if it is suspended, under what it waits for."""

from __future__ import annotations

from .layout import Fields, Status, Wait

LIVE_HEADINGS = (Status.RUNNING, Wait.RETRY, Wait.SLEEP, Wait.STALL, Wait.PAUSE, Status.SUSPENDED)
"""The last one is of runs that version 0.1.0 has suspended: it does not say what they wait for."""
ENDED_HEADINGS = tuple(sorted(Status.ENDED))
HEADINGS = (*LIVE_HEADINGS, *ENDED_HEADINGS)


def heading_of(fields: Fields) -> str:
    """Where the run belongs in the index."""
    status = fields[b"status"].decode()
    return fields.get(b"waits", b"suspended").decode() if status == Status.SUSPENDED else status
