"""What people have done with a run. One field has it: a JSON document a line, ``{"what", "by", "at", ...}``."""

from __future__ import annotations

import json
from typing import Any

from .entries import damaged
from .layout import Fields

_FIELD = b"actions"
_ANCESTORS = b"ancestors"


def read_actions(fields: Fields) -> list[dict[str, Any]]:
    """The actions that a journal holds, the oldest first.

    Raises:
        JournalUnreadableError: the field is damaged.
    """
    raw = fields.get(_FIELD, b"")
    try:
        # Of what Python takes for the end of a line, JSON escapes only some.
        actions = [json.loads(line) for line in raw.split(b"\n") if line]
    except ValueError:
        raise damaged(_FIELD.decode(), raw) from None
    if not all(isinstance(action, dict) for action in actions):
        raise damaged(_FIELD.decode(), raw)
    return actions


def restarts_of(fields: Fields) -> list[str]:
    """The ids of the runs that restart this one, the oldest first.

    Raises:
        JournalUnreadableError: the field is damaged.
    """
    return [action["run"] for action in read_actions(fields) if action.get("run")]


def newest_restart(fields: Fields) -> str:
    """The last one of these; empty if there is none."""
    return next(reversed(restarts_of(fields)), "")


def kin_of(fields: Fields) -> list[str]:
    """The ids of the runs that do the same work: those that restart this one, and those that it restarts.

    Raises:
        JournalUnreadableError: a field is damaged.
    """
    return [*restarts_of(fields), *ancestors_of(fields)]


def ancestors_of(fields: Fields) -> list[str]:
    """The ids of the run that this one restarts, of the run that that one restarts, and so on, the oldest first.

    Each journal names them all: one in between may be gone.

    Raises:
        JournalUnreadableError: the field is damaged.
    """
    raw = fields.get(_ANCESTORS, b"[]")
    try:
        return list(map(str, json.loads(raw)))
    except (ValueError, TypeError):
        raise damaged(_ANCESTORS.decode(), raw) from None


def descent(task_id: str, fields: Fields) -> Fields:
    """The fields of a run that restarts this one: whose work it does."""
    ancestors = json.dumps([*ancestors_of(fields), task_id]).encode()
    return {b"restarted_from": task_id.encode(), _ANCESTORS: ancestors}
