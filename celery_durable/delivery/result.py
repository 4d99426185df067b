"""The result of a run, written by the journal if the result backend is the same Redis.

One script writes the outcome and the result. So no worker can die between the two, and the task waits for Redis once
instead of three times. This is possible only if the success has no other consequence (a callback, a chord): Celery
sends these before it stores the result.
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
    """The result that the journal writes together with the outcome; None if Celery has to store it.

    *url* is the URL of the journal's Redis, in the form in which Celery's result backend has its own.
    """
    if request.callbacks or request.chain or request.chord or has_receivers(signals.task_success) or _is_handled(task):
        return None
    backend = task.backend
    if ignores_result(task, request):
        return NO_RESULT if stores_no_success(backend) else None
    if not is_celerys_redis(backend, url):
        return None
    try:
        # Unlike Celery, the script replaces an older result: the fence has shown that this attempt may end the run.
        return Result(*stored_success(backend, request, value))
    except Exception as error:
        # If Celery cannot write it either, the task fails there. If it can, only round trips are lost.
        logger.warning(
            "task %s: its result cannot be written together with its outcome; Celery writes it: %r", request.id, error
        )
        return None


def _is_handled(task: Any) -> bool:
    """Whether the user's own code runs after the body. If a worker dies in it, it must run again."""
    handled = _handled.get(type(task))
    if handled is None:
        # In a worker, Celery sets a __call__ of its own on its Task.
        called = overridden(task, "__call__") not in (None, Task)
        handled = called or bool(overridden(task, "on_success") or overridden(task, "after_return"))
        _handled[type(task)] = handled
    return handled
