"""The entry that ends a run from inside: what ``celery_durable.cancel`` asked for, as its code sees it."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

from celery_durable.drivers.driver import Driver
from celery_durable.exceptions import TaskCancelled
from celery_durable.journal.entries import open_entry
from celery_durable.journal.layout import Kind, State
from celery_durable.values.failure import describe

from .attempt import Attempt

logger = logging.getLogger("celery_durable")


async def cancel(
    attempt: Attempt,
    position: str,
    driver: Driver,
    name: str,
    executions: int = 0,
    *,
    kind: str = Kind.STEP,
    **facts: Any,
) -> NoReturn:
    """Raise ``TaskCancelled`` in place of an operation that is not recorded yet, once: it is recorded instead."""
    error = TaskCancelled(f"the run was cancelled before {name!r}")
    entry = open_entry(name, State.CANCELLED, executions, kind, at=attempt.now(), error=describe(error), **facts)
    attempt.take_cancellation()
    attempt.record(position, entry)
    await driver.settle(attempt)
    logger.info("task %s: cancelled at %r", attempt.about.task_id, name)
    raise error
