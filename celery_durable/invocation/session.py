"""This process's session with a run: from the opening of an attempt to the delivery of its outcome.

The journal is told here how an attempt ends, once and in one piece. :mod:`ends` decides how.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import TypeVar

from celery.exceptions import SoftTimeLimitExceeded

from celery_durable.config.settings import AttemptSettings, Settings
from celery_durable.drivers.info import TaskInfo
from celery_durable.drivers.watchdog import watchdog
from celery_durable.exceptions import JournalUnavailableError, JournalUnreadableError
from celery_durable.interrupts import Interrupt, JournalLost, NotNow
from celery_durable.journal.layout import Status
from celery_durable.journal.port import Busy, Delivery, Journal, JournalGone, Opened, Result
from celery_durable.steps.attempt import Attempt

from .outcome_delivery import Lease, OutcomeDelivery

T = TypeVar("T")

logger = logging.getLogger("celery_durable")

_WAIT_HERE = 1.0
"""A run that is due sooner than this is waited for, not sent around; a lease that is not renewed any more, too."""


class Told(Enum):
    """What the journal has been told of the end of an attempt."""

    NOTHING = "nothing"
    SUSPENDED = "suspended"
    """That the run goes on, and when."""
    FINISHED = "finished"
    LET_GO = "let go"
    """Nothing, and it will not be."""


class RunSession:
    """What one delivery has of a run."""

    def __init__(self, journal: Journal, settings: Settings, lease: Lease | None = None) -> None:
        self.journal = journal
        self.settings = settings
        self.attempt: Attempt | None = None
        self.told = Told.NOTHING
        self.outcome = OutcomeDelivery(journal, settings, lease)
        self._lease = lease

    def open(self, delivery: Delivery, info: TaskInfo, settings: AttemptSettings) -> Attempt:
        """Begin an attempt.

        Raises:
            NotNow: this delivery is not to begin one.
            JournalLost: Redis does not answer.
        """
        self.attempt = Attempt(self.journal, self._opened(delivery), info, settings)
        if self._lease is not None:
            self._lease.keep()
        return self.attempt

    def _opened(self, delivery: Delivery) -> Opened:
        while True:
            try:
                opening = self.journal.open(delivery)
            except JournalUnavailableError as error:
                raise JournalLost(error) from error
            match opening:
                case Opened():
                    return opening
                case Busy(wait=wait) if wait <= min(_WAIT_HERE, self.settings.lease / 3):
                    time.sleep(wait)
                case _:
                    raise NotNow(opening)

    # -- the end of the attempt

    @property
    def has_ended(self) -> bool:
        """Whether the journal was told how the attempt ended, or is not to be told."""
        return self.told is not Told.NOTHING

    @property
    def is_suspended(self) -> bool:
        """Whether the journal knows that and when the run goes on."""
        return self.told is Told.SUSPENDED

    def suspend(
        self, delay: float, fields: Mapping[str, str], slack: float = 0.0, *, though_cancelled: bool = False
    ) -> None:
        """The run goes on in *delay* seconds, in another attempt.

        *slack*: seconds more until a worker sends it, where a message of the broker is to bring it back.
        """
        if self.attempt is not None and not self.has_ended:
            words = {**self.attempt.outbox.drain_staged(), **fields}
            suspend = partial(self.journal.suspend, delay, words, slack, though_cancelled=though_cancelled)
            self._tell(self.attempt, suspend)
            self.told = Told.SUSPENDED
            self.close_attempt()

    def prove_lease(self) -> None:
        """Before something is said elsewhere: the run is still ours."""
        if self.attempt is not None and not self.has_ended:
            self._tell(self.attempt, self.journal.prove_lease)

    def give_up(self, *, orderly: bool) -> None:
        """This process is about to die: the run is another's at once."""
        if self.attempt is not None and not self.has_ended:
            self.close_attempt()
            self._release(self.attempt, orderly=orderly)

    def release_for_delivery(self) -> None:
        """The outcome is written, and another process is to deliver it."""
        self.outcome.failed()
        self.close_attempt()
        if self.attempt is not None:
            self._release(self.attempt, orderly=True)

    def _release(self, attempt: Attempt, *, orderly: bool) -> None:
        try:
            self.journal.release(orderly=orderly)
        except (JournalUnavailableError, JournalUnreadableError) as error:
            logger.warning(
                "task %s: its lease cannot be given back, others go on when it has lapsed: %s",
                attempt.info.task_id,
                error,
            )

    def finish(self, status: str, outcome: str | None, result: Result | None = None) -> bool:
        """The run has ended; its outcome is to be delivered.

        Whether it is already, with the *result* that was written beside it: then nothing that follows contradicts it.
        """
        delivered = False
        if self.attempt is not None and not self.has_ended:
            words = self.attempt.outbox.drain_staged()
            if outcome is not None:
                words["outcome"] = outcome
            try:
                delivered = self._tell(self.attempt, partial(self._write_end, status, words, result))
            except JournalLost as lost:
                if not isinstance(lost.error, JournalGone):
                    raise
                # All is done: to begin anew would do it twice.
                logger.error("the outcome of task %s is not journaled: %s", self.attempt.info.task_id, lost)
                self.attempt.pulse.interrupt = None
            self.told = Told.FINISHED
            self.attempt.pulse.closed = True
            if not delivered:
                self.outcome.pending(status)
        return delivered

    def finish_after_all(self, status: str, outcome: str) -> None:
        """As :meth:`finish`, though the journal was told of another end: that one did not come to be."""
        self.told = Told.NOTHING
        self.finish(status, outcome)

    def _write_end(self, status: str, words: Mapping[str, str], result: Result | None) -> bool:
        if result is not None and self.journal.conclude(words, self.outcome.retention(status), result):
            return True
        self.journal.finish(status, words)
        return False

    @property
    def lacks_success(self) -> bool:
        """Whether the journal would be wrong to say of this attempt what it says now, were the run a success."""
        return self.attempt is not None and (not self.has_ended or self.outcome.status == Status.FAILED)

    def close_attempt(self) -> None:
        """End the attempt; nothing more is said of it."""
        if not self.has_ended:
            self.told = Told.LET_GO
        if self.attempt is not None:
            self.attempt.pulse.closed = True
            watchdog.forget(self.attempt.pulse)
        if self._lease is not None:
            self._lease.drop()

    def lapse(self) -> None:
        """Let the lease lapse, as if this process had died: nobody knows when its code ends."""
        if self._lease is not None:
            self._lease.drop()

    def close(self) -> None:
        """The delivery is over: give back what it used."""
        try:
            self.outcome.confirm()
        except (JournalUnavailableError, Interrupt) as error:
            logger.error("the delivery of an outcome could not be journaled: %r", error)
        finally:
            self.close_attempt()
            self.journal.close()

    @staticmethod
    def _tell(attempt: Attempt, write: Callable[[], T]) -> T:
        try:
            return attempt.pulse.ask(write)
        except SoftTimeLimitExceeded:
            # It strikes once, and what it was to stop has ended.
            return attempt.pulse.ask(write)
