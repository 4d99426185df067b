"""What an attempt asks of its journal: the protocol, and what crosses it. Knows neither Celery nor Redis."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import NamedTuple, Protocol

from celery_durable.exceptions import JournalUnavailableError

from .layout import Fields

LONGEST_READ = 5.0
"""Seconds that a reply may take; after that the connection is not trusted any more."""


class JournalGone(JournalUnavailableError):
    """The journal of a live run is no longer there: evicted, flushed, or lost with its server."""


class Delivery(NamedTuple):
    """A message that may begin an attempt."""

    task_id: str
    task: str
    fingerprint: str
    call: str
    nesting: int = 0
    fresh: bool = True
    """Reopens a run that had failed when it arrived: neither redelivered nor a retry, or sent for that."""
    reopen: str = ""
    """Names a request to reopen the run, which is then done once, however often its message is delivered."""
    changed: int = 0
    """How often the arguments had been changed on purpose, by ``self.retry(args=...)``; the newest change counts."""
    received: float = inf
    """When it arrived, by this machine's monotonic clock; if that is not known: just now."""
    asked: float | None = None
    """When the first message arrived that this one repeats, by Redis' clock, in seconds since the epoch."""
    sent: str = ""
    """Names its sending, the same for all copies of the message; empty if it does not tell."""
    over: str = ""
    """The number of the attempt whose failure it reopens, and what that takes back: see :mod:`.reopening`."""
    taken_back: tuple[str, ...] = ()
    wake_up: bool = False
    """A worker has sent it on behalf of another message, to look at the run again; it begins no new run."""
    seed: str = ""
    """Of a new run; drawn now, if the message brings none."""
    build: str = ""
    """That of the code which is to run."""


class Opened(NamedTuple):
    """The lease is ours: an attempt may begin."""

    number: int
    now: int
    recoveries: int
    reopened: bool
    fields: Fields


class Busy(NamedTuple):
    """Another attempt holds the lease, or the run is not due yet: come back in *wait* seconds."""

    wait: float
    reason: str
    early: bool = False
    """It is not due yet."""
    stalled: bool = False
    """What it waits for is a worker whose code fits."""


class Outdated(NamedTuple):
    """The delivery is of an older message than one that has begun an attempt since: it never begins one."""

    reason: str


class Finished(NamedTuple):
    """The run has ended; its outcome is kept."""

    fields: Fields


class IdConflict(NamedTuple):
    """The id belongs to another task, or to other arguments."""

    task: str
    fields: Fields


class Result(NamedTuple):
    """A result as Celery's backend keeps it, and publishes it to who waits."""

    key: str | bytes
    text: str | bytes
    expires: int
    """Seconds; 0: never."""


NO_RESULT = Result("", "", 0)
"""Of a task whose result is ignored."""

OpenResult = Opened | Busy | Outdated | Finished | IdConflict


class Journal(Protocol):
    """What an attempt asks of its journal. Every write is checked against the fence."""

    def open(self, delivery: Delivery) -> OpenResult:
        """Take the lease and load the run, or say why not."""
        ...

    def send(self, fields: Mapping[str, str], *, with_next: bool = False) -> None:
        """Write entries without waiting for the reply.

        *with_next*: the write may travel with the next one, as long as it is made if this process dies before.
        """
        ...

    def record_aside(self, fields: Mapping[str, str]) -> bool:
        """Write entries beside what this journal sends and waits for, in any thread; False if it is fenced."""
        ...

    @property
    def owes(self) -> bool:
        """Whether something that was sent is not acknowledged."""
        ...

    def settle_if_connected(self) -> bool:
        """As :meth:`settle`, when replies are there; False if the connection is lost and one has to wait for it."""
        ...

    def settle(self) -> None:
        """Wait until all that was sent is acknowledged; raises Fenced or JournalUnavailableError."""
        ...

    def look_out(self) -> bool:
        """Give a reply that will be quick a moment to arrive; whether it has."""
        ...

    def fileno(self) -> int | None:
        """What becomes readable when a reply arrives; None when nothing is outstanding."""
        ...

    @property
    def lease_in_doubt(self) -> bool:
        """Whether the lease may have lapsed unnoticed: it was not renewed for as long as it lasts."""
        ...

    def prove_lease(self) -> None:
        """Ask whether the lease is still ours; raises Fenced or JournalUnavailableError."""
        ...

    def by_redis(self, moment: float) -> float | None:
        """A moment of the monotonic clock by Redis' one, in seconds since the epoch; None if that is not known."""
        ...

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody has asked to cancel the run."""
        ...

    def look_for_cancellation(self) -> None:
        """Ask whether somebody has, beside what this journal sends and waits for."""
        ...

    def suspend(
        self, delay: float, fields: Mapping[str, str], slack: float = 0.0, *, though_cancelled: bool = False
    ) -> None:
        """Give the lease back until *delay* seconds from now.

        If no message has begun an attempt *slack* seconds after that, a worker sends one. A run that is to be cancelled
        does not wait, unless *though_cancelled*: this attempt knew of that, and could not tell the code.
        """
        ...

    def release(self, *, orderly: bool) -> None:
        """Give the lease back at once: this process is about to die, *orderly* or by what the attempt did to it."""
        ...

    def finish(self, status: str, fields: Mapping[str, str]) -> None:
        """Write the outcome, to be kept until it is delivered."""
        ...

    def conclude(self, fields: Mapping[str, str], keep: float, result: Result) -> bool:
        """Write the outcome of a success with its *result*, and thereby deliver it; it is kept for *keep* seconds.

        False if this Redis cannot write both at once, and has written nothing.
        """
        ...

    def deliver(self, keep: float, *, arrived: bool = True) -> None:
        """The outcome has *arrived*, or never can, and is kept for *keep* seconds; sent without waiting."""
        ...

    def close(self) -> None:
        """Give back what the journal holds of this process."""
        ...
