"""The result of a run as Celery's backend would write it: where that is this very Redis, the journal writes it.

With the outcome, in one script: a worker cannot die between the two, and the task waits for Redis once instead of three
times. Only of a run on whose success nothing else hangs, for that Celery sends before the result is stored.
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

from celery import Task, signals

from celery_durable.journal.port import NO_RESULT, Result
from celery_durable.seams.celery import has_receivers, ignores_result
from celery_durable.seams.results import is_celerys_redis, overridden, stored_success, stores_no_success

logger = logging.getLogger("celery_durable")

_handled: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def colocated_result(task: Any, request: Any, value: Any, url: str) -> Result | None:
    """What is to be written of a success beside its outcome, if nothing else hangs on that; else None.

    *url*: of the Redis that has the journal, as a backend of Celery's would be given it.
    """
    if request.callbacks or request.chain or request.chord or has_receivers(signals.task_success) or _is_handled(task):
        return None
    backend = task.backend
    if ignores_result(task, request):
        return NO_RESULT if stores_no_success(backend) else None
    if not is_celerys_redis(backend, url):
        return None
    try:
        # Unlike Celery's backend, over an older result: the fence has let the run end.
        return Result(*stored_success(backend, request, value))
    except Exception as error:
        # Celery is to fail at that itself. Where it does not, this is wrong, and costs round trips.
        logger.warning("task %s: its result cannot be written with its outcome, but by Celery: %r", request.id, error)
        return None


def _is_handled(task: Any) -> bool:
    """Whether code of the user's has a say after the body, and is to run again if the worker dies in it."""
    handled = _handled.get(type(task))
    if handled is None:
        # In a worker Celery puts a __call__ of its own into its Task.
        called = overridden(task, "__call__") not in (None, Task)
        handled = called or bool(overridden(task, "on_success") or overridden(task, "after_return"))
        _handled[type(task)] = handled
    return handled
