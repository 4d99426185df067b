"""The leases of this process. One thread renews those of all attempts, of all apps, even if their steps block.

If a Redis does not answer at once, another thread waits for it, so that it does not hold up the others.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from math import inf
from weakref import WeakSet

from celery_durable.exceptions import JournalUnavailableError, JournalUnreadableError
from celery_durable.rounds import Rounds

from .client.pool import SHORT_TIMEOUT, JournalConnectionPool
from .ownership import Ownership

logger = logging.getLogger("celery_durable")

RENEWALS_PER_LEASE = 3
_AT_ONCE = 0.5
"""Seconds that a round waits for all Redis servers together."""


class Lease:
    """The lease of one attempt."""

    def __init__(self, keeper: LeaseKeeper, ownership: Ownership) -> None:
        self._keeper = keeper
        self._ownership = ownership

    def keep(self) -> None:
        """Renew the lease from now on."""
        self._keeper.keep(self._ownership)

    def drop(self) -> None:
        """Stop renewing the lease."""
        self._keeper.drop(self._ownership)


class LeaseKeeper:
    """It renews the leases of live attempts, three times in the time of a lease."""

    def __init__(self, pool: JournalConnectionPool, lease: float) -> None:
        self._pool = pool
        self._period = lease / RENEWALS_PER_LEASE
        self._held: set[Ownership] = set()
        self.due = inf
        """When its next round begins, by the monotonic clock."""
        self._aside: threading.Thread | None = None
        _everywhere.add(self)

    def keep(self, ownership: Ownership) -> None:
        """Renew the lease of *ownership* until :meth:`drop`."""
        self._held.add(ownership)
        if self.due == inf:
            self.due = time.monotonic() + self._period
        _rounds.expect(self.due)

    def drop(self, ownership: Ownership) -> None:
        """Stop renewing the lease of *ownership*."""
        self._held.discard(ownership)

    def give_back(self) -> None:
        """Give the leases back, because the process ends: others can go on at once."""
        held, self._held = self._held, set()
        if held:
            handovers = [ownership.handover(orderly=True) for ownership in held]
            try:
                self._pool.execute(*handovers, timeout=SHORT_TIMEOUT)
            except (JournalUnavailableError, JournalUnreadableError) as error:
                logger.warning(
                    "%d leases cannot be given back, others go on with their runs when these have lapsed: %s",
                    len(held),
                    error,
                )

    def forget(self) -> None:
        """Forget all leases in a forked child: the attempts belong to the parent, and its threads are not here."""
        self._held = set()
        self._aside = None
        self.due = inf

    def tend(self, timeout: float) -> None:
        """Begin a round. If Redis does not answer within *timeout* seconds, a thread of its own does it."""
        self.due = time.monotonic() + self._period
        if not (self._held or self._pool.has_idle) or (self._aside is not None and self._aside.is_alive()):
            return
        if self._pool.answers(timeout):
            self._round()
        else:
            self._aside = threading.Thread(target=self._round, name="celery-durable-silent-redis", daemon=True)
            self._aside.start()

    def _round(self) -> None:
        try:
            if held := list(self._held):
                self._renew(held)
            # An attempt says that its outcome was delivered, and does not wait for the reply.
            self._pool.flush_idle()
        except Exception:
            # Any error is caught: if rounds do not go on, all leases lapse.
            logger.exception("leases could not be renewed")

    def _renew(self, held: list[Ownership]) -> None:
        sent = time.monotonic()
        try:
            # It waits until the next round at most. An attempt may end meanwhile, and the next round leaves it out. If
            # this renewal were sent again after that, it would take the lease for an attempt that is over.
            replies = self._pool.execute(*(ownership.renewal() for ownership in held), timeout=self._period)
            for ownership, renewed in zip(held, replies, strict=True):
                ownership.renewed(renewed, sent)
        except JournalUnavailableError as error:
            logger.warning("cannot renew the leases of %d attempts: %s", len(held), error)
        except JournalUnreadableError as error:
            if len(held) == 1:
                logger.warning("cannot renew a lease: %s", error)
            else:
                # One of them is damaged. The others are renewed.
                for ownership in held:
                    self._renew([ownership])


_everywhere: WeakSet[LeaseKeeper] = WeakSet()


def _begin_rounds() -> float:
    now = time.monotonic()
    for keeper in list(_everywhere):
        if keeper.due <= now:
            try:
                keeper.tend(max(0.0, now + _AT_ONCE - time.monotonic()))
            except Exception:
                # Any error is caught: without this thread all leases of the process lapse.
                logger.exception("leases could not be renewed")
    return min((keeper.due for keeper in list(_everywhere)), default=inf)


_rounds = Rounds("celery-durable-leases", _begin_rounds)


def _forget_all() -> None:
    _rounds.start_over()
    for keeper in _everywhere:
        keeper.forget()


def give_all_back() -> None:
    """Give back the leases of all attempts of this process."""
    for keeper in _everywhere:
        keeper.give_back()


os.register_at_fork(after_in_child=_forget_all)
