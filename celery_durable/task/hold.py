"""This process's hold on a run: from the opening of an attempt to the delivery of its outcome.

What an attempt ends with is said to the journal here, once and in one piece; why it ends is :mod:`execution`'s affair.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from celery import states
from celery.exceptions import SoftTimeLimitExceeded

from celery_durable.config.settings import Settings
from celery_durable.drivers.driver import answer
from celery_durable.drivers.progress import watcher
from celery_durable.exceptions import JournalUnavailableError, JournalUnreadableError
from celery_durable.interrupts import Interrupt, JournalLost, NotNow
from celery_durable.journal.port import Busy, Delivery, Journal, JournalGone, Opened, Result
from celery_durable.steps.attempt import Attempt, Surroundings, Terms

if TYPE_CHECKING:
    from celery_durable.redis.lease import Lease

T = TypeVar("T")

logger = logging.getLogger("celery_durable")

_WAIT_HERE = 1.0
"""A run that is due sooner than this is waited for, not sent around; a lease that is not renewed any more, too."""
_BACK_AGAIN = 60.0
"""Seconds in which Celery tries a task again, at the latest, that has lost its journal for as long as a lease."""


class Hold:
    """One delivery's hold on a run."""

    def __init__(self, journal: Journal, settings: Settings, lease: Lease | None = None) -> None:
        self.journal = journal
        self.settings = settings
        self.attempt: Attempt | None = None
        self.ended = False
        """The journal has been told how the attempt ended, or is not to be told."""
        self.suspended = False
        """The journal knows that and when the run goes on."""
        self._lease = lease
        self._status = ""
        self._keep: float | None = None

    def open(self, delivery: Delivery, about: Surroundings, terms: Terms) -> Attempt:
        """Begin an attempt.

        Raises:
            NotNow: this delivery is not to begin one.
            JournalLost: Redis does not answer.
        """
        self.attempt = Attempt(self.journal, self._opened(delivery), about, terms)
        if self._lease is not None:
            self._lease.keep()
        return self.attempt

    def _opened(self, delivery: Delivery) -> Opened:
        while True:
            try:
                verdict = self.journal.open(delivery)
            except JournalUnavailableError as error:
                raise JournalLost(error) from error
            match verdict:
                case Opened():
                    return verdict
                case Busy(wait=wait) if wait <= min(_WAIT_HERE, self.settings.lease / 3):
                    time.sleep(wait)
                case _:
                    raise NotNow(verdict)

    # -- the end of the attempt

    def suspend(
        self, delay: float, fields: Mapping[str, str], slack: float = 0.0, *, though_cancelled: bool = False
    ) -> None:
        """The run goes on in *delay* seconds, in another attempt.

        *slack*: seconds more until a worker sends it, where a message of the broker is to bring it back.
        """
        if self.attempt is not None and not self.ended:
            words = {**self.attempt.last_words(), **fields}
            suspend = partial(self.journal.suspend, delay, words, slack, though_cancelled=though_cancelled)
            self._tell(self.attempt, suspend)
            self.suspended = True
            self.let_go()

    def back_off(self, delay: float, fields: Mapping[str, str]) -> bool:
        """As :meth:`suspend`, until a retry; False if a message is to carry that wait, because it is short."""
        by_journal = delay > self.settings.max_broker_delay
        self.suspend(delay, fields, slack=0.0 if by_journal else self.settings.lease)
        return by_journal

    def prove_lease(self) -> None:
        """Before something is said elsewhere: the run is still ours."""
        if self.attempt is not None and not self.ended:
            self._tell(self.attempt, self.journal.prove_lease)

    def give_up(self, *, orderly: bool) -> None:
        """This process is about to die: the run is another's at once."""
        if self.attempt is not None and not self.ended:
            self.let_go()
            self._release(self.attempt, orderly=orderly)

    def hand_over(self) -> None:
        """The outcome is written, and another process is to deliver it."""
        self.not_delivered()
        self.let_go()
        if self.attempt is not None:
            self._release(self.attempt, orderly=True)

    def _release(self, attempt: Attempt, *, orderly: bool) -> None:
        try:
            self.journal.release(orderly=orderly)
        except (JournalUnavailableError, JournalUnreadableError) as error:
            logger.warning(
                "task %s: its lease cannot be given back, others go on when it has lapsed: %s",
                attempt.about.task_id,
                error,
            )

    def finish(self, status: str, outcome: str | None, result: Result | None = None) -> bool:
        """The run has ended; its outcome is to be delivered.

        Whether it is already, with the *result* that was written beside it: then nothing that follows contradicts it.
        """
        delivered = False
        if self.attempt is not None and not self.ended:
            words = self.attempt.last_words()
            if outcome is not None:
                words["outcome"] = outcome
            try:
                delivered = self._tell(self.attempt, partial(self._write_end, status, words, result))
            except JournalLost as lost:
                if not isinstance(lost.error, JournalGone):
                    raise
                # All is done: to begin anew would do it twice.
                logger.error("the outcome of task %s is not journaled: %s", self.attempt.about.task_id, lost)
                self.attempt.interrupt = None
            self.ended = self.attempt.closed = True
            if not delivered:
                self.will_deliver(status)
        return delivered

    @property
    def can_deliver(self) -> bool:
        """Whether a result may go with the outcome.

        Nobody is to read it before that is where it is to be. And where Redis is lost before its reply arrives, the
        journal is to be there still when the task is tried again.
        """
        settings = self.settings
        long_enough = settings.retention >= settings.lease + _BACK_AGAIN
        return settings.journal_sync == "memory" and long_enough

    def _write_end(self, status: str, words: Mapping[str, str], result: Result | None) -> bool:
        if result is not None and self.journal.conclude(words, self._retention(status), result):
            return True
        self.journal.finish(status, words)
        return False

    def contradicts(self, state: str | None) -> bool:
        """Whether Celery has made a failure of a success: because a callback could not be sent, say."""
        return self._status == "succeeded" and state == states.FAILURE

    @property
    def lacks_success(self) -> bool:
        """Whether the journal would be wrong to say of this attempt what it says now, were the run a success."""
        return self.attempt is not None and (not self.ended or self._status == "failed")

    def will_deliver(self, status: str) -> None:
        """When this delivery is over, the run's outcome has been delivered; until then nobody else is to do it."""
        self._status = status
        self._keep = self._retention(status)
        if self._lease is not None:
            self._lease.keep()

    def not_delivered(self) -> None:
        """The outcome did not arrive: a worker tries again, after pauses that grow."""
        self._keep = None

    def let_go(self) -> None:
        """End the attempt; nothing more is said of it."""
        self.ended = True
        if self.attempt is not None:
            self.attempt.closed = True
            watcher.forget(self.attempt)
        if self._lease is not None:
            self._lease.drop()

    def lapse(self) -> None:
        """Let the lease lapse, as if this process had died: nobody knows when its code ends."""
        if self._lease is not None:
            self._lease.drop()

    def never_delivered(self) -> None:
        """What hangs on the outcome can never be sent; a Retry tries it all the same."""
        if self._keep is not None:
            self.journal.deliver(self.settings.failure_retention, arrived=False)
            self._keep = None

    def close(self) -> None:
        """The delivery is over: give back what it used."""
        try:
            if self._keep is not None:
                self.journal.deliver(self._keep)
        except (JournalUnavailableError, Interrupt) as error:
            logger.error("the delivery of an outcome could not be journaled: %r", error)
        finally:
            self.let_go()
            self.journal.close()

    def _retention(self, status: str) -> float:
        return self.settings.failure_retention if status in ("failed", "revoked") else self.settings.retention

    @staticmethod
    def _tell(attempt: Attempt, write: Callable[[], T]) -> T:
        try:
            return answer(attempt, write)
        except SoftTimeLimitExceeded:
            # It strikes once, and what it was to stop has ended.
            return answer(attempt, write)
