"""The remote control command ``durable_cancel``. Workers know it, and ``celery control`` knows it, too."""

from __future__ import annotations

from typing import Any

from celery.worker.control import control_command

from celery_durable.exceptions import DurableError
from celery_durable.operate.verbs.cancelling import cancel


@control_command(args=[("task_id", str)], signature="<task_id>")
def durable_cancel(state: Any, task_id: str, **_: Any) -> dict[str, str]:
    """Cancel a durable run: its next operation raises TaskCancelled."""
    try:
        cancel(task_id, app=state.app)
    except DurableError as error:
        return {"error": str(error)}
    return {"ok": f"run {task_id} is to be cancelled"}
