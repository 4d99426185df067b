"""Sends a failed run again, or lets a paused one go on: what ``celery_durable.retry`` does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery_durable.app.store import Store, store_of
from celery_durable.delivery.backend import state_of
from celery_durable.delivery.call import Call
from celery_durable.exceptions import DurableError, RunNotRetryableError
from celery_durable.journal.actions import ancestors_of, newest_restart
from celery_durable.journal.headings import heading_of
from celery_durable.journal.layout import Fields, Status, is_paused
from celery_durable.journal.reopening import replayed_failures, taken_back
from celery_durable.journal.run_id import checked_id, no_journal
from celery_durable.redis.family import Standing

from .restarting import reading_call, said_of

logger = logging.getLogger("celery_durable")


def retry_run(app: Any, task_id: str, reopen: str, *, by: str | None = None) -> dict[str, Any]:
    """Send the run *task_id* as its first message did, and keep in its journal *by* whom.

    *reopen* names this Retry: it reopens the run only once.

    A paused run is sent by the next worker that looks for runs. So it goes on even if a message of it gets lost.
    """
    store = store_of(app)
    fields = store.runs.load(checked_id(task_id, RunNotRetryableError))
    if f"\n{reopen}\n" in fields.get(b"reopened", b"").decode():
        return _answer(task_id, fields[b"task"].decode(), {}, "that was done before")
    if not is_paused(fields):
        _check_failed(task_id, fields)
    # A paused run may be a restart that has broken off: then the run was restarted again since.
    if (relative := store.families.nearest(task_id, fields)) and relative.standing > Standing.RESERVED:
        raise RunNotRetryableError(said_of(relative, task_id, fields))
    with reading_call(task_id, RunNotRetryableError):
        name = fields[b"task"].decode()
        call = Call.load(fields[b"call"], frozenset(app.conf.accept_content))
    note = _describe_replay(fields)
    if is_paused(fields):
        _claim_origin(store, task_id, fields, by)
        if not store.families.may_begin(task_id, fields):
            raise RunNotRetryableError(f"task {task_id}: somebody has just retried a run that does the same work")
        _unpause(store, task_id, reopen, fields, by)
        logger.info("task %s: goes on for a Retry, a worker sends it: %s", task_id, note)
    else:
        known = {"restarted": newest_restart(fields), "failed": fields.get(b"attempt", b"").decode()}
        call.send(app, name, {"reopen": reopen, **known}, seed=fields.get(b"seed", b"").decode())
        logger.info("task %s: sent again for a Retry: %s", task_id, note)
        _keep(store, task_id, reopen, by)
    return _answer(task_id, name, call.options, note)


def _answer(task_id: str, name: str, options: Mapping[str, Any], note: str) -> dict[str, Any]:
    where = {key: options.get(key) for key in ("queue", "exchange", "routing_key")}
    return {"task_id": task_id, "task": name, **where, "note": note}


def _claim_origin(store: Store, task_id: str, fields: Fields, by: str | None) -> None:
    """If this is a restart that has broken off before the run that it restarts could name it, name it there now."""
    origin = fields.get(b"restarted_from", b"").decode()
    if not origin or fields.get(b"attempt") != b"0":
        return
    known = store.runs.load(origin)
    if not store.runs.note_restart(origin, by, task_id, newest_restart(known)):
        raise RunNotRetryableError(f"task {task_id}: somebody has restarted or retried {origin} just now: look at it")
    for ancestor in ancestors_of(fields):
        if ancestor != origin:
            store.runs.note(ancestor, "restart", by, task_id, task_id)


def _unpause(store: Store, task_id: str, request: str, fields: Fields, by: str | None) -> None:
    attempt = fields[b"attempt"].decode()
    if not store.runs.unpause(task_id, request, attempt, taken_back(fields), what="retry", by=by):
        raise RunNotRetryableError(f"task {task_id} is not paused any more: somebody has retried or ended it already")


def _keep(store: Store, task_id: str, request: str, by: str | None) -> None:
    """Keep in the journal that *by* has sent it. It is sent: if this fails, nobody must believe that it is not."""
    try:
        store.runs.note(task_id, "retry", by, request)
    except DurableError as error:
        logger.warning("task %s: its journal does not say that %s has retried it: %s", task_id, by or "somebody", error)


def _check_failed(task_id: str, fields: Fields) -> None:
    status = fields.get(b"status", b"").decode()
    if not status:
        raise RunNotRetryableError(no_journal(task_id))
    undelivered = status == Status.SUCCEEDED and b"delivered" not in fields
    if status != Status.FAILED and not undelivered:
        state = state_of(heading_of(fields))
        raise RunNotRetryableError(f"task {task_id} has not ended in FAILURE, it is {state}: nothing to retry")


def _describe_replay(fields: Fields) -> str:
    """What the retry does, in one sentence for the person who asked for it."""
    if fields[b"status"].decode() == Status.SUCCEEDED:
        return "it had succeeded, but its callbacks were not sent: they are sent now"
    if failed := replayed_failures(fields):
        return (
            f"the failure of step {failed[0]!r} is replayed, because other steps followed it (such as compensations); "
            f"to run it again a restart is needed: restart the run from this step"
        )
    return "finished steps are replayed, the rest runs again"
