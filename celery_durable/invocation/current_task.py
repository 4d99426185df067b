"""Celery's current task on the threads of async tasks.

Celery keeps a stack of tasks per thread. But one thread serves many async tasks, each in a context of its own.
"""

from __future__ import annotations

from typing import Any

from celery.app.task import Context

from celery_durable.drivers.threads import in_each_thread
from celery_durable.seams.celery import Proxy, push_current_task

from .current import current


class _NoTask:
    """Stands for the current task while there is none."""

    request = Context()

    def __bool__(self) -> bool:
        return False


def _current_task() -> Any:
    invocation = current.get()
    return _NoTask() if invocation is None else invocation.task


def _workers_task() -> Any:
    """The task that a worker executes. A task that it calls as a function does not count."""
    invocation = current.get()
    while invocation is not None and invocation.direct:
        invocation = invocation.outer
    return _NoTask() if invocation is None else invocation.task


def _stand_for_current_tasks() -> None:
    for task in (_workers_task, _current_task):
        push_current_task(Proxy(task))


in_each_thread.append(_stand_for_current_tasks)
