"""Ends the wait of a run now: what ``celery_durable.wake`` does."""

from __future__ import annotations

from typing import Any

from celery_durable.app.store import store_of
from celery_durable.exceptions import RunNotWakeableError
from celery_durable.journal.layout import Status, Wait
from celery_durable.journal.run_id import checked_id


def wake_run(app: Any, task_id: str, request: str, *, by: str | None = None) -> None:
    """End the wait of the run *task_id*, and keep in its journal *by* whom.

    *request* names this wish: it ends one wait, however often it is asked.
    """
    status = store_of(app).runs.wake(checked_id(task_id, RunNotWakeableError), by, request)
    if status == Wait.PAUSE:
        raise RunNotWakeableError(f"task {task_id} is paused, and waits for no time: retry it, or cancel it")
    if status != Status.SUSPENDED:
        said = "it has no journal" if status == Status.UNKNOWN else f"its run is {status}"
        raise RunNotWakeableError(f"task {task_id} does not wait: {said}")
