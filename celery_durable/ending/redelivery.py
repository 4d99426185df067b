"""Deliveries that begin no attempt: of a run that is alive, that has ended, or that is not theirs."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from celery.exceptions import Ignore

from celery_durable.delivery import loss, outcome, report
from celery_durable.delivery.announcement import Announcement
from celery_durable.invocation.session import RunSession
from celery_durable.journal.port import Busy, Finished, Foreign, Outdated, Verdict

logger = logging.getLogger("celery_durable")


class Value(NamedTuple):
    """What a task has returned, for Celery."""

    value: Any


def reject_delivery(
    verdict: Verdict, task: Any, request: Any, session: RunSession, *, fresh: bool
) -> BaseException | Value:
    """What Celery gets instead of an attempt: the value of an outcome to be delivered, or an exception.

    *fresh*: the message is no copy of an earlier one, so somebody expects the task to run.
    """
    match verdict:
        case Busy(reason=reason) | Outdated(reason=reason):
            # The journal keeps the run; whatever becomes of it, a worker will send it again.
            logger.info("task %s: %s; this message is forgotten", request.id, reason)
            # It has not begun to go on.
            if not (isinstance(verdict, Busy) and verdict.early):
                return Ignore(reason)
            return Announcement.of_wait(report.STALLED if verdict.stalled else report.SUSPENDED)
        case Foreign():
            return _refused(verdict, task, request)
        case Finished(fields=fields) if not fields:
            # The message was sent on behalf of another one, when there was a journal.
            loss.tell(task.app, request.id)
            return Ignore("the journal is gone")
        case Finished(fields=fields):
            ended = outcome.read(fields, task.durable_terms.accept)
            if not ended.delivered:
                return _deliver(ended, task, request, session)
            logger.log(
                logging.WARNING if fresh else logging.INFO,
                "task %s already finished at %s; use a new task_id to run again",
                request.id, ended.ended.isoformat(timespec="seconds"),
            )  # fmt: skip
            report.restore_outcome(task, request, ended)
            return Announcement.of_outcome("already finished", ended)
    raise AssertionError(verdict)  # pragma: no cover


def _deliver(ended: outcome.Outcome, task: Any, request: Any, session: RunSession) -> BaseException | Value:
    """The worker that had the outcome died before it was delivered, with what hangs on it."""
    session.outcome.pending(ended.status)
    if ended.status == "revoked" and ended.error is not None:
        if report.revoked(task, request, ended.error):
            return Announcement.of_cancellation(ended.error)
        session.outcome.failed()
    elif ended.error is not None:
        return ended.error
    elif ended.status == "succeeded":
        return Value(ended.value)
    return Ignore(f"the run is over: {ended.status}")


def _refused(verdict: Foreign, task: Any, request: Any) -> Ignore:
    logger.error(
        "task %s refused: the id belongs to a run of %s%s; send it under a new task_id",
        request.id, verdict.task, " with other arguments" if verdict.task == task.name else "",
    )  # fmt: skip
    recorded = outcome.read(verdict.fields, task.durable_terms.accept)
    if task.track_started:
        # Celery has written STARTED over it.
        report.restore_outcome(task, request, recorded)
    return Announcement.of_outcome("the id belongs to another run", recorded)
