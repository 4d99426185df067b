"""A run whose journal is gone before its time: evicted, deleted, or lost with its server."""

from __future__ import annotations

import logging
from typing import Any

from celery import states

from celery_durable.exceptions import JournalUnreadableError

from .report import WAITS

logger = logging.getLogger("celery_durable")

_GONE = (
    "task {}: its journal is gone, evicted or deleted, and the run had not ended. Look at what the run has done, and "
    "send the task under a new id; set maxmemory-policy to noeviction."
)


def tell(app: Any, task_id: str) -> None:
    """Say so; of the run nothing is known but its id, and the state that the result backend has."""
    try:
        state = app.AsyncResult(task_id).state
        # No message of it is about: nothing else will ever end it.
        if ended := state in WAITS:
            app.backend.mark_as_failure(task_id, JournalUnreadableError(_GONE.format(task_id)))
    except Exception as error:
        state, ended = f"not known ({error!r})", False
    if state in states.READY_STATES:
        logger.warning(
            "task %s: its journal is gone, and its state is %s; what hangs on that may not have been sent",
            task_id, state,
        )  # fmt: skip
        return
    logger.error(
        "%s Its state was %s%s", _GONE.format(task_id), state,
        ", and is FAILURE now" if ended else ". A message of it that the broker still has begins it again",
    )  # fmt: skip
