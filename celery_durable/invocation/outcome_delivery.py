"""The delivery of an outcome: Celery stores it and sends callbacks, and then the journal is told so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from celery import states

from celery_durable.config.settings import Settings
from celery_durable.journal.layout import Status
from celery_durable.journal.port import Journal, Result

_BACK_AGAIN = 60.0
"""If an attempt loses its journal for as long as a lease, Celery retries the task within this many seconds."""


class LeaseRenewal(Protocol):
    """What renews the lease of a run: see :mod:`celery_durable.redis.lease`."""

    def keep(self) -> None:
        """Renew the lease from now on."""

    def drop(self) -> None:
        """Renew the lease no more."""


class OutcomeDelivery:
    """The delivery of the outcome of one session."""

    def __init__(self, journal: Journal, settings: Settings, lease: LeaseRenewal | None) -> None:
        self._journal = journal
        self._settings = settings
        self._lease = lease
        self._pending = False
        """Whether Celery is to store the outcome and to send the callbacks, and has not failed to do so."""
        self.status = ""
        """The status of the outcome; empty until there is one."""

    @property
    def may_be_written_with_outcome(self) -> bool:
        """Whether one script may write the outcome and the result.

        It may not if a write needs a confirmation: nobody may read the result before that. It may not if the retention
        is very short: if Redis is lost before its reply arrives, the retried task must still find its journal.
        """
        settings = self._settings
        long_enough = settings.retention >= settings.lease + _BACK_AGAIN
        return settings.journal_sync == "memory" and long_enough

    def retention(self, status: str) -> float:
        """Seconds for which the journal of a run with this status is kept."""
        return self._settings.retention_after(status)

    def contradicts(self, state: str | None) -> bool:
        """Whether Celery has turned a success into a failure, because it could not send a callback, for example."""
        return self.status == Status.SUCCEEDED and state == states.FAILURE

    def write(self, status: str, fields: Mapping[str, str], result: Result | None) -> bool:
        """Write the outcome, and the *result* together with it if possible. Returns whether the result is written."""
        if result is not None and self._journal.conclude(fields, self.retention(status), result):
            return True
        self._journal.finish(status, fields)
        return False

    def mark_pending(self, status: str) -> None:
        """The outcome is recorded, and Celery delivers it now. The lease keeps other workers from doing so, too."""
        self.status, self._pending = status, True
        if self._lease is not None:
            self._lease.keep()

    def mark_failed(self) -> None:
        """The outcome could not be delivered: a worker tries again, after pauses that grow."""
        self._pending = False

    def mark_impossible(self) -> None:
        """A callback can never be sent. A Retry tries it all the same."""
        if self._pending:
            self._journal.deliver(self._settings.failure_retention, arrived=False)
            self._pending = False

    def confirm(self) -> None:
        """Celery has finished. If no failure was marked, tell the journal that the outcome is delivered."""
        if self._pending:
            self._journal.deliver(self.retention(self.status))
