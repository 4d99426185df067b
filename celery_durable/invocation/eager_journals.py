"""The journals of eager runs. Celery's eager retries are calls within the call: one journal over all of them."""

from __future__ import annotations

from celery_durable.journal.memory import MemoryJournal

from .invocation import Invocation

_journals: dict[str, MemoryJournal] = {}


def journal_of(task_id: str) -> MemoryJournal:
    """That of an eager run, which begins with this call if it has not."""
    return _journals.setdefault(task_id, MemoryJournal())


def has(task_id: str) -> bool:
    """Whether an eager run goes on."""
    return task_id in _journals


def forget(invocation: Invocation) -> None:
    """The run has ended; if it was eager its journal is not needed any more."""
    if invocation.eager:
        _journals.pop(invocation.request.id, None)
