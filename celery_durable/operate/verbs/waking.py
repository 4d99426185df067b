"""Ends the wait of a run now: what ``celery_durable.wake`` does."""

from __future__ import annotations

from typing import Any

from celery_durable.app.store import store_of
from celery_durable.delivery.backend import state_of
from celery_durable.exceptions import RunNotWakeableError
from celery_durable.journal.layout import Status, Wait
from celery_durable.journal.run_id import checked_id, no_journal


def wake_run(app: Any, task_id: str, request: str, *, by: str | None = None) -> None:
    """End the wait of the run *task_id*, and keep in its journal *by* whom.

    *request* names this wish: it ends one wait, however often it is asked.
    """
    status = store_of(app).runs.wake(checked_id(task_id, RunNotWakeableError), by, request)
    if status == Wait.PAUSE:
        raise RunNotWakeableError(f"task {task_id} is paused, and waits for no time: retry it, or cancel it")
    if status == Status.UNKNOWN:
        raise RunNotWakeableError(no_journal(task_id))
    if status != Status.SUSPENDED:
        raise RunNotWakeableError(f"task {task_id} does not wait, it is {state_of(status)}")
