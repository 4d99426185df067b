"""Recovery of runs: their worker died, their wait is over, or their outcome was not delivered.

Every worker with durable tasks looks for such runs, and sends them again from the journal. Several messages may bring
one run back. One of them begins an attempt, and the others are ignored.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from math import inf
from typing import Any

from celery_durable.app.store import store_of
from celery_durable.delivery import lost_journal
from celery_durable.delivery.call import Call
from celery_durable.delivery.message import BROKER_ERRORS
from celery_durable.exceptions import DurableError
from celery_durable.forks import no_fork
from celery_durable.journal.layout import Status
from celery_durable.redis.runs import Claimed, Claims
from celery_durable.task.of_app import durable_tasks

from .revocation import Revocations

logger = logging.getLogger("celery_durable")

INTERVAL = 1.0
"""Seconds between two looks. If a wait is over sooner, the pause is shorter."""
_LONGEST_STOP = 2.0
"""Seconds for which a worker that stops waits for the present look."""
_SHORT_INTERVAL = 0.05
"""Seconds until the next look if the last one has not seen all runs."""
_SWEEP_INTERVAL = 60.0
"""Seconds between two sweeps of the index."""
_RIGHTS = "docs/durability.md, 'A user with few rights'"
_REMINDER = 60.0
"""Seconds after which a failure that goes on is logged again."""


_REASONS = {Status.RUNNING: "its worker died", Status.SUSPENDED: "its wait is over"}
_REASONS |= dict.fromkeys(Status.ENDED, "its outcome was not delivered")


class Recovery:
    """Finds the runs of an app that no worker goes on with, and sends them again."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.store = store_of(app)
        self._tasks = sorted(durable_tasks(app))
        self._accept = frozenset(app.conf.accept_content)
        self._found: list[Claims] | None = None
        self._swept_at = -inf

    def recover(self) -> tuple[int, int]:
        """Look once, and send the runs that are found. Returns how many were sent, and how many could not be."""
        with no_fork:
            self._found = self.store.runs.claim(self._tasks, self._found)
        for task_id in [task_id for each in self._found for task_id in each.lost]:
            with no_fork:
                lost_journal.report_lost_journal(self.app, task_id)
        claimed = [run for each in self._found for run in each.runs]
        sent = self._send(claimed)
        self._sweep_index()
        return sent, len(claimed) - sent

    def _sweep_index(self) -> None:
        if time.monotonic() - self._swept_at < _SWEEP_INTERVAL:
            return
        self._swept_at = time.monotonic()
        try:
            with no_fork:
                self.store.index.sweep()
        except DurableError as error:
            # Nothing but the index suffers: it keeps the ids of runs that have expired.
            logger.warning(
                "expired runs cannot leave the index: %s; tried again in %g s; what it needs: %s",
                error, _SWEEP_INTERVAL, _RIGHTS,
            )  # fmt: skip

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        found = self._found or []
        if self.has_more:
            return _SHORT_INTERVAL
        return min([INTERVAL, *(each.next_due for each in found if each.next_due is not None)])

    @property
    def has_more(self) -> bool:
        """Whether there may be runs that the last look has not seen."""
        return any(each.runs or any(each.skips) for each in self._found or [])

    def _send(self, claimed: list[Claimed]) -> int:
        if not claimed:
            return 0
        sent, waiting = 0, deque(claimed)
        connection = self.app.connection_for_write()
        try:
            with no_fork:
                producer = self.app.amqp.Producer(connection)
            while waiting:
                with no_fork:
                    sent += self._send_one(waiting[0], producer)
                waiting.popleft()
        except BROKER_ERRORS as error:
            logger.warning("%d runs cannot be sent now, the broker is away; tried again soon: %r", len(waiting), error)
            self.store.runs.unclaim(waiting)
        finally:
            with no_fork:
                connection.release()
        return sent

    def _send_one(self, run: Claimed, producer: Any) -> bool:
        try:
            resume = json.loads(run.resume or b"{}")
            header = {**resume.get("header", {}), "hint": 1}
            call = Call.load(run.call, self._accept)
            call.send(self.app, run.task, header, retries=resume.get("retries", 0), producer=producer)
        except BROKER_ERRORS:
            raise
        except Exception:
            # A run that cannot be sent does not hold up the others.
            logger.exception("task %s: cannot be sent again; it is tried again, after pauses that grow", run.task_id)
            return False
        logger.info("task %s: sent again, %s", run.task_id, _REASONS[run.status])
        return True


class RecoveryThread:
    """A thread in the main process of a worker: it looks for runs as long as the worker lives."""

    def __init__(self, app: Any, worker: Any) -> None:
        self._recovery = Recovery(app)
        self._revocations = Revocations(app, worker)
        self._stopped = threading.Event()
        self._failure_logged_at: float | None = None
        """When the present failure was last logged, by the monotonic clock (s); None if the last look succeeded."""
        self._thread = threading.Thread(target=self._run, name="celery-durable-recovery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look no more: other workers find the runs that this one gives back."""
        self._stopped.set()

    def join(self) -> None:
        """Wait until the thread has ended, so that the runs that it has claimed are sent."""
        self._thread.join(timeout=_LONGEST_STOP)

    def _run(self) -> None:
        pause = 0.0
        while not self._stopped.wait(pause):
            pause = self.look_once()

    def look_once(self) -> float:
        """Recover and revoke once. Returns the seconds until the next look."""
        try:
            self._recovery.recover()
            self._revocations.end_revoked_runs()
        except DurableError as error:
            self._log_failure(error)
        except Exception:
            # No error may end this thread: without it, this worker recovers nothing.
            logger.exception("runs could not be recovered")
        else:
            self._log_success()
            return self._recovery.pause
        return INTERVAL

    def _log_failure(self, error: DurableError) -> None:
        """Log why it cannot look: at first, and then once a minute, because an outage may be long."""
        now = time.monotonic()
        if self._failure_logged_at is None or now - self._failure_logged_at >= _REMINDER:
            logger.warning(
                "cannot look for runs to recover: %s; tried again every second, and logged again after %g s",
                error, _REMINDER,
            )  # fmt: skip
            self._failure_logged_at = now

    def _log_success(self) -> None:
        if self._failure_logged_at is not None:
            logger.info("looks for runs to recover again")
            self._failure_logged_at = None


def recover(app: Any) -> tuple[int, int]:
    """Send all runs of *app* that no worker goes on with. Returns how many were sent, and how many could not be."""
    recovery, sent, unsent = Recovery(app), 0, 0
    while True:
        found = recovery.recover()
        sent, unsent = sent + found[0], unsent + found[1]
        if found[1] or not recovery.has_more:
            return sent, unsent
