"""The session of this process with a run: from the opening of an attempt to the delivery of its outcome.

It tells the journal how an attempt ends, once and by one script. :mod:`ends` decides how.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import TypeVar

from celery.exceptions import SoftTimeLimitExceeded

from celery_durable import happenings
from celery_durable.app.store import Store
from celery_durable.config.settings import AttemptSettings, Settings
from celery_durable.drivers.info import TaskInfo
from celery_durable.drivers.watchdog import watchdog
from celery_durable.exceptions import JournalUnavailableError, JournalUnreadableError
from celery_durable.interrupts import Interrupt, JournalLost, NotNow
from celery_durable.journal.layout import Wait
from celery_durable.journal.port import NO_RESULT, Busy, Delivery, Journal, JournalGone, Opened, Result, alone
from celery_durable.steps.attempt import Attempt

from . import news
from .outcome_delivery import LeaseRenewal, OutcomeDelivery

T = TypeVar("T")

logger = logging.getLogger("celery_durable")

_WAIT_HERE = 1.0
"""Seconds. If a run is due sooner than this, or a lease that nobody renews lapses sooner, this process waits for it."""


class EndState(Enum):
    """What the journal knows of the end of an attempt. An end may be followed by another one, but never by OPEN."""

    OPEN = "open"
    """The attempt has not ended."""
    SUSPENDED = "suspended"
    """It knows that the run goes on, and when."""
    FINISHED = "finished"
    """It has the outcome of the run."""
    UNRECORDED = "unrecorded"
    """The attempt has ended, but the journal knows nothing of it, and will not be told."""


class RunSession:
    """What one delivery needs of a run: its journal, its attempt, its lease, and the delivery of its outcome."""

    def __init__(
        self, journal: Journal, settings: Settings, lease: LeaseRenewal | None = None, store: Store | None = None
    ) -> None:
        self.journal = journal
        self.settings = settings
        self.store = store
        """The Redis of the run; None: the journal is in memory."""
        self.delivery: Delivery | None = None
        """The delivery; None until its message is read."""
        self.attempt: Attempt | None = None
        self.end_state = EndState.OPEN
        self.outcome = OutcomeDelivery(journal, settings, lease)
        self._lease = lease

    def open(self, delivery: Delivery, info: TaskInfo, settings: AttemptSettings) -> Attempt:
        """Begin an attempt.

        Raises:
            NotNow: this delivery must not begin one.
            JournalLost: Redis does not answer.
        """
        self.attempt = Attempt(
            self.journal, _open(self.journal, delivery, self.settings.lease, self.store), info, settings
        )
        if self._lease is not None:
            self._lease.keep()
        if happenings.observers:
            news.begun(self.attempt)
        return self.attempt

    # -- the end of the attempt

    @property
    def has_ended(self) -> bool:
        """Whether the attempt has ended, with the knowledge of the journal or without it."""
        return self.end_state is not EndState.OPEN

    @property
    def is_suspended(self) -> bool:
        """Whether the journal knows when the run goes on."""
        return self.end_state is EndState.SUSPENDED

    def suspend(
        self,
        delay: float,
        fields: Mapping[str, str],
        slack: float = 0.0,
        result: Result = NO_RESULT,
        *,
        waits: str = Wait.RETRY,
        though_cancelled: bool = False,
    ) -> bool:
        """Record that the run goes on with another attempt, and store the *result* together with that.

        Args:
            delay: seconds until then.
            fields: further fields of the journal.
            slack: seconds after that. If no message of the broker has brought the run back by then, a worker sends it.
            result: the state of the run, as the result backend stores it.
            waits: what it waits for, a word of :class:`Wait`.
            though_cancelled: suspend it even if somebody has cancelled it. Else it is due at once.

        Returns whether that is done. False: the attempt has ended before, or the journal cannot store the result.
        """
        if self.attempt is None or self.has_ended:
            return False
        staged = self.attempt.drain_staged()
        words = {**staged, **fields}
        suspend = partial(
            self.journal.suspend, delay, words, slack, result, waits=waits, though_cancelled=though_cancelled
        )
        if not _tell(self.attempt, suspend):
            self.attempt.outbox.stage_again(staged)
            return False
        self.end_state = EndState.SUSPENDED
        self.close_attempt()
        # A message of the broker brings the run back from a retry that is due already, and from one that has slack.
        if happenings.observers:
            by_broker = waits == Wait.RETRY and not (delay and not slack)
            news.suspended(self.attempt, waits, delay, by_broker=by_broker)
        return True

    def prove_lease(self) -> None:
        """Check that this attempt still has the run, before others are told something about it.

        Raises:
            Fenced: another attempt has the run, or it has ended.
            JournalLost: Redis does not answer.
        """
        if self.attempt is not None and not self.has_ended:
            _tell(self.attempt, self.journal.prove_lease)

    def give_up(self, *, orderly: bool) -> None:
        """Give the lease back at once, because this process is about to end. Another worker goes on with the run."""
        if self.attempt is not None and not self.has_ended:
            self.close_attempt()
            _release(self.journal, self.attempt, orderly=orderly)

    def release_for_delivery(self) -> None:
        """Give the lease back: the outcome is recorded, and another worker delivers it."""
        self.outcome.mark_failed()
        self.close_attempt()
        if self.attempt is not None:
            _release(self.journal, self.attempt, orderly=True)

    def finish(self, status: str, outcome: str | None, result: Result | None = None) -> bool:
        """Record that the run has ended, with this *outcome*.

        Returns whether the outcome is delivered already, because the *result* was written together with it.
        """
        if self.attempt is None or self.has_ended:
            return False
        return self._record_outcome(self.attempt, status, outcome, result)

    def follow_with(self, status: str, outcome: str) -> None:
        """Record an outcome, although the attempt may have another end: carrying that out has shown a new fact.

        The end before is not taken back. It stays if the outcome cannot be recorded.
        """
        if self.attempt is None:
            return
        try:
            self._record_outcome(self.attempt, status, outcome)
        except JournalLost as lost:
            # The body may still run, if it has used self.retry(). It must not go on, even if it swallows this.
            raise self.attempt.pulse.stop(lost) from lost.error

    def _record_outcome(self, attempt: Attempt, status: str, outcome: str | None, result: Result | None = None) -> bool:
        words = attempt.drain_staged()
        if outcome is not None:
            words["outcome"] = outcome
        delivered, is_recorded, was_over = False, True, self.has_ended
        try:
            delivered = _tell(attempt, partial(self.outcome.write, status, words, result))
        except JournalLost as lost:
            if not isinstance(lost.error, JournalGone):
                raise
            # The work is done. If the task were retried, it would do it twice.
            is_recorded = False
            logger.error("task %s: its outcome is not recorded: %s", attempt.info.task_id, lost)
        self.end_state = EndState.FINISHED
        attempt.pulse.closed = True
        if not delivered:
            self.outcome.mark_pending(status)
        if happenings.observers and is_recorded:
            news.ended(attempt, status, outcome, was_over=was_over)
        return delivered

    def close_attempt(self) -> None:
        """End the attempt. The journal is told nothing more about it."""
        attempt, is_unrecorded = self.attempt, not self.has_ended
        if is_unrecorded:
            self.end_state = EndState.UNRECORDED
        if attempt is not None:
            attempt.pulse.closed = True
            watchdog.forget(attempt.pulse)
        if self._lease is not None:
            self._lease.drop()
        if happenings.observers and attempt is not None and is_unrecorded and attempt.is_fenced:
            news.fenced(attempt)

    def lapse(self) -> None:
        """Stop renewing the lease, as if this process had died: nobody knows when its code ends."""
        if self._lease is not None:
            self._lease.drop()

    def close(self) -> None:
        """End the session: tell the journal of the delivery, and give its connection back."""
        try:
            self.outcome.confirm()
        except (JournalUnavailableError, Interrupt) as error:
            logger.error("the delivery of an outcome could not be recorded: %r", error)
        finally:
            self.close_attempt()
            self.journal.close()


# -- how the journal is asked ------------------------------------------------------------------------------------------


def _open(journal: Journal, delivery: Delivery, lease: float, store: Store | None) -> Opened:
    reserve = alone if store is None else partial(store.families.reserve, delivery.task_id)
    while True:
        try:
            opening = journal.open(delivery, reserve)
        except JournalUnavailableError as error:
            raise JournalLost(error) from error
        match opening:
            case Opened():
                return opening
            case Busy(wait=wait) if wait <= min(_WAIT_HERE, lease / 3):
                time.sleep(wait)
            case _:
                raise NotNow(opening)


def _tell(attempt: Attempt, write: Callable[[], T]) -> T:
    # A lost journal is no interrupt of the attempt yet: the caller knows whether the run has another way to go on.
    try:
        return attempt.pulse.ask(write, loss_ends_it=False)
    except SoftTimeLimitExceeded:
        # A soft time limit is raised once, and the body, which it was to stop, has ended.
        return attempt.pulse.ask(write, loss_ends_it=False)


def _release(journal: Journal, attempt: Attempt, *, orderly: bool) -> None:
    try:
        journal.release(orderly=orderly)
    except (JournalUnavailableError, JournalUnreadableError) as error:
        logger.warning(
            "task %s: its lease cannot be given back, other workers go on when it has lapsed: %s",
            attempt.info.task_id,
            error,
        )
