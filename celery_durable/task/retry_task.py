"""The task ``celery_durable.retry`` sends a failed run again. Anything that can send a Celery task can use it."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

from celery import Task, shared_task

from celery_durable.delivery.call import Call
from celery_durable.exceptions import RunNotRetryableError
from celery_durable.journal.layout import Fields, Status
from celery_durable.journal.reopening import replayed_failures

logger = logging.getLogger("celery_durable")

NAME = "celery_durable.retry"


# It has Celery's own class, because an app may be importing this package just now to find its task class.
# A refusal is an answer to the caller, and no error of the worker. With ``throws``, Celery logs it as one line.
@shared_task(name=NAME, bind=True, max_retries=0, base=Task, throws=(RunNotRetryableError,))
def retry(self: Any, task_id: str) -> dict[str, Any]:
    """Send the failed run *task_id* again under its id, with its saved arguments, headers, queue and canvas.

    It goes on from its journal, with fresh budgets.

    Returns:
        ``{"task_id", "task", "queue", "exchange", "routing_key", "note"}``: what was sent, and where.

    Raises:
        RunNotRetryableError: there is no such run, or it has not ended in FAILURE.
        JournalUnreadableError: an entry is damaged, and nothing was sent.
    """
    from celery_durable.app.store import store_of

    if not (isinstance(task_id, str) and task_id):  # type: ignore[redundant-expr]
        raise RunNotRetryableError(f"the id of a task is a text, got {task_id!r}")
    app = self.app
    fields = store_of(app).runs.load(task_id)
    _check_failed(task_id, fields)
    name = fields[b"task"].decode()
    call = Call.load(fields[b"call"], frozenset(app.conf.accept_content))
    note = _describe_replay(fields)
    # The name of this request: it reopens the run only once, even if the message is delivered several times.
    call.send(app, name, {"reopen": self.request.id or str(uuid4())}, seed=fields.get(b"seed", b"").decode())
    where = {key: call.options.get(key) for key in ("queue", "exchange", "routing_key")}
    logger.info("task %s: sent again for a Retry: %s", task_id, note)
    return {"task_id": task_id, "task": name, **where, "note": note}


def _check_failed(task_id: str, fields: Fields) -> None:
    status = fields.get(b"status", b"").decode()
    if not status:
        raise RunNotRetryableError(
            f"task {task_id} has no journal: it is unknown, never used its context, or its retention is over; "
            f"send it under a new id"
        )
    undelivered = status == Status.SUCCEEDED and b"delivered" not in fields
    if status != Status.FAILED and not undelivered:
        raise RunNotRetryableError(f"task {task_id} has not ended in FAILURE, its run is {status}: nothing to retry")


def _describe_replay(fields: Fields) -> str:
    """What the retry does, in one sentence for the person who asked for it."""
    if fields[b"status"].decode() == Status.SUCCEEDED:
        return "it had succeeded, but its callbacks were not sent: they are sent now"
    if failed := replayed_failures(fields):
        return (
            f"the failure of step {failed[0]!r} is replayed, because other steps followed it (such as compensations); "
            f"to run it again a restart is needed: send the task under a new id"
        )
    return "finished steps are replayed, the rest runs again"
