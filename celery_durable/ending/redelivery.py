"""Deliveries that begin no attempt: the run is alive, or has ended, or the id belongs to another run."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from celery.exceptions import Ignore, TaskRevokedError

from celery_durable.delivery import backend, lost_journal, outcome
from celery_durable.delivery.announcement import Announcement
from celery_durable.invocation.session import RunSession
from celery_durable.journal.layout import Status
from celery_durable.journal.port import Busy, Finished, IdConflict, OpenResult, Outdated

from .suspension import show_again

logger = logging.getLogger("celery_durable")


class ReturnValue(NamedTuple):
    """The value that a task has returned, for Celery."""

    value: Any


def reject_delivery(
    refusal: OpenResult, task: Any, request: Any, session: RunSession, *, fresh: bool
) -> BaseException | ReturnValue:
    """What Celery gets if no attempt begins: the value of an outcome that is not delivered yet, or an exception.

    *fresh*: the message is no copy of an earlier one, so somebody expects the task to run.
    """
    match refusal:
        case Busy(reason=reason) | Outdated(reason=reason):
            # The journal keeps the run: if this run needs another message, a worker sends it.
            logger.info("task %s: %s; this message is forgotten", request.id, reason)
            waits = refusal.waits if isinstance(refusal, Busy) else ""
            return _set_back(task, request, waits) if waits else Ignore(reason)
        case IdConflict():
            return _refuse_conflict(refusal, task, request)
        case Finished(fields=fields) if not fields:
            # A worker has sent this message, so there was a journal then.
            lost_journal.report_lost_journal(task.app, request.id)
            return Ignore("the journal is gone")
        case Finished(fields=fields):
            ended = outcome.read(fields, task.durable_attempt_settings.accept)
            if not ended.delivered:
                return _deliver(ended, task, request, session)
            logger.log(
                logging.WARNING if fresh else logging.INFO,
                "task %s already finished at %s; use a new task_id to run again",
                request.id, ended.ended.isoformat(timespec="seconds"),
            )  # fmt: skip
            backend.restore_outcome(task, request, ended)
            return Announcement.of_outcome("already finished", ended)
    raise AssertionError(refusal)  # pragma: no cover


def _set_back(task: Any, request: Any, waits: str) -> Announcement:
    """Monitors show STARTED for a message that begins no attempt. An event sets the state of the waiting run back."""
    state = backend.state_of(waits)
    if state not in backend.WAITING_STATES:
        return Announcement.of_wait(backend.SUSPENDED)
    if task.track_started:
        show_again(task, request, waits)
    return Announcement.of_wait(state)


def _deliver(ended: outcome.Outcome, task: Any, request: Any, session: RunSession) -> BaseException | ReturnValue:
    """Deliver the outcome and send its callbacks: the worker that had the outcome has died before."""
    session.outcome.mark_pending(ended.status)
    if ended.status == Status.REVOKED and ended.error is not None:
        if backend.store_revoked(task, request, ended.error):
            is_cancelled = not isinstance(ended.error, TaskRevokedError)
            return Announcement.of_cancellation(ended.error) if is_cancelled else Announcement.of_revocation()
        session.outcome.mark_failed()
    elif ended.error is not None:
        return ended.error
    elif ended.status == Status.SUCCEEDED:
        return ReturnValue(ended.value)
    return Ignore(f"the run is over: {ended.status}")


def _refuse_conflict(refusal: IdConflict, task: Any, request: Any) -> Ignore:
    logger.error(
        "task %s refused: the id belongs to a run of %s%s; send it under a new task_id",
        request.id, refusal.task, " with other arguments" if refusal.task == task.name else "",
    )  # fmt: skip
    recorded = outcome.read(refusal.fields, task.durable_attempt_settings.accept)
    if task.track_started:
        # Celery has replaced the state by STARTED.
        backend.restore_outcome(task, request, recorded)
    return Announcement.of_outcome("the id belongs to another run", recorded)
