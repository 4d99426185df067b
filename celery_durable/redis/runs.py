"""Runs, for code that is not their attempt: workers recover and end them, and people act on them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from celery_durable.exceptions import JournalUnavailableError, JournalUnreadableError
from celery_durable.journal.layout import Fields, Status

from .client.fence import new_fence
from .client.pool import SHORT_TIMEOUT
from .client.protocol import pack
from .client.scripts import Dated, call, dated_call
from .keys import SHARDS, Keys, check_layout, fields_of, ms, not_a_journal
from .replies import ReleaseResult, WriteReply
from .shards import Shard, Shards

logger = logging.getLogger("celery_durable")

_MOST_AT_ONCE = 200
_UNSENT_PAUSE = 5.0


class Claimed(NamedTuple):
    """A run that this process has claimed, and sends again."""

    task_id: str
    status: str
    task: str
    call: bytes
    resume: bytes


class Claims(NamedTuple):
    """What was found in one shard."""

    runs: list[Claimed]
    next_due: float | None
    """Seconds until the next wait is over."""
    skips: tuple[int, int]
    """Where the next look begins: behind so many runs of tasks that this worker does not have."""
    lost: tuple[str, ...] = ()
    """The ids of runs that had not ended, and whose journals are gone."""


class StoredRuns:
    """All runs of an app, as Redis keeps them."""

    def __init__(self, shards: Shards, lease: float) -> None:
        self._shards = shards
        self._lease = lease

    def keys(self, task_id: str) -> Keys:
        return self._shards.of(task_id).keys(task_id)

    def load(self, task_id: str, timeout: float | None = None) -> Fields:
        """The journal as it stands; empty if there is none.

        Args:
            task_id: the id of the run.
            timeout: for so many seconds Redis is waited for. Default: as long as an attempt waits.

        Raises:
            JournalUnavailableError: Redis does not answer in that time.
            JournalUnreadableError: it is of another layout.
        """
        keys = self.keys(task_id)
        try:
            [loaded] = self._ask(task_id, pack("HGETALL", keys.run), timeout=timeout)
        except JournalUnreadableError as error:
            raise not_a_journal(keys) from error
        fields = fields_of(loaded)
        if b"purged" in fields and b"status" not in fields:
            return {}
        check_layout(keys, fields)
        return fields

    def glance(self, task_id: str, names: Iterable[bytes]) -> tuple[int, tuple[bytes | None, ...]]:
        """How many fields the journal has, and some of them: a small question, to see whether it has changed."""
        key = self.keys(task_id).run
        number, values = self._ask(task_id, pack("HLEN", key), pack("HMGET", key, *names))
        return number, tuple(values)

    def facts(self, task_id: str, *names: str) -> tuple[str, ...]:
        """Some fields of the journal, as text; empty if it has them not. Redis is not waited for if it is away."""
        [values] = self._ask(task_id, pack("HMGET", self.keys(task_id).run, *names), timeout=SHORT_TIMEOUT)
        return tuple("" if value is None else value.decode() for value in values)

    def terminate(
        self,
        task_id: str,
        status: str,
        keep: float,
        outcome: str,
        *,
        owner: str = "",
        fence: str | None = None,
        undelivered: bool = False,
    ) -> bool:
        """End a live run from outside of its attempts. False if it has ended, or another process has it.

        *owner*: the process that must have the run; empty: any process.
        *fence*: a token of the caller. A second call with the same token changes nothing, and is True again. Without a
        token, this is true only of one call, which is sent again if its reply is lost.
        *undelivered*: the caller has still to tell the result backend, and then calls :meth:`deliver`. If it dies
        before that, another worker tells it.
        """
        keys = self.keys(task_id)
        fence = fence or new_fence()
        # The journal is kept for a lease at least: the attempt must find another fence in it, and not find it gone.
        keep = max(keep, self._lease)
        lease = ms(self._lease) if undelivered else 0
        facts = (fence, status, ms(keep), owner, lease, "outcome", outcome)
        terminated = dated_call("terminate", keys.all, task_id, *facts)
        return self._ask(task_id, terminated, timeout=SHORT_TIMEOUT) == [WriteReply.DONE]

    def deliver(self, task_id: str, fence: str, keep: float) -> None:
        """Say that the result backend has the outcome of a run, which this *fence* has ended.

        It is kept for *keep* seconds, and for a lease at least, as after :meth:`terminate`.
        """
        keys = self.keys(task_id)
        kept = ms(max(keep, self._lease))
        self._ask(task_id, call("deliver", keys.all, fence, task_id, kept, 1), timeout=SHORT_TIMEOUT)

    def release(self, task_id: str, owner: str) -> ReleaseResult:
        """Give back what a lost process held of the run. Returns what has become of the run."""
        keys = self.keys(task_id)
        released = call("release", keys.all, task_id, "owner", owner, 0)
        [reply] = self._ask(task_id, released, timeout=SHORT_TIMEOUT)
        return ReleaseResult(reply)

    def cancel(self, task_id: str, by: str | None = None, request: str = "") -> tuple[str, int]:
        """Ask a live run to end by ``TaskCancelled``. Returns its status before, and when it ended (0: it has not).

        *request*: a name. With it, the journal keeps *by* whom, and a second call with the same name changes nothing.
        """
        cancelled = dated_call("cancel", self.keys(task_id).all, task_id, "cancel", _writable(by), request)
        [[status, ended]] = self._ask(task_id, cancelled, timeout=SHORT_TIMEOUT)
        return status.decode(), int(ended or 0)

    def wake(self, task_id: str, by: str | None, request: str) -> str:
        """End the wait of a suspended run now, and keep that *by* has done this.

        Returns its status before; ``pause``: it is paused, and stays so.

        *request*: a name. A second call with the same name changes nothing, and returns the same.
        """
        [status] = self._act("wake", task_id, "wake", _writable(by), request)
        return str(status.decode())

    def unpause(
        self,
        task_id: str,
        request: str,
        attempt: str,
        taken_back: Iterable[str] = (),
        *,
        slack: float = 0.0,
        what: str = "",
        by: str | None = None,
    ) -> bool:
        """Let a paused run go on, and take these entries back. False if it is not paused any more.

        *request*: a name. A second call with the same name changes nothing, and is True again.
        *attempt*: the number of the attempt after which it was paused.
        *slack*: a worker sends it when so many seconds are over, unless a message has begun an attempt by then.
        *what*: the journal keeps that *by* has done this; empty: it keeps nothing.
        """
        facts = (request, attempt, "\n".join(taken_back), str(ms(slack)), what, _writable(by))
        return self._act("unpause", task_id, *facts) == [1]

    def purge(self, task_id: str) -> tuple[str, bool]:
        """Delete the journal of a run that has ended and is delivered. Returns its status, and whether that is done."""
        was_known = self.is_known(task_id)
        [[status, purged]] = self._act("purge", task_id)
        # If its reply was lost, the command was sent again, and has found no journal any more.
        return status.decode(), bool(purged) or (was_known and status.decode() == Status.UNKNOWN)

    def plant(self, task_id: str, fields: Fields, keep: float, what: str, by: str | None, request: str) -> bool:
        """Write the journal of a run that no attempt has opened here, and keep that *by* has done *what*.

        Returns False if the id has a journal. A second call with the same name, *request*, is True again.

        It is a paused run, or one that has ended. It is kept for *keep* seconds; a paused one that goes on, for ever.
        """
        kept = ms(max(keep, self._lease))
        facts = (kept, what, _writable(by), request)
        pairs = [part for pair in fields.items() for part in pair]
        planted = dated_call("plant", self.keys(task_id).all, task_id, *facts, *pairs)
        return self._ask(task_id, planted) == [1]

    def note(self, task_id: str, what: str, by: str | None, request: str, run: str = "") -> None:
        """Keep in the journal that *by* has done this, now; None: nobody has said who.

        *request*: a name. A second call with the same name changes nothing.
        *run*: the id of another run that came of it; empty: none did.
        """
        self._act("note", task_id, what, _writable(by), request, run)

    def note_restart(self, task_id: str, by: str | None, new_id: str, known: str) -> bool:
        """Keep in the journal that *by* has restarted a run that has ended, as *new_id*.

        False: it lives again, or somebody was faster. *known*: the newest run that restarts it, as the caller knows it.
        """
        return self._act("note_restart", task_id, "restart", _writable(by), new_id, known) == [1]

    def _act(self, script_name: str, task_id: str, *facts: str | bytes) -> list[Any]:
        return self._ask(task_id, dated_call(script_name, self.keys(task_id).all, task_id, *facts))

    def is_known(self, task_id: str) -> bool:
        """Whether an attempt of the run has begun, and its journal is still there."""
        return self._ask(task_id, pack("HEXISTS", self.keys(task_id).run, "status"), timeout=SHORT_TIMEOUT) == [1]

    def waiting(self) -> Iterator[tuple[str, bytes]]:
        """All runs that wait, and how each was called. Each command asks for a few of them."""
        for shard in self._shards:
            due = shard.keys("").due
            [found] = shard.pool.execute(pack("ZRANGE", due, 0, -1), timeout=SHORT_TIMEOUT)
            ids = [task_id.decode() for task_id in found]
            for first in range(0, len(ids), _MOST_AT_ONCE):
                some = ids[first : first + _MOST_AT_ONCE]
                questions = [pack("HGET", shard.keys(task_id).run, "call") for task_id in some]
                calls = shard.pool.execute(*questions, timeout=SHORT_TIMEOUT)
                yield from ((task_id, call) for task_id, call in zip(some, calls, strict=True) if call)

    def claim(self, tasks: Iterable[str], before: list[Claims] | None = None) -> list[Claims]:
        """Claim runs of these tasks that nobody goes on with. Each shard has a script; those for one Redis go together.

        *before*: what the last call has found. This one continues it.
        """
        names = list(tasks)
        skips = [claims.skips for claims in before] if before else [(0, 0)] * SHARDS
        found: dict[int, Claims] = {}
        silent = []
        groups = self._shards.by_pool()
        for pool, shards in groups.items():
            commands = [self._claiming(shard, skips[shard.number], names) for shard in shards]
            try:
                replies = pool.execute(*commands, timeout=SHORT_TIMEOUT)
                found |= {shard.number: _claims(reply) for shard, reply in zip(shards, replies, strict=True)}
            except JournalUnavailableError as error:
                # The runs that the other nodes of a Cluster have claimed are sent.
                silent.append(error)
                found |= {shard.number: Claims([], None, skips[shard.number]) for shard in shards}
        if len(silent) == len(groups):
            raise silent[0]
        if silent:
            logger.warning("cannot look for runs in %d of %d shards: %s", len(silent), SHARDS, silent[0])
        return [found[number] for number in range(SHARDS)]

    def _claiming(self, shard: Shard, skip: tuple[int, int], names: list[str]) -> Dated:
        every = shard.keys("")  # with no id, its run is the prefix of all runs
        facts = (every.run, _MOST_AT_ONCE, *skip, ms(self._lease))
        return dated_call("claim", (every.leases, every.due), *facts, *names)

    def unclaim(self, claimed: Iterable[Claimed]) -> None:
        """Let these runs be claimed again: they could not be sent."""
        for run in claimed:
            self._ask(run.task_id, call("unclaim", self.keys(run.task_id).all, run.task_id, ms(_UNSENT_PAUSE)))

    def _ask(self, task_id: str, *commands: bytes | Dated, timeout: float | None = None) -> list[Any]:
        return self._shards.of(task_id).pool.execute(*commands, timeout=timeout)


def _writable(by: object) -> bytes:
    # The act itself is done, or will be. It must not seem to have failed for an odd name of the one who did it.
    return str(by or "").encode(errors="replace")


def _claims(reply: list[Any]) -> Claims:
    next_due, in_leases, in_due, lost, *runs = reply
    claimed = [
        Claimed(task_id.decode(), status.decode(), task.decode(), call, resume)
        for task_id, status, task, call, resume in runs
    ]
    gone = tuple(task_id.decode() for task_id in lost)
    return Claims(claimed, int(next_due) / 1000 if next_due else None, (in_leases, in_due), gone)
