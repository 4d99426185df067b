"""The task ``celery_durable.retry`` sends a failed or paused run again. All that can send a Celery task can use it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from celery import Task, shared_task

from celery_durable.exceptions import RunNotRetryableError

NAME = "celery_durable.retry"


# It has Celery's own class, because an app may be importing this package just now to find its task class.
# A refusal is an answer to the caller, and no error of the worker. With ``throws``, Celery logs it as one line.
@shared_task(name=NAME, bind=True, max_retries=0, base=Task, throws=(RunNotRetryableError,))
def retry(self: Any, task_id: str) -> dict[str, Any]:
    """Send the failed or paused run *task_id* again under its id, with its saved arguments, headers, queue and canvas.

    It goes on from its journal, with fresh budgets.

    Returns:
        ``{"task_id", "task", "queue", "exchange", "routing_key", "note"}``: what was sent, and where.

    Raises:
        RunNotRetryableError: there is no such run, or it is neither FAILURE nor PAUSED.
        JournalUnreadableError: an entry is damaged, and nothing was sent.
    """
    from .resend import resend_run  # a process that only sends tasks does without it

    if not (isinstance(task_id, str) and task_id):  # type: ignore[redundant-expr]
        raise RunNotRetryableError(f"the id of a task is a text, got {task_id!r}")
    # The name of this request: the message of this Retry may be delivered several times.
    return resend_run(self.app, task_id, self.request.id or str(uuid4()))
