"""What observers are told of a run that the main process of a worker has ended."""

from __future__ import annotations

import logging
from typing import Any

from celery_durable import happenings, meter
from celery_durable.app.store import store_of
from celery_durable.invocation.news import ENDS
from celery_durable.operate.reading import Reader
from celery_durable.redis.client.pool import SHORT_TIMEOUT

logger = logging.getLogger("celery_durable")


def ended(app: Any, task_id: str, status: str) -> None:
    """The run has this *status* now. Only if there is an observer, its journal is read."""
    meter.measure_if_loaded()  # this process may have opened no run
    if happenings.observers:
        try:
            run = Reader.of(app).run(task_id, store_of(app).runs.load(task_id, SHORT_TIMEOUT), None)
        except Exception as error:
            logger.error("task %s: nobody is told of its end, because its journal cannot be read: %r", task_id, error)
        else:
            happenings.tell(ENDS[status], run)
