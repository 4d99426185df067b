"""What is kept of an attempt when the next one begins: the field ``attempt.<n>``. And what is counted of the newest."""

from __future__ import annotations

from typing import NamedTuple

from .layout import Fields, Status, entries_of


class PastAttempt(NamedTuple):
    """The words of the field."""

    how: str
    """How it was left: what the run waited for, or its status; :class:`Left`; ``running``: its
    process was lost."""
    began: int
    """Milliseconds since the epoch, by Redis' clock."""
    left: int | None
    """When it was left; None: its process was lost, and nobody knows when."""
    owner: str
    """Its process."""
    counts: Counts
    build: str
    """``<n>:<build>``; empty: the build of the run."""


class Counts(NamedTuple):
    """How many steps an attempt has executed and replayed. None: nobody knows that."""

    executed: int | None = None
    replayed: int | None = None


def past_attempt(fields: Fields, number: int) -> PastAttempt | None:
    """The attempt with this number. None: nothing is kept of it."""
    text = fields.get(b"attempt.%d" % number)
    if text is None:
        return None
    how, began, left, owner, executed, replayed, build = text.decode().split(" ", 6)
    counts = Counts(int(executed), int(replayed)) if executed else Counts()
    return PastAttempt(how, int(began or 0), int(left) if left else None, owner, counts, build)


def counts_of_newest(fields: Fields) -> Counts:
    """The counts of the newest attempt."""
    number, executed, replayed = (fields.get(b"executed") or b"0 0 0").split()
    if int(number) == int(fields.get(b"attempt", b"1")):
        return Counts(int(executed), int(replayed))
    # An attempt that has succeeded without a step does not say so.
    if fields.get(b"status", b"").decode() == Status.SUCCEEDED and not entries_of(fields):
        return Counts(0, 0)
    return Counts()
