"""Tells a live run to end: ``celery_durable.cancel``, and the task of this name."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from celery_durable.exceptions import RunNotCancellableError
from celery_durable.journal.layout import Status
from celery_durable.journal.run_id import checked_id, no_journal
from celery_durable.task.apps import resolve_app


def cancel(task_id: str, app: Any = None) -> None:
    """Cancel a live run: its code is told, and can compensate. This mirrors Restate's cancellation.

    The next operation of its context that is not yet recorded (``run``, ``sleep``) raises
    :class:`~celery_durable.TaskCancelled`, once. A run that sleeps, waits for a retry or is paused wakes up for it. A
    step that is running may finish, and can ask ``current_step().is_cancelled``. The run ends as REVOKED, or as SUCCESS
    if its body catches the error and returns. To cancel a run again changes nothing, unless it was paused while it
    compensated: then it goes on.

    Args:
        task_id: the id of the task (text).
        app: the Celery app. Default: the current app; in a thread without one, the only app of the process.

    Raises:
        RunNotCancellableError: the run has not begun, or has ended.
        ConfigurationError: no app is given, and the process has several.
        JournalUnavailableError: Redis does not answer.
    """
    cancel_run(resolve_app("cancel()") if app is None else app, task_id)


def cancel_run(app: Any, task_id: str, request: str = "", *, by: str | None = None) -> None:
    """The same. If a *request* has a name, the journal keeps *by* whom, and it acts once, however often it comes."""
    # A process that only sends tasks does without these.
    from celery_durable.app.store import store_of
    from celery_durable.delivery.backend import state_of

    status, ended = store_of(app).runs.cancel(checked_id(task_id, RunNotCancellableError), by, request)
    if status == Status.UNKNOWN:
        raise RunNotCancellableError(f"{no_journal(task_id)}. To keep a task from beginning, use app.control.revoke")
    if status not in Status.LIVE:
        at = datetime.fromtimestamp(ended / 1000, timezone.utc).isoformat(timespec="seconds")
        raise RunNotCancellableError(f"task {task_id} has ended already, at {at}: {state_of(status)}")
