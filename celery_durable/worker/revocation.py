"""Runs that somebody has revoked while no message of theirs was about, which would have ended them."""

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
from celery_durable.forks import undisturbed
from celery_durable.journal.layout import Fields, Status
from celery_durable.redis.redis_journal import new_fence
from celery_durable.seams.requests import all_of

logger = logging.getLogger("celery_durable")


class Revocations:
    """What this worker was told to revoke, as far as runs of an app are concerned."""

    def __init__(self, app: Any, worker: Any) -> None:
        self._app = app
        self._worker = worker
        self._store = store_of(app)
        self._accept = frozenset(app.conf.accept_content)
        self._told: set[str] = set()
        self._stamped: set[str] = set()
        """Runs that waited when they were revoked by a stamp of theirs."""
        self._stamps: dict[str, list[Any]] = {}
        self._ended: set[str] = set()
        self._fence = new_fence()
        """By which a run is known again that was ended here, and of which that could not be said everywhere."""

    def carry_out(self) -> None:
        """End the runs that were revoked by the last time: a request that is being terminated comes first."""
        for task_id in (self._told | self._stamped) - self._ended:
            try:
                with undisturbed:
                    request = self._end(task_id)
                if request is not None:
                    self._tell_listeners(request)
            except Exception:
                logger.exception(
                    "task %s: was revoked, but not all who are to know could be told; tried again", task_id
                )
            else:
                self._ended.add(task_id)
        self._told = set(worker_state.revoked)
        self._stamped -= self._ended
        self._look_for_stamps()
        self._ended &= self._told

    def _look_for_stamps(self) -> None:
        """Find the runs that wait and have a stamp that was revoked since; one that waits later ends when it wakes."""
        stamps = {header: all_of(values) for header, values in worker_state.revoked_stamps.items()}
        if stamps != self._stamps:
            with undisturbed:
                for task_id, call in self._store.runs.waiting():
                    if self._bears(call, stamps):
                        self._stamped.add(task_id)
            self._stamps = stamps

    def _bears(self, call: bytes, stamps: dict[str, list[Any]]) -> bool:
        if b"stamped_headers" not in call and b"content_type" not in call:
            return False
        options = Call.load(call, self._accept).options
        headers = [header for header in options.get("stamped_headers") or () if header in stamps]
        return any(stamp in stamps[header] for header in headers for stamp in all_of(options.get(header)))

    def _end(self, task_id: str) -> Context | None:
        """The request of the run that has been ended; None where that is not for us to do."""
        runs, keep = self._store.runs, self._store.settings.failure_retention
        error = outcome.encode_error(TaskRevokedError("revoked"))
        if not runs.terminate(task_id, Status.REVOKED, keep, error, fence=self._fence):
            return None
        logger.info("task %s: was revoked, and its run has ended", task_id)
        request = self._request_of(task_id, runs.load(task_id))
        stored = self._is_wanted(request)
        self._app.backend.mark_as_revoked(task_id, "revoked", request=request, store_result=stored)
        self._tell_monitors(request)
        return request

    def _request_of(self, task_id: str, fields: Fields) -> Context:
        """The request as it would be, had its message been about."""
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

    # What Celery's own request says when it is revoked. A task may be unknown here: others share the journals.

    def _tell_monitors(self, request: Any) -> None:
        task, eventer = self._app.tasks.get(request.task), self._worker.consumer.event_dispatcher
        if task is not None and task.send_events and eventer is not None and eventer.enabled:
            eventer.send("task-revoked", uuid=request.id, **REVOKED_EVENT_FIELDS)

    def _tell_listeners(self, request: Any) -> None:
        task = self._app.tasks.get(request.task)
        if task is not None:
            signals.task_revoked.send(task, request=request, **REVOKED_SIGNAL_FIELDS)
