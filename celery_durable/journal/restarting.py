"""The restart of a run from one of its steps: what stands before that step, and is replayed by the new run.

In the branch of the step, the position decides. An entry of another branch stands before the step if it had ended when
the step began, and behind it if it began later. If it was under way just then, the run cannot be cut there: nobody
knows whether its action depends on what runs again. Times are whole milliseconds. What ended in the one in which the
step began counts as before it, unless the step ended in that one, too: then it may have had the result of the step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import inf

from celery_durable.exceptions import RunNotRestartableError

from .entries import damaged
from .layout import UNBRANCHED, Fields, entries_of, step_field
from .positions import in_order, path_of
from .reopening import taken_back

_DRAWN = (b"uuid:", b"time:", b"now:")
_MOST_NAMED = 20


class _Operation:
    """A recorded operation, and when it was under way, in milliseconds."""

    def __init__(self, position: str, raw: bytes) -> None:
        self.position, self.branch, self.order = position, path_of(position), in_order(position)
        try:
            facts = json.loads(raw)
            self.name = str(facts["name"])
            self.end = facts.get("at", facts.get("until", inf))
            # Of a failure or a wait only the end is recorded. Before that, nothing could depend on it.
            self.begin = self.end - facts["ms"] if "ms" in facts else facts.get("first", self.end)
        except (ValueError, KeyError, TypeError):
            raise damaged(step_field(position), raw) from None

    def __str__(self) -> str:
        return f"{self.name!r} ({self.position})"


def before_step(task_id: str, fields: Fields, step: str) -> Fields:
    """The fields of a journal that a restart from *step*, which is a name or a position, takes over.

    These are the entries before it, the arguments as they were accepted, and what the code has drawn so far.

    Raises:
        RunNotRestartableError: no step is called that, or several are, or the run cannot be cut there.
        JournalUnreadableError: an entry is damaged.
    """
    operations = _operations(fields)
    if not isinstance(step, str):
        raise _refused(task_id, repr(step), "a step is named by a text", operations)
    chosen = _chosen(task_id, operations, step)
    if fields.get(b"v") == UNBRANCHED.encode() and any(each.branch for each in operations):
        reason = "celery-durable 0.1.0 has numbered its branches; restart it from its beginning"
        raise _refused(task_id, str(chosen), reason)
    again = taken_back(fields)
    kept = [each for each in _before(task_id, operations, chosen) if step_field(each.position) not in again]
    names = [step_field(each.position).encode() for each in kept]
    names += [name for name in fields if name.startswith(b"arguments:")]
    return {name: fields[name] for name in names} | _drawn_before(fields, chosen.position)


def _operations(fields: Fields) -> list[_Operation]:
    found = [_Operation(position, raw) for position, raw in entries_of(fields).items()]
    return sorted(found, key=lambda each: each.order)


def _chosen(task_id: str, operations: list[_Operation], step: str) -> _Operation:
    if at_place := [each for each in operations if each.position == step]:
        return at_place[0]
    found = [each for each in operations if each.name == step]
    if not found:
        raise _refused(task_id, repr(step), "it has recorded no such step", operations)
    if len(found) > 1:
        raise _refused(task_id, repr(step), "several steps are called that: name one by its position", found)
    return found[0]


def _before(task_id: str, operations: list[_Operation], chosen: _Operation) -> list[_Operation]:
    again = [each for each in operations if each.branch == chosen.branch and each.order >= chosen.order]
    cut, soonest_end = min(each.begin for each in again), min(each.end for each in again)
    kept = []
    for each in operations:
        if each.branch == chosen.branch:
            is_before = each.order < chosen.order
        else:
            is_before = each.end <= cut and each.end < soonest_end
            if not is_before and each.begin <= cut and each.end < inf:
                how = "was under way when it began" if each.end > cut else "ended in the same millisecond"
                reason = f"{each} of another branch {how}; restart it from a step before both"
                raise _refused(task_id, str(chosen), reason, operations)
        if is_before:
            kept.append(each)
    return kept


def _drawn_before(fields: Fields, position: str) -> Fields:
    """What the code has drawn: the new run takes it over until it reaches the step, and draws new values from there on.

    The journal does not say between which steps a value was drawn. The code that replays them knows.
    """
    former = json.loads(fields.get(b"former") or b"{}").get("drawn", {})
    drawn = former | {name.decode(): text.decode() for name, text in fields.items() if name.startswith(_DRAWN)}
    return {b"former": json.dumps({"until": position, "drawn": drawn}).encode()} if drawn else {}


def _refused(
    task_id: str, step: str, reason: str, candidates: Iterable[_Operation] | None = None
) -> RunNotRestartableError:
    text = f"task {task_id} cannot be restarted from {step}: {reason}"
    if candidates is None:
        return RunNotRestartableError(text)
    names = list(map(str, candidates))
    more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return RunNotRestartableError(f"{text}; there are: {', '.join(names[:_MOST_NAMED]) or 'none'}{more}")
