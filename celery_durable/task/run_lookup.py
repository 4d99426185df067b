"""Looks up whether a run has begun."""

from __future__ import annotations

from typing import Any

from celery_durable.exceptions import DurableError


def has_journal(task: Any, task_id: str) -> bool:
    """Whether the run *task_id* has a journal. False also means that Redis does not answer."""
    from celery_durable.app.store import store_of  # a process that only sends tasks does without it

    try:
        return store_of(task.app).runs.is_known(task_id)
    except DurableError:
        return False
