"""A run whose journal is gone too early: it was evicted or deleted, or its server was lost."""

from __future__ import annotations

import logging
from typing import Any

from celery import states

from celery_durable.exceptions import JournalUnreadableError

from .backend import WAITING_STATES

logger = logging.getLogger("celery_durable")

_GONE = (
    "task {}: its journal is gone, evicted or deleted, and the run had not ended. Look at what the run has done, and "
    "send the task under a new id; set maxmemory-policy to noeviction."
)


def report_lost_journal(app: Any, task_id: str) -> None:
    """Log the loss; if the run was waiting, store FAILURE, because nothing else would ever end it.

    Only the id of the run is known, and the state that the result backend has.
    """
    try:
        state = app.AsyncResult(task_id).state
        # In these states the broker has no message of the run.
        if ended := state in WAITING_STATES:
            app.backend.mark_as_failure(task_id, JournalUnreadableError(_GONE.format(task_id)))
    except Exception as error:
        state, ended = f"not known ({error!r})", False
    if state in states.READY_STATES:
        logger.warning(
            "task %s: its journal is gone, and its state is %s; its callbacks may not have been sent",
            task_id, state,
        )  # fmt: skip
        return
    logger.error(
        "%s Its state was %s%s", _GONE.format(task_id), state,
        ", and is FAILURE now" if ended else ". If the broker still has a message of this run, the run begins again",
    )  # fmt: skip
