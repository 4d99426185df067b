"""The tasks ``celery_durable.<verb>``: what an operator does with runs, for whatever can send a Celery task.

They take and give plain data. Each answers with a dict, whose ``task_id`` is the run that it is about; ``export``, with
its document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import NAMESPACE_OID, uuid4, uuid5

from celery import Task, shared_task

from celery_durable.exceptions import (
    RunNotCancellableError,
    RunNotFound,
    RunNotImportableError,
    RunNotPurgeableError,
    RunNotRestartableError,
    RunNotRetryableError,
    RunNotWakeableError,
)

# What the tasks call is imported when one of them runs: a process that only sends tasks does without it.


def _verb(refusal: type[Exception]) -> Callable[[Callable[..., Any]], Any]:
    """Make a task of a function. *refusal* is how it says that the state of a run forbids it."""

    def register(act: Callable[..., Any]) -> Any:
        name = f"celery_durable.{act.__name__.rstrip('_')}"
        # It has Celery's own class, because an app may be importing this package just now to find its task class.
        # A refusal is an answer to the caller, and no error of the worker. With ``throws``, Celery logs it as one line.
        return shared_task(name=name, bind=True, max_retries=0, base=Task, throws=(refusal,))(act)

    return register


def _request_of(task: Any) -> str:
    """The name of this request: its message may be delivered several times."""
    return task.request.id or str(uuid4())


@_verb(RunNotRetryableError)
def retry(self: Any, task_id: str, *, by: str | None = None) -> dict[str, Any]:
    """Send the failed or paused run *task_id* again under its id, with its saved arguments, headers, queue and canvas.

    It goes on from its journal, with fresh budgets.

    Returns:
        ``{"task_id", "task", "queue", "exchange", "routing_key", "note"}``: what is sent, and where. A run that was
        paused is sent by the next worker that looks for runs.

    Raises:
        RunNotRetryableError: there is no such run, it is neither FAILURE nor PAUSED, or a restart of it is alive.
        JournalUnreadableError: an entry is damaged, and nothing was sent.
    """
    from .verbs.retrying import retry_run

    return retry_run(self.app, task_id, _request_of(self), by=by)


@_verb(RunNotRestartableError)
def restart(self: Any, task_id: str, *, from_step: str | None = None, by: str | None = None) -> dict[str, str]:
    """Begin a new run with the call of the run *task_id*: see :meth:`Runs.restart`.

    Returns:
        ``{"task_id", "restarted_from"}``: the id of the new run, and that of the old one.
    """
    from .verbs.restarting import restart_run

    new = str(uuid5(NAMESPACE_OID, _request_of(self)))
    return {"task_id": restart_run(self.app, task_id, new, from_step=from_step, by=by), "restarted_from": task_id}


@_verb(RunNotCancellableError)
def cancel(self: Any, task_id: str, *, by: str | None = None) -> dict[str, str]:
    """Cancel a live run: see :meth:`Runs.cancel`. Returns ``{"task_id"}``."""
    from .verbs.cancelling import cancel_run

    cancel_run(self.app, task_id, _request_of(self), by=by)
    return {"task_id": task_id}


@_verb(RunNotWakeableError)
def wake(self: Any, task_id: str, *, by: str | None = None) -> dict[str, str]:
    """End the wait of a run now: see :meth:`Runs.wake`. Returns ``{"task_id"}``."""
    from .verbs.waking import wake_run

    wake_run(self.app, task_id, _request_of(self), by=by)
    return {"task_id": task_id}


@_verb(RunNotPurgeableError)
def purge(self: Any, task_id: str, *, by: str | None = None) -> dict[str, str]:
    """Delete the journal of a run that has ended: see :meth:`Runs.purge`. Returns ``{"task_id"}``."""
    from celery_durable.delivery.message import is_redelivered

    from .verbs.purging import purge_run

    purge_run(self.app, task_id, by=by, again=is_redelivered(self.request))
    return {"task_id": task_id}


@_verb(RunNotFound)
def export(self: Any, task_id: str, *, by: str | None = None) -> dict[str, Any]:
    """The whole journal of a run, not redacted: see :meth:`Runs.export`. The result backend keeps the document.

    Returns:
        The document: ``{"format", "id", "fields"}``.
    """
    from .runs import Runs

    return dict(Runs(self.app).export(task_id, by=by))


@_verb(RunNotImportableError)
def import_(self: Any, document: dict[str, Any], *, by: str | None = None) -> dict[str, str]:
    """Bring a journal back that was exported: see :meth:`Runs.import_`. Returns ``{"task_id"}``."""
    from .verbs.importing import import_run

    return {"task_id": import_run(self.app, document, _request_of(self), by=by)}
