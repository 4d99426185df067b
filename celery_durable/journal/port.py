"""What an attempt asks of its journal, and what the journal answers. Redis and memory implement it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import NamedTuple, Protocol

from celery_durable.exceptions import JournalUnavailableError

from .layout import Fields, Wait

LONGEST_READ = 5.0
"""Seconds that a reply may take. A connection that takes longer is closed."""


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
    """It is neither redelivered nor a retry, or it was sent as a Retry. It may reopen a run that has failed before."""
    reopen: str = ""
    """The name of a request to reopen the run. Each request does so once, however often its message is delivered."""
    restarted: str | None = None
    """The newest run that restarted it when that was asked; empty: none did; None: the message does not say it."""
    failed: str | None = None
    """The number of the attempt that had failed when that was asked; None: the message does not say it."""
    changed: int = 0
    """How often ``self.retry(args=...)`` had changed the arguments when it was sent. The newest change counts."""
    received: float = inf
    """When it arrived, by this machine's monotonic clock; the default: just now."""
    asked: float | None = None
    """It repeats a message that found no Redis: when the first of these arrived, in seconds of Redis' clock."""
    sent: str = ""
    """A name that all copies of the message have. Empty: the message does not say it."""
    over: str = ""
    """The number of the attempt whose failure it reopens."""
    taken_back: tuple[str, ...] = ()
    """The fields that are deleted to reopen it: see :mod:`.reopening`."""
    actions: int = 0
    """The length of the field of what people had done with the run by then. If it has grown, that is decided again."""
    reserved: str = ""
    """The token with which it has reserved the failed run. Empty: no other run does the same work."""
    wake_up: bool = False
    """It was sent for a run that has a journal: by a worker that found it, or for a Retry. It begins no new run."""
    seed: str = ""
    """The seed of a new run. Empty: the message brings none, so it is drawn now."""
    build: str = ""
    """The build of the code that will run."""


class Opened(NamedTuple):
    """This process has the lease: an attempt may begin."""

    number: int
    """The number of the attempt. The first one of a run has number 1."""
    now: int
    """Milliseconds of Redis' clock."""
    recoveries: int
    """How many attempts in a row have died without progress."""
    reopened: bool
    """The run had failed, and this attempt is its Retry."""
    fields: Fields


class Busy(NamedTuple):
    """Another attempt has the lease, or the run is not due yet."""

    wait: float
    """Seconds until it is worth looking again."""
    reason: str
    waits: str = ""
    """If the run is not due yet: what it waits for, a word of :class:`Wait`. Empty: another attempt has the lease."""


class Outdated(NamedTuple):
    """A newer message has begun an attempt, or the run was purged. This one never begins one."""

    reason: str


class Finished(NamedTuple):
    """The run has ended, and the journal keeps its outcome."""

    fields: Fields
    """Empty: its journal is deleted."""


class IdConflict(NamedTuple):
    """The id belongs to a run of another task, or with other arguments."""

    task: str
    """The task of that run."""
    fields: Fields


class Result(NamedTuple):
    """A result as Celery's backend stores it, and publishes it to those who wait."""

    key: str | bytes
    text: str | bytes
    expires: int
    """Seconds. 0: never."""
    lasting: str | bytes = ""
    """What a result begins with that this one does not replace. Empty: it replaces any."""


NO_RESULT = Result("", "", 0)
"""There is none to store: the task's result is ignored, for example."""

OpenResult = Opened | Busy | Outdated | Finished | IdConflict
"""What the journal answers to a delivery."""


Reserve = Callable[[Fields, str], str | None]
"""Reserves a failed run with these fields, before a Retry reopens it. It is given the token of this Retry, or an empty
text, and returns what the Retry says then, as :attr:`Delivery.reserved`; None: another run, such as its restart, does
its work by now."""


def alone(_fields: Fields, _token: str) -> str:
    """Nobody knows of another run."""
    return ""


class Journal(Protocol):
    """What an attempt asks of its journal. Every write is checked against the fence.

    It has many methods, because it is one port: all that they ask goes over one connection, in the order of the calls.
    """

    owner: str
    """The process that has the run; empty if the journal is in memory."""

    def open(self, delivery: Delivery, reserve: Reserve = alone) -> OpenResult:
        """Take the lease and load the run, or say why the delivery begins no attempt.

        *is_taken* says whether another run does the work of this failed one. Then the delivery does not reopen it.
        """
        ...

    def send(self, fields: Mapping[str, str], *, with_next: bool = False) -> None:
        """Write entries, and do not wait for the reply.

        *with_next*: the write may travel with the next one. If this process dies before that, it is made all the same.
        """
        ...

    def record_aside(self, fields: Mapping[str, str]) -> bool:
        """Write entries over a connection of their own, in any thread. False: another attempt has begun."""
        ...

    @property
    def has_pending(self) -> bool:
        """Whether something that was sent is not acknowledged."""
        ...

    def flush_if_connected(self) -> bool:
        """Like :meth:`flush`, if replies are there. False: the connection is lost, and must be waited for."""
        ...

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged. Raises Fenced or JournalUnavailableError."""
        ...

    def spin_wait(self) -> bool:
        """Wait for a moment, without sleeping, for a fast reply. Returns whether it has arrived."""
        ...

    def fileno(self) -> int | None:
        """The file descriptor that becomes readable when a reply arrives; None if there is none to wait for."""
        ...

    @property
    def lease_in_doubt(self) -> bool:
        """Whether the lease may have lapsed: nobody has renewed it for as long as it lasts."""
        ...

    def prove_lease(self) -> None:
        """Ask whether this attempt still has the lease. Raises Fenced or JournalUnavailableError."""
        ...

    def by_redis(self, moment: float) -> float | None:
        """A moment of the monotonic clock in seconds of Redis' clock. None: the journal does not know that clock."""
        ...

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody has asked to cancel the run."""
        ...

    def look_for_cancellation(self) -> None:
        """Ask whether somebody has, over a connection of its own."""
        ...

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
        """Give the lease back until *delay* seconds from now, and store the *result* in the same act.

        *waits* says what the run waits for, for those who look at it.
        If no message has begun an attempt *slack* seconds after that, a worker sends one. A run that was asked to
        cancel does not wait. *though_cancelled*: it waits, because this attempt knew, and could not tell the code.

        False: this Redis cannot do both at once, and has written nothing.
        """
        ...

    def release(self, *, orderly: bool) -> None:
        """Give the lease back at once: this process goes no further with the run.

        *orderly*: the attempt is not the cause. Else it counts as one that has died.
        """
        ...

    def finish(self, status: str, fields: Mapping[str, str]) -> None:
        """Write the outcome. It is kept until it is delivered."""
        ...

    def conclude(self, fields: Mapping[str, str], keep: float, result: Result) -> bool:
        """Write the outcome of a success and its *result* in one act, which delivers it. Keep it for *keep* seconds.

        False: this Redis cannot write both at once, and has written nothing.
        """
        ...

    def deliver(self, keep: float, *, arrived: bool = True) -> None:
        """Say that the outcome has *arrived*, or never can. Keep it for *keep* seconds. Do not wait for the reply."""
        ...

    def close(self) -> None:
        """Give back the connection."""
        ...
