"""The journals of eager runs. An eager retry is a call inside the first call, and has the same journal."""

from __future__ import annotations

from celery_durable.journal.memory import MemoryJournal

from .invocation import Invocation

_journals: dict[str, MemoryJournal] = {}


def journal_of(task_id: str) -> MemoryJournal:
    """The journal of an eager run. The first call makes it."""
    return _journals.setdefault(task_id, MemoryJournal())


def has(task_id: str) -> bool:
    """Whether the eager run *task_id* has begun, and has not ended."""
    return task_id in _journals


def forget(invocation: Invocation) -> None:
    """Drop the journal of a run that has ended, if it was eager."""
    if _journals and invocation.eager:
        _journals.pop(invocation.request.id, None)
