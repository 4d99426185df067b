"""Reports an inactive attempt to operators: by a line in the log, and an event."""

from __future__ import annotations

import logging
from typing import Any

from celery_durable.drivers.info import TaskInfo
from celery_durable.drivers.threads import actions
from celery_durable.steps.attempt import Attempt

logger = logging.getLogger("celery_durable")

EVENT = "durable-inactive"
"""It does not begin with ``task-``: monitors would take it for a state of the task."""


def silent_parts(attempt: Attempt) -> tuple[list[str], str, str]:
    """Return which steps are silent now, what the log calls them, and what to do about it."""
    steps = [step.name for step in tuple(attempt.pulse.running)]
    advice = "call current_step().heartbeat() now and then"
    if not steps:
        steps = [step.name for step in actions.waiting(attempt.pulse)]
        advice = f"it waits for a thread, and all are taken (durable_step_threads={attempt.settings.step_threads})"
    if not steps:
        return [], "the code between its steps", "make a step of what takes long"
    return steps, f"step {', '.join(map(repr, steps))}", advice


def report(task: Any, info: TaskInfo, silent: tuple[list[str], str, str], seconds: float, hostname: str | None) -> None:
    """Report that an attempt has made no progress for *seconds*. This waits for the broker, which may be slow.

    Meanwhile the attempt may go on. So :func:`silent_parts` is called before.
    """
    steps, where, advice = silent
    logger.warning(
        "task %s: %s has made no progress for %.3g s (inactivity_timeout); %s", info.task_id, where, seconds, advice
    )
    if task.send_events and task.app.conf.worker_send_task_events:
        with task.app.events.default_dispatcher(hostname=hostname) as events:
            events.send(EVENT, uuid=info.task_id, name=info.task, steps=steps, seconds=seconds)
