"""Deletes the journal of a run that has ended: what ``celery_durable.purge`` does."""

from __future__ import annotations

import logging
from typing import Any

from celery_durable.app.store import store_of
from celery_durable.delivery.backend import state_of
from celery_durable.exceptions import RunNotPurgeableError
from celery_durable.journal.layout import Status
from celery_durable.journal.run_id import checked_id, no_journal

logger = logging.getLogger("celery_durable")


def purge_run(app: Any, task_id: str, *, by: str | None = None, again: bool = False) -> None:
    """Delete the journal of the run *task_id*, and log *by* whom: no journal is left that could keep it.

    *again*: this was asked before, so the journal may be gone.
    """
    status, is_purged = store_of(app).runs.purge(checked_id(task_id, RunNotPurgeableError))
    if is_purged:
        logger.info("task %s: its journal is purged%s", task_id, f" by {by}" if by else "")
    elif status in Status.ENDED:
        raise RunNotPurgeableError(f"task {task_id}: its outcome is not delivered yet: wait until a worker has done it")
    elif status != Status.UNKNOWN:
        raise RunNotPurgeableError(f"task {task_id} has not ended, it is {state_of(status)}: cancel it first")
    elif not again:
        raise RunNotPurgeableError(no_journal(task_id))
