"""The result of a run, or its state, written by the journal if the result backend is the same Redis.

One script writes the outcome and the result. So no worker can die between the two, and the task waits for Redis once
instead of three times. This is possible only if the success has no other consequence (a callback, a chord): Celery
sends these before it stores the result.

In the same way one script suspends a run and stores its state, such as RETRY. So an attempt that has lost the run
cannot replace the state that a later one has stored.
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

from celery import Task, signals, states

from celery_durable.journal.port import NO_RESULT, Result
from celery_durable.seams.celery import has_receivers, ignores_result
from celery_durable.seams.results import is_celerys_redis, overridden, stored_form, stores_no_success

from .backend import Interim, stores_result

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
    return _if_colocated(backend, request, url, value, beside="its outcome")


def colocated_interim(task: Any, request: Any, shown: Interim, url: str) -> Result | None:
    """The state that the journal writes together with the suspension; None if Celery has to store it before."""
    if not stores_result(task, request, shown.state):
        return NO_RESULT
    facts = shown.result, shown.state, shown.traceback
    stored = _if_colocated(task.backend, request, url, *facts, beside="its wait")
    return None if stored is None else stored._replace(lasting=_beginning_of_success(stored.text, shown.state))


def _beginning_of_success(text: str | bytes, state: str) -> str:
    """What a success begins with where a result with this *state* is stored as *text*. Empty: it is not known.

    In JSON, Celery writes the state first.
    """
    before, found, _ = text.partition(f'"{state}"') if isinstance(text, str) else ("", "", "")
    return f'{before}"{states.SUCCESS}"' if found else ""


def _if_colocated(backend: Any, request: Any, url: str, *stored: Any, beside: str) -> Result | None:
    try:
        # Unlike Celery, the script replaces an older outcome: the fence has shown that this attempt may end the run.
        return Result(*stored_form(backend, request, *stored)) if is_celerys_redis(backend, url) else None
    except Exception as error:
        # If Celery cannot write it either, the task fails there. If it can, only round trips are lost.
        logger.warning(
            "task %s: its result cannot be written together with %s; Celery writes it: %r", request.id, beside, error
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
