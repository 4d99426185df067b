"""The execution that this code is in; and what Celery takes for its current task where async tasks run."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery.app.task import Context

from celery_durable.drivers.threads import in_each_thread
from celery_durable.exceptions import NoContextError
from celery_durable.seams.celery import Proxy, push_current_task

if TYPE_CHECKING:
    from .execution import Execution
    from .task import DurableTask

current: ContextVar[Execution | None] = ContextVar("celery_durable_execution", default=None)

OPENED = "durable_execution"
"""Where Celery's request keeps the execution that opened a run, for what happens outside of the body."""


def execution_of(task: DurableTask[Any, Any]) -> Execution:
    """The execution of *task* that this code is in.

    Raises:
        NoContextError: outside of a running task.
    """
    execution = current.get()
    if execution is None or execution.task is not task:
        raise NoContextError(f"the context of {task.name} is known while the task runs, in its own body")
    return execution


def is_executing(task: DurableTask[Any, Any]) -> bool:
    """Whether this code is in an execution of *task* under its present request, and no other one is to begin."""
    execution = current.get()
    return execution is not None and execution.task is task and execution.request is task.request


def opened_by(request: Any) -> Execution | None:
    """The execution that opened a run under *request*; None if its context was not used."""
    execution = request.__dict__.get(OPENED)
    # A direct call of a task copies the request that it finds.
    return execution if execution is not None and execution.request is request else None


# -- Celery's current task: it keeps a stack by thread, and one of async tasks serves many, each in a context of its own


class _NoTask:
    """The current task where none is."""

    request = Context()

    def __bool__(self) -> bool:
        return False


def _current_task() -> Any:
    execution = current.get()
    return _NoTask() if execution is None else execution.task


def _workers_task() -> Any:
    """The task that a worker executes, and not one that it has called as a function."""
    execution = current.get()
    while execution is not None and execution.direct:
        execution = execution.outer
    return _NoTask() if execution is None else execution.task


def _stand_for_current_tasks() -> None:
    for task in (_workers_task, _current_task):
        push_current_task(Proxy(task))


in_each_thread.append(_stand_for_current_tasks)
