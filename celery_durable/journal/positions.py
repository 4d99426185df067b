"""How a position in program order is written: ``3``, or ``2.3`` for the third operation of the second branch.

A named branch stands in it by its name, ``@key``.
"""

from __future__ import annotations

import re

from celery_durable.exceptions import JournalUnreadableError

NAMED = "@"
"""What the name of a branch begins with."""
# A dot separates the parts of a position. The other characters would break the line that shows it.
_ESCAPED = r"[%.\x00-\x1f\x7f]"


def named_part(key: str) -> str:
    """The key of a branch as a part of a position. No number and no other key gives the same part."""
    return NAMED + re.sub(_ESCAPED, lambda match: f"%{ord(match[0]):02X}", key)


def path_of(position: str) -> str:
    """What the positions of its branch begin with."""
    return position[: position.rfind(".") + 1]


def in_order(position: str) -> tuple[tuple[int, int, str], ...]:
    """A key to sort positions by: operations and branches by number, then the named branches.

    Raises:
        JournalUnreadableError: it is not a position, so its entry belongs to no operation.
    """
    try:
        return tuple((1, 0, part) if part[:1] == NAMED else (0, int(part), "") for part in position.split("."))
    except ValueError:
        raise JournalUnreadableError(
            f"entry step:{position} has no position in program order; delete it, or send the task under a new id"
        ) from None
