"""The entry that ends a run from inside: what ``celery_durable.cancel`` asked for, as its code sees it."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

from .attempt import Attempt
from .driver import Driver
from .exceptions import TaskCancelled
from .failure import describe
from .journal import open_entry

logger = logging.getLogger("celery_durable")


async def cancel(
    attempt: Attempt, position: str, driver: Driver, name: str, executions: int = 0, **facts: Any
) -> NoReturn:
    """Raise ``TaskCancelled`` in place of an operation that is not recorded yet, once: it is recorded instead."""
    error = TaskCancelled(f"the run was cancelled before {name!r}")
    entry = open_entry(name, "cancelled", executions, at=attempt.now(), error=describe(error), **facts)
    attempt.take_cancellation()
    attempt.record(position, entry)
    await driver.settle(attempt)
    logger.info("task %s: cancelled at %r", attempt.about.task_id, name)
    raise error
