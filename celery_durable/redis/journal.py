"""The journal of a run in Redis: keys, scripts, the fence. See :mod:`~celery_durable.journal.layout` for the hash.

    <prefix>{<shard>}:run:<task id>   one hash per run
    <prefix>{<shard>}:leases          sorted set: when the lease of a run lapses
    <prefix>{<shard>}:due             sorted set: when a suspended run is to go on

The shard is the Cluster hash tag, so that one script can change all three.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from math import inf
from typing import Any, NamedTuple
from zlib import crc32

from celery_durable.exceptions import ConfigurationError, JournalUnavailableError, JournalUnreadableError
from celery_durable.interrupts import Fenced
from celery_durable.journal.layout import LAYOUT, UNBRANCHED, Cancellation, Fields, new_seed
from celery_durable.journal.port import (
    NO_RESULT,
    Busy,
    Delivery,
    Finished,
    IdConflict,
    JournalGone,
    Opened,
    OpenResult,
    Outdated,
    Result,
)
from celery_durable.journal.reopening import decided

from .client.connection import JournalConnection
from .client.errors import Refused
from .client.fence import Fence
from .client.pool import JournalConnectionPool
from .client.protocol import pack, pack_pairs, pack_parts
from .client.scripts import call, dated_call, script
from .confirmation import probe_for
from .replies import OpenReply, WriteReply

logger = logging.getLogger("celery_durable")

SHARDS = 16
SHORT_TIMEOUT = 1.0
"""Seconds that a process with others to serve, or about to die, waits for Redis."""
_PAIRS_PER_WRITE = 1000
_HEADS = [b"*%d\r\n" % (5 + 2 * pairs) for pairs in range(_PAIRS_PER_WRITE + 1)]
"""What a command of the script ``record`` begins with, by the number of fields."""

_REQUESTED = Cancellation.REQUESTED.encode()
_FAILED = OpenReply.FAILED.encode()


def shard_of(task_id: str) -> int:
    """The number of a run's shard."""
    return crc32(task_id.encode()) % SHARDS


def shard_prefix(prefix: str, shard: int) -> str:
    """What the keys of a shard begin with."""
    return f"{prefix}{{{shard}}}:"


def new_fence() -> str:
    """A token that no other attempt has."""
    return os.urandom(6).hex()


class Keys(NamedTuple):
    """The names of what one run has in Redis."""

    task_id: str
    run: str
    leases: str
    due: str

    @classmethod
    def of(cls, prefix: str, task_id: str) -> Keys:
        return cls.under(shard_prefix(prefix, shard_of(task_id)), task_id)

    @classmethod
    def under(cls, shard: str, task_id: str) -> Keys:
        """Those that begin with the prefix of the run's shard."""
        return cls(task_id, f"{shard}run:{task_id}", f"{shard}leases", f"{shard}due")

    @property
    def all(self) -> tuple[str, str, str]:
        """What every script but ``record`` is given."""
        return self.run, self.leases, self.due


_REASONS = {
    OpenReply.BUSY: "another attempt holds the lease",
    OpenReply.REPLACED: "the task that it replaces has not ended",
    OpenReply.EARLY: "it is not due yet",
}


class RedisJournal:
    """One attempt's hold on a run. The connection is taken when it opens and given back when it closes."""

    def __init__(
        self, pool: JournalConnectionPool, keys: Keys, owner: str, lease: float, sync: str = "memory", keep: float = inf
    ) -> None:
        self._pool = pool
        self._owner = owner
        self._probe = probe_for(sync)
        self._confirmed = self._probe is not None
        self._keys = keys
        self._lease = lease
        self._keep = keep
        self._fence = b""
        self._guard: Fence | None = None
        self._record = b""
        self._renewed = 0.0
        self.cancel_requested = False

    @cached_property
    def connection(self) -> JournalConnection:
        connection = self._pool.take()
        if self._guard is not None:
            # Code that the run went on without, and that still records what it did.
            connection.guard(self._guard, goes_on=True)
        return connection

    # -- begin and end of an attempt

    def open(self, delivery: Delivery) -> OpenResult:
        keys = self._keys
        opening = time.monotonic()
        fence, seed = new_fence(), delivery.seed or new_seed()
        # A journal is loaded by a command of its own, for which Redis needs a third of what it needs in a script; where
        # none is expected, that would be in vain.
        expected = not delivery.fresh or delivery.reopen != ""
        begin = dated_call(
            "open", keys.all, keys.task_id, fence, ms(self._lease), LAYOUT,
            delivery.task, delivery.fingerprint, delivery.call, seed,
            delivery.nesting, int(delivery.fresh), int(delivery.changed), int(delivery.wake_up),
            self._owner, delivery.reopen, delivery.build, int(not expected),
            delivery.over, "\n".join(delivery.taken_back),
        )  # fmt: skip
        if self._probe is not None:
            self.connection.set_confirmation(self._probe)
        self.connection.send(*((begin, pack("HGETALL", keys.run)) if expected else (begin,)))
        try:
            opened, *loaded = self._replies()
        except BaseException:
            # Unlike what follows, this begins something: nobody else is to send it again.
            self.connection.abandon()
            raise
        if not expected and isinstance(opened[-1], list):
            loaded = [opened.pop()]
        if opened[0] == _FAILED:
            return self.open(decided(delivery, fields_of(*loaded), opening, opened[1]))
        # Of our writes only an opening and a renewal put the end of the lease off.
        self._renewed = opening
        begun = {b"seed": seed.encode(), b"build": delivery.build.encode()}
        return self._open_result(opened, fields_of(*loaded) if loaded else begun, fence.encode())

    def _open_result(self, reply: list[Any], fields: Fields, fence: bytes) -> OpenResult:
        kind = reply[0].decode()
        # What is said of a finished run is said in the name of the attempt that ended it.
        self._fence = fields.get(b"fence", b"")
        if kind == OpenReply.OPEN:
            self._fence, self._guard = fence, Fence(fence, self._keys.run)
            self.connection.guard(self._guard)
            self.cancel_requested = fields.get(b"cancel") == _REQUESTED
            self._record = script("record").call + pack_parts((1, self._keys.run, self._fence))
            self._pool.ahead = reply[2] / 1000 - self._renewed
            return Opened(reply[1], reply[2], reply[3], bool(reply[4]), fields)
        if kind == OpenReply.FINISHED:
            return Finished(fields)
        if kind == OpenReply.ID_CONFLICT:
            return IdConflict(reply[1].decode(), fields)
        if kind == OpenReply.UNREADABLE:
            check_layout(self._keys, {b"v": reply[1]})
        if kind == OpenReply.OUTDATED:
            return Outdated("a newer message has other arguments")
        is_early = kind == OpenReply.EARLY
        return Busy(reply[1] / 1000, _REASONS[kind], early=is_early, stalled=is_early and bool(reply[2]))

    def suspend(
        self, delay: float, fields: Mapping[str, str], slack: float = 0.0, *, though_cancelled: bool = False
    ) -> None:
        self._end("suspend", [ms(delay), ms(slack), int(though_cancelled)], fields)

    def finish(self, status: str, fields: Mapping[str, str]) -> None:
        self._end("finish", [status, ms(self._lease)], fields)

    def conclude(self, fields: Mapping[str, str], keep: float, result: Result) -> bool:
        written = () if result is NO_RESULT else (result.key,)
        if written and not self._pool.writes_results:
            return False
        try:
            [*_, done] = self._end("conclude", [ms(keep), result.text, result.expires], fields, *written)
        except Refused as refused:
            # There are many servers behind one address, say, and the two keys are not on the same.
            logger.warning("results are left to Celery, which cannot write them with the outcome: %s", refused)
            done = WriteReply.RESULT_REFUSED
        if done == WriteReply.RESULT_REFUSED:
            self._pool.writes_results = False
        return bool(done != WriteReply.RESULT_REFUSED)

    def _end(self, script_name: str, facts: list[Any], fields: Mapping[str, str], *keys: str | bytes) -> list[Any]:
        pairs = [part for pair in fields.items() for part in pair]
        ending = call(script_name, (*self._keys.all, *keys), self._fence, self._keys.task_id, *facts, *pairs)
        self.connection.send(ending, confirmed=self._confirmed)
        replies = self._replies()
        self._check(replies)
        return replies

    def deliver(self, keep: float, *, arrived: bool = True) -> None:
        keys = self._keys
        self.connection.send(call("deliver", keys.all, self._fence, keys.task_id, ms(keep), int(arrived)), wanted=False)

    def release(self, *, orderly: bool) -> None:
        self.connection.send(self.handover(orderly=orderly))
        self.connection.replies(SHORT_TIMEOUT)

    def close(self) -> None:
        connection = self.__dict__.pop("connection", None)
        if connection is not None:
            self._pool.give_back(connection)

    # -- entries

    def send(self, fields: Mapping[str, str], *, with_next: bool = False) -> None:
        if len(fields) > _PAIRS_PER_WRITE:
            items = list(fields.items())
            for start in range(0, len(items), _PAIRS_PER_WRITE):
                self.send(dict(items[start : start + _PAIRS_PER_WRITE]))
            return
        command = _HEADS[len(fields)] + self._record + pack_pairs(fields)
        self.connection.send(command, with_next=with_next, confirmed=self._confirmed and not with_next)

    def record_aside(self, fields: Mapping[str, str]) -> bool:
        command = _HEADS[len(fields)] + self._record + pack_pairs(fields)
        [reply] = self._pool.execute(command if self._guard is None else self._guard.put_into(command))
        return bool(reply > 0)

    @property
    def has_pending(self) -> bool:
        return bool(self.connection.pending.commands)

    def spin_wait(self) -> bool:
        return self.connection.transport.spin_wait()

    def flush(self) -> None:
        self.connection.transport.spin_wait()
        self._check(self._replies())

    def flush_if_connected(self) -> bool:
        replies = self.connection.replies_if_connected()
        self._check(replies or [])
        return replies is not None

    def _check(self, replies: list[Any]) -> None:
        for reply in replies:
            if reply == WriteReply.DONE:
                continue
            if reply == WriteReply.TO_BE_CANCELLED:
                self.cancel_requested = True
            elif reply == WriteReply.FENCED:
                raise Fenced
            elif reply == WriteReply.NO_JOURNAL:
                if self._silent_for > self._lease + self._keep:
                    raise Fenced  # another attempt may have ended the run, and the time of its journal is over
                raise JournalGone(f"the journal {self._keys.run} is gone: was it evicted, or Redis flushed?")

    def _replies(self) -> list[Any]:
        try:
            return self.connection.replies()
        except JournalUnreadableError as error:
            raise not_a_journal(self._keys) from error
        except ConfigurationError as error:
            if not self._fence:
                raise
            # Amid an attempt another server has taken over, which cannot confirm its writes: the next attempt is told.
            raise JournalUnavailableError(str(error)) from error

    def fileno(self) -> int | None:
        if self._confirmed:
            return None  # the first reply comes long before the confirmation: a thread waits for both
        fd = self.connection.transport.fileno()
        return fd if fd >= 0 else None

    # -- the lease

    @property
    def lease_in_doubt(self) -> bool:
        return time.monotonic() - self._renewed > self._lease

    @property
    def _silent_for(self) -> float:
        """Seconds since the lease was proved."""
        return time.monotonic() - self._renewed

    def by_redis(self, moment: float) -> float | None:
        return None if self._pool.ahead is None else moment + self._pool.ahead

    def prove_lease(self) -> None:
        asked = time.monotonic()
        self.connection.send(self.renewal())
        self.flush()
        self._renewed = asked

    def look_for_cancellation(self) -> None:
        # Another connection: the attempt's own may be amid a write of a sibling.
        with suppress(JournalUnavailableError, JournalUnreadableError):
            said = self._pool.execute(pack("HGET", self._keys.run, "cancel"), timeout=SHORT_TIMEOUT)
            self.cancel_requested |= said == [_REQUESTED]

    def renewal(self) -> bytes:
        """The command that renews the lease, for this connection or for another one."""
        return call("renew", self._keys.all, self._fence, self._keys.task_id, ms(self._lease))

    def handover(self, *, orderly: bool) -> bytes:
        """The command that gives the lease back, for this connection or for another one."""
        return call("release", self._keys.all, self._keys.task_id, "fence", self._fence, int(orderly))

    def renewed(self, reply: int, sent: float) -> None:
        """What Redis said to a renewal that was sent at monotonic time *sent*."""
        if reply > 0:
            self._renewed = sent
        if reply == WriteReply.TO_BE_CANCELLED:
            self.cancel_requested = True


def not_a_journal(keys: Keys) -> JournalUnreadableError:
    """One of the keys is of another type."""
    names = ", ".join(keys.all)
    return JournalUnreadableError(f"task {keys.task_id}: one of {names} holds no journal; look at it, and delete it")


def check_layout(keys: Keys, fields: Fields) -> None:
    """Refuse a journal of another layout."""
    layout = fields.get(b"v", b"none").decode()
    if fields and layout not in (UNBRANCHED, LAYOUT):
        raise JournalUnreadableError(
            f"the journal {keys.run} has layout {layout!r}, this version reads up to {LAYOUT!r}: upgrade this worker, "
            f"then retry the task"
        )


def fields_of(loaded: Any) -> Fields:
    """A hash, as either version of Redis' protocol gives it."""
    return loaded if isinstance(loaded, dict) else dict(zip(loaded[::2], loaded[1::2], strict=True))


def ms(seconds: float) -> int:
    return round(seconds * 1000)
