"""Runs that nobody carries on: their worker died, their wait is over, or their outcome was not delivered.

Every worker with durable tasks looks for them, and sends them again from what the journal keeps. Messages are hints:
of many that bring a run back one begins an attempt, the others are forgotten.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from typing import Any

from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state

from . import outcome
from .call import Call
from .exceptions import DurableError
from .forks import undisturbed
from .message import BROKER_AWAY
from .runs import Claimed, Claims
from .store import store_of
from .task import DurableTask

logger = logging.getLogger("celery_durable")

INTERVAL = 1.0
"""Seconds between two looks; a wait that is over sooner shortens it."""
_LONGEST_STOP = 2.0
_SHORT_INTERVAL = 0.05
"""Where the last look has not seen all there is."""


class Recovery:
    """What one process does for the runs of an app that nobody carries on."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.store = store_of(app)
        self._tasks = sorted(name for name, task in app.tasks.items() if isinstance(task, DurableTask))
        self._accept = frozenset(app.conf.accept_content)
        self._found: list[Claims] | None = None
        self._revoked: set[str] = set()
        self._ended: set[str] = set()

    def recover(self) -> tuple[int, int]:
        """Send what nobody carries on; how many runs were sent, and how many could not be."""
        with undisturbed:
            self._found = self.store.runs.claim(self._tasks, self._found)
        claimed = [run for each in self._found for run in each.runs]
        sent = self._send(claimed)
        return sent, len(claimed) - sent

    @property
    def pause(self) -> float:
        """Seconds until it is worth looking again."""
        found = self._found or []
        if self.is_amid:
            return _SHORT_INTERVAL
        return min([INTERVAL, *(each.next_due for each in found if each.next_due is not None)])

    @property
    def is_amid(self) -> bool:
        """Whether the last look has not seen all there is."""
        return any(each.runs or any(each.skips) for each in self._found or [])

    def _send(self, claimed: list[Claimed]) -> int:
        if not claimed:
            return 0
        sent, waiting = 0, deque(claimed)
        connection = self.app.connection_for_write()
        try:
            with undisturbed:
                producer = self.app.amqp.Producer(connection)
            while waiting:
                with undisturbed:
                    sent += self._send_one(waiting[0], producer)
                waiting.popleft()
        except BROKER_AWAY as error:
            logger.warning("%d runs cannot be sent now, the broker is away: %r", len(waiting), error)
            self.store.runs.unclaim(waiting)
        finally:
            with undisturbed:
                connection.release()
        return sent

    def _send_one(self, run: Claimed, producer: Any) -> bool:
        try:
            resume = json.loads(run.resume or b"{}")
            header = {**resume.get("header", {}), "hint": 1}
            call = Call.load(run.call, self._accept)
            call.send(self.app, run.task, header, retries=resume.get("retries", 0), producer=producer)
        except BROKER_AWAY:
            raise
        except Exception:
            # Its pause doubles: a run that cannot be sent does not hold up the others.
            logger.exception("task %s: cannot be sent again", run.task_id)
            return False
        logger.info("task %s: sent again, nobody carried it on", run.task_id)
        return True

    # -- runs that were revoked while no message of theirs was about

    def end_revoked(self) -> None:
        """End the runs that somebody has revoked: nothing else would before their next message comes."""
        # One look late: a request that is being terminated comes first.
        for task_id in self._revoked - self._ended:
            try:
                with undisturbed:
                    self._end(task_id)
            except Exception:
                logger.exception("task %s: was revoked, which could not be said everywhere; tried again", task_id)
            else:
                self._ended.add(task_id)
        self._revoked = set(worker_state.revoked)
        self._ended &= self._revoked

    def _end(self, task_id: str) -> None:
        runs = self.store.runs
        error = TaskRevokedError("revoked")
        if runs.condemn(task_id, "revoked", self.store.settings.failure_retention, outcome.of_error(error)):
            options = Call.load(runs.load(task_id)[b"call"], self._accept).options
            request = Context({**options, "id": task_id, "group": options.get("group_id")})
            logger.info("task %s: revoked while no message of it was about", task_id)
            self.app.backend.mark_as_revoked(
                task_id, "revoked", request=request, store_result=not options.get("ignore_result")
            )


class RecoveryThread:
    """A thread of a worker's main process that looks for runs, as long as the worker lives."""

    def __init__(self, app: Any) -> None:
        self._recovery = Recovery(app)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celery-durable-recovery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=_LONGEST_STOP)

    def _run(self) -> None:
        pause = 0.0
        while not self._stopped.wait(pause):
            pause = self._round()

    def _round(self) -> float:
        try:
            self._recovery.recover()
            self._recovery.end_revoked()
        except DurableError as error:
            logger.warning("cannot look for runs to recover: %s", error)
        except Exception:
            # Whatever it was: without this thread nothing is recovered.
            logger.exception("runs could not be recovered")
        else:
            return self._recovery.pause
        return INTERVAL


def recover(app: Any) -> tuple[int, int]:
    """Send the runs of *app* that nobody carries on, once; how many were sent, and how many could not be."""
    recovery, sent, unsent = Recovery(app), 0, 0
    while True:
        found = recovery.recover()
        sent, unsent = sent + found[0], unsent + found[1]
        if found[1] or not recovery.is_amid:
            return sent, unsent
