"""What is kept of an attempt when the next one begins: the field ``attempt.<n>``."""

from __future__ import annotations

from typing import NamedTuple

from .layout import Fields


class PastAttempt(NamedTuple):
    """The first words of the field."""

    how: str
    """How it was left: what the run waited for, or its status; :class:`Left`; ``running``: its
    process was lost."""
    began: int
    """Milliseconds since the epoch, by Redis' clock."""
    left: int | None
    """When it was left; None: its process was lost, and nobody knows when."""


def past_attempt(fields: Fields, number: int) -> PastAttempt | None:
    """The attempt with this number. None: nothing is kept of it."""
    text = fields.get(b"attempt.%d" % number)
    if text is None:
        return None
    how, began, left, _ = text.decode().split(" ", 3)
    return PastAttempt(how, int(began or 0), int(left) if left else None)
