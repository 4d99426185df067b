"""The journal of a run in Redis, as its attempt uses it: each act is a script, which checks the fence."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from math import inf
from typing import Any

from celery_durable.exceptions import ConfigurationError, JournalUnavailableError, JournalUnreadableError
from celery_durable.interrupts import Fenced
from celery_durable.journal.layout import Cancellation, Wait
from celery_durable.journal.port import (
    NO_RESULT,
    Delivery,
    JournalGone,
    Opened,
    OpenResult,
    Reserve,
    Result,
    alone,
)
from celery_durable.journal.reopening import decided

from .client.connection import JournalConnection
from .client.errors import Refused
from .client.pool import SHORT_TIMEOUT, JournalConnectionPool
from .client.protocol import pack, pack_pairs, pack_parts
from .client.scripts import call, script
from .confirmation import probe_for
from .keys import Keys, ms, not_a_journal
from .open_command import OpenCommand, open_result
from .ownership import Ownership
from .replies import OpenReply, WriteReply

logger = logging.getLogger("celery_durable")

_PAIRS_PER_WRITE = 1000
_HEADS = [b"*%d\r\n" % (5 + 2 * pairs) for pairs in range(_PAIRS_PER_WRITE + 1)]
"""What a command of the script ``record`` begins with, by the number of fields."""

_REQUESTED = Cancellation.REQUESTED.encode()
_FAILED = OpenReply.FAILED.encode()


class RedisJournal:
    """The journal of a run, for one attempt. It takes a connection when it opens, and gives it back when it closes.

    It has the many methods of its port, because all of them use this connection and the fence of this attempt.
    """

    def __init__(
        self, pool: JournalConnectionPool, keys: Keys, owner: str, lease: float, sync: str = "memory", keep: float = inf
    ) -> None:
        self._pool = pool
        self.owner = owner
        self._probe = probe_for(sync)
        self._confirmed = self._probe is not None
        self._keys = keys
        self._lease = lease
        self._keep = keep
        self._record = b""
        """What each command that records entries begins with; packed for the first of them."""
        self.ownership = Ownership(keys, lease)

    @cached_property
    def connection(self) -> JournalConnection:
        connection = self._pool.take()
        if self.ownership.fence is not None:
            # The run went on without this code, which still records what it did.
            connection.guard(self.ownership.fence, goes_on=True)
        return connection

    # -- begin and end of an attempt

    def open(self, delivery: Delivery, reserve: Reserve = alone) -> OpenResult:
        command, sent = OpenCommand(delivery), time.monotonic()
        if self._probe is not None:
            self.connection.set_confirmation(self._probe)
        self.connection.send(*command.commands(self._keys, self.owner, self._lease))
        try:
            replies = self._replies()
        except BaseException:
            # This command begins an attempt, so no later user of the connection may send it again.
            self.connection.abandon()
            raise
        reply, fields = command.read(replies)
        if reply[0] == _FAILED:
            again = decided(delivery, fields, sent, reply[1])
            if again.fresh:
                token = reserve(fields, again.reserved)
                again = again._replace(fresh=token is not None, reserved=token or "")
            return self.open(again, reserve)
        # Only an opening and a renewal extend the lease.
        self.ownership.renewed_at = sent
        # If the run has finished, this process writes with the token of the attempt that ended it.
        self.ownership.token = fields.get(b"fence", b"")
        result = open_result(reply, fields, self._keys)
        if isinstance(result, Opened):
            self._own(result, command.fence.encode())
        return result

    def _own(self, opened: Opened, token: bytes) -> None:
        fence = self.ownership.take(token, cancel_requested=opened.fields.get(b"cancel") == _REQUESTED)
        self.connection.guard(fence)
        self._record = b""
        self._pool.clock_ahead = opened.now / 1000 - self.ownership.renewed_at

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
        facts = [ms(delay), ms(slack), int(though_cancelled)]
        return self._end_with_result("suspend", facts, fields, result, waits)

    def finish(self, status: str, fields: Mapping[str, str]) -> None:
        self._end("finish", [status, ms(self._lease)], fields)

    def conclude(self, fields: Mapping[str, str], keep: float, result: Result) -> bool:
        return self._end_with_result("conclude", [ms(keep)], fields, result)

    def _end_with_result(
        self, script_name: str, facts: list[Any], fields: Mapping[str, str], result: Result, *further: str
    ) -> bool:
        facts = [*facts, result.text, result.expires, result.lasting, *further]
        if result is NO_RESULT:
            self._end(script_name, facts, fields)
            return True
        if not self._pool.writes_results:
            return False
        try:
            self._end(script_name, facts, fields, result.key)
        except Refused as refused:
            # The user may not store results, or the two keys are on different servers behind one address.
            logger.warning("results are left to Celery, because they cannot be written with the journal: %s", refused)
            self._pool.writes_results = False
        return self._pool.writes_results

    def _end(self, script_name: str, facts: list[Any], fields: Mapping[str, str], *keys: str | bytes) -> None:
        pairs = [part for pair in fields.items() for part in pair]
        ending = call(script_name, (*self._keys.all, *keys), self.ownership.token, self._keys.task_id, *facts, *pairs)
        self.connection.send(ending, confirmed=self._confirmed)
        self._check(self._replies())

    def deliver(self, keep: float, *, arrived: bool = True) -> None:
        keys = self._keys
        self.connection.send(
            call("deliver", keys.all, self.ownership.token, keys.task_id, ms(keep), int(arrived)), wanted=False
        )

    def release(self, *, orderly: bool) -> None:
        self.connection.send(self.ownership.handover(orderly=orderly))
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
        command = _HEADS[len(fields)] + (self._record or self._packed_record()) + pack_pairs(fields)
        self.connection.send(command, with_next=with_next, confirmed=self._confirmed and not with_next)

    def record_aside(self, fields: Mapping[str, str]) -> bool:
        command = _HEADS[len(fields)] + self._packed_record() + pack_pairs(fields)
        fence = self.ownership.fence
        [reply] = self._pool.execute(command if fence is None else fence.put_into(command))
        return bool(reply > 0)

    def _packed_record(self) -> bytes:
        if not self._record:
            self._record = script("record").call + pack_parts((1, self._keys.run, self.ownership.token))
        return self._record

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
                self.ownership.cancel_requested = True
            elif reply == WriteReply.FENCED:
                raise Fenced
            elif reply == WriteReply.NO_JOURNAL:
                if self.ownership.silent_for > self._lease + self._keep:
                    raise Fenced  # another attempt may have ended the run, and its journal has expired
                raise JournalGone(f"the journal {self._keys.run} is gone: was it evicted, or Redis flushed?")

    def _replies(self) -> list[Any]:
        try:
            return self.connection.replies()
        except JournalUnreadableError as error:
            raise not_a_journal(self._keys) from error
        except ConfigurationError as error:
            if not self.ownership.token:
                raise
            # Another server has taken over, and cannot confirm writes. The next attempt says so when it opens the run.
            raise JournalUnavailableError(str(error)) from error

    def fileno(self) -> int | None:
        if self._confirmed:
            return None  # the first reply comes long before the confirmation: a thread waits for both
        fd = self.connection.transport.fileno()
        return fd if fd >= 0 else None

    # -- the lease

    @property
    def lease_in_doubt(self) -> bool:
        return self.ownership.in_doubt

    @property
    def cancel_requested(self) -> bool:
        return self.ownership.cancel_requested

    def by_redis(self, moment: float) -> float | None:
        return None if self._pool.clock_ahead is None else moment + self._pool.clock_ahead

    def prove_lease(self) -> None:
        asked = time.monotonic()
        self.connection.send(self.ownership.renewal())
        self.flush()
        self.ownership.renewed_at = asked

    def look_for_cancellation(self) -> None:
        # This uses another connection: on the attempt's own, a write of a sibling may be pending.
        with suppress(JournalUnavailableError, JournalUnreadableError):
            said = self._pool.execute(pack("HGET", self._keys.run, "cancel"), timeout=SHORT_TIMEOUT)
            self.ownership.cancel_requested |= said == [_REQUESTED]
