"""The delivery of an outcome: Celery stores it, and sends what hangs on it; then the journal is told so."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from celery import states

from celery_durable.config.settings import Settings
from celery_durable.journal.layout import Status
from celery_durable.journal.port import Journal

_BACK_AGAIN = 60.0
"""Seconds in which Celery tries a task again, at the latest, that has lost its journal for as long as a lease."""


class Lease(Protocol):
    """The lease of a run in Redis: see :mod:`celery_durable.redis.lease`."""

    def keep(self) -> None:
        """Renew it from now on."""

    def drop(self) -> None:
        """Renew it no more."""


class State(Enum):
    """What becomes of an outcome that Celery is to store, and of what hangs on it."""

    NONE = "none"
    """There is none, or it is stored already."""
    PENDING = "pending"
    """It is done when this delivery is over; until then nobody else is to do it."""
    FAILED = "failed"
    """A worker tries again, after pauses that grow."""
    IMPOSSIBLE = "impossible"
    """It can never be sent; a Retry tries it all the same."""


class OutcomeDelivery:
    """That of one session's outcome."""

    def __init__(self, journal: Journal, settings: Settings, lease: Lease | None) -> None:
        self._journal = journal
        self._settings = settings
        self._lease = lease
        self._state = State.NONE
        self.status = ""
        """That of the outcome."""

    @property
    def may_be_written_with_outcome(self) -> bool:
        """Whether a result may go with the outcome, in one act.

        Nobody is to read it before that is where it is to be. And where Redis is lost before its reply arrives, the
        journal is to be there still when the task is tried again.
        """
        settings = self._settings
        long_enough = settings.retention >= settings.lease + _BACK_AGAIN
        return settings.journal_sync == "memory" and long_enough

    def retention(self, status: str) -> float:
        """Seconds for which a run is kept that has ended so."""
        settings = self._settings
        return settings.failure_retention if status in (Status.FAILED, Status.REVOKED) else settings.retention

    def contradicts(self, state: str | None) -> bool:
        """Whether Celery has made a failure of a success: because a callback could not be sent, say."""
        return self.status == Status.SUCCEEDED and state == states.FAILURE

    def pending(self, status: str) -> None:
        """When this delivery is over, the outcome has been delivered; until then nobody else is to do it."""
        self.status, self._state = status, State.PENDING
        if self._lease is not None:
            self._lease.keep()

    def failed(self) -> None:
        """The outcome did not arrive: a worker tries again, after pauses that grow."""
        self._state = State.FAILED

    def impossible(self) -> None:
        """What hangs on the outcome can never be sent; a Retry tries it all the same."""
        if self._state is State.PENDING:
            self._journal.deliver(self._settings.failure_retention, arrived=False)
            self._state = State.IMPOSSIBLE

    def confirm(self) -> None:
        """The delivery is over: if nothing went wrong, the outcome has arrived."""
        if self._state is State.PENDING:
            self._journal.deliver(self.retention(self.status))
