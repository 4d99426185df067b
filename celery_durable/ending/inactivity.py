"""An attempt that is inactive, as operators see it: a line in the log, an event of Celery's, a metric."""

from __future__ import annotations

import logging
from typing import Any

from celery_durable import tracing
from celery_durable.drivers.threads import actions
from celery_durable.steps.attempt import Attempt

logger = logging.getLogger("celery_durable")

EVENT = "durable-inactive"
"""Not of the group ``task``: monitors take those for states of the task."""


def report(task: Any, attempt: Attempt, seconds: float, hostname: str | None) -> None:
    """Say that an attempt has made no progress for so long. A broker that is slow holds up its caller."""
    info = attempt.info
    steps = [step.name for step in tuple(attempt.pulse.running)]
    where, advice = f"step {', '.join(map(repr, steps))}", "call current_step().heartbeat() now and then"
    if not steps:
        steps = [step.name for step in actions.waiting(attempt.pulse)]
        where, advice = (
            f"step {', '.join(map(repr, steps))}",
            (f"it waits for a thread, and all are taken (durable_step_threads={attempt.settings.step_threads})"),
        )
    if not steps:
        where, advice = "the code between its steps", "make a step of what takes long"
    logger.warning(
        "task %s: %s has made no progress for %.3g s (inactivity_timeout); %s", info.task_id, where, seconds, advice
    )
    tracing.count_inactivity(info.task)
    if task.send_events and task.app.conf.worker_send_task_events:
        with task.app.events.default_dispatcher(hostname=hostname) as events:
            events.send(EVENT, uuid=info.task_id, name=info.task, steps=steps, seconds=seconds)
