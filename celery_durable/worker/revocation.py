"""Revoked runs that have no message: they wait in the journal, so Celery's own revocation does not reach them."""

from __future__ import annotations

import logging
from typing import Any

from celery import signals, states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state

from celery_durable.app.store import store_of
from celery_durable.delivery import backend, outcome
from celery_durable.delivery.announcement import REVOKED_EVENT_FIELDS, REVOKED_SIGNAL_FIELDS
from celery_durable.delivery.call import Call
from celery_durable.forks import no_fork
from celery_durable.journal.layout import Fields, Status
from celery_durable.redis.client.fence import new_fence
from celery_durable.seams.requests import all_of

from . import news

logger = logging.getLogger("celery_durable")


class Revocations:
    """Ends the runs of an app that this worker was told to revoke."""

    def __init__(self, app: Any, worker: Any) -> None:
        self._app = app
        self._worker = worker
        self._store = store_of(app)
        self._accept = frozenset(app.conf.accept_content)
        self._revoked: set[str] = set()
        self._stamped: set[str] = set()
        """Task ids of runs that waited when one of their stamps was revoked."""
        self._stamps: dict[str, list[Any]] = {}
        self._ended: set[str] = set()
        self._fence = new_fence()
        """Marks the runs that were ended here. If something fails after that, the next call finds them by it."""

    def end_revoked_runs(self) -> None:
        """End the runs that were revoked before the last call.

        They wait for one call, because Celery may be terminating a request of the same run, and that goes first.
        """
        for task_id in (self._revoked | self._stamped) - self._ended:
            try:
                with no_fork:
                    request = self._end(task_id)
                if request is not None:
                    self._tell_listeners(request)
                    news.ended(self._app, task_id, Status.REVOKED)
            except Exception:
                logger.exception(
                    "task %s: was revoked, but the result backend or monitors could not be told; tried again",
                    task_id,
                )
            else:
                self._ended.add(task_id)
        self._revoked = set(worker_state.revoked)
        self._stamped -= self._ended
        self._look_for_stamps()
        self._ended &= self._revoked

    def _look_for_stamps(self) -> None:
        """Find the waiting runs that have a stamp which was revoked since the last call.

        A run that begins to wait later ends when it wakes up.
        """
        stamps = {header: all_of(values) for header, values in worker_state.revoked_stamps.items()}
        if stamps != self._stamps:
            with no_fork:
                for task_id, call in self._store.runs.waiting():
                    if self._has_stamp(call, stamps):
                        self._stamped.add(task_id)
            self._stamps = stamps

    def _has_stamp(self, call: bytes, stamps: dict[str, list[Any]]) -> bool:
        if b"stamped_headers" not in call and b"content_type" not in call:
            return False
        options = Call.load(call, self._accept).options
        headers = [header for header in options.get("stamped_headers") or () if header in stamps]
        return any(stamp in stamps[header] for header in headers for stamp in all_of(options.get(header)))

    def _end(self, task_id: str) -> Context | None:
        """End the run. Returns a request for it; None if it has no live journal, or another worker has ended it."""
        runs, keep = self._store.runs, self._store.settings.failure_retention
        error = outcome.encode_error(TaskRevokedError("revoked"))
        if not runs.terminate(task_id, Status.REVOKED, keep, error, fence=self._fence, undelivered=True):
            return None
        logger.info("task %s: was revoked, and its run has ended", task_id)
        request = self._request_of(task_id, runs.load(task_id))
        stored = self._is_wanted(request)
        self._app.backend.mark_as_revoked(task_id, "revoked", request=request, store_result=stored)
        runs.deliver(task_id, self._fence, keep)
        self._tell_monitors(request)
        return request

    def _request_of(self, task_id: str, fields: Fields) -> Context:
        """A request like the one of its message, made from the journal."""
        call = Call.load(fields[b"call"], self._accept)
        options = call.options
        return Context(
            {
                **options,
                "id": task_id,
                "task": fields[b"task"].decode(),
                "args": call.args,
                "kwargs": call.kwargs,
                "group": options.get("group_id"),
                "callbacks": options.get("link"),
                "errbacks": options.get("link_error"),
                "hostname": self._worker.hostname,
            }
        )

    def _is_wanted(self, request: Any) -> bool:
        task = self._app.tasks.get(request.task)
        return not request.ignore_result if task is None else backend.stores_result(task, request, states.REVOKED)

    # Celery's own request tells the same when it is revoked. The task may be unknown here, if apps share the journals.

    def _tell_monitors(self, request: Any) -> None:
        task, eventer = self._app.tasks.get(request.task), self._worker.consumer.event_dispatcher
        if task is not None and task.send_events and eventer is not None and eventer.enabled:
            eventer.send("task-revoked", uuid=request.id, **REVOKED_EVENT_FIELDS)

    def _tell_listeners(self, request: Any) -> None:
        task = self._app.tasks.get(request.task)
        if task is not None:
            signals.task_revoked.send(task, request=request, **REVOKED_SIGNAL_FIELDS)
