"""Runs, seen from outside their attempts: looked at, found when nobody carries them on, ended, or asked to end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from .exceptions import JournalUnreadableError
from .journal import LAYOUT, Fields
from .redis_journal import (
    SHARDS,
    SHORT_PATIENCE,
    Keys,
    check_layout,
    fields_of,
    ms,
    not_a_journal,
    owner_name,
    shard_prefix,
)
from .wire import Wires, call, pack

_MOST_AT_ONCE = 200
_UNSENT_PAUSE = 5.0


class Claimed(NamedTuple):
    """A run that is ours to send again."""

    task_id: str
    task: str
    call: bytes
    resume: bytes


class Claims(NamedTuple):
    """What a look at one shard found."""

    runs: list[Claimed]
    next_due: float | None
    """Seconds until the next wait is over."""
    skips: tuple[int, int]
    """Where to look the next time: behind so many runs of tasks that are not ours."""


class Runs:
    """All runs of an app."""

    def __init__(self, wires: Wires, prefix: str, lease: float) -> None:
        self._wires = wires
        self._prefix = prefix
        self._lease = lease

    def keys(self, task_id: str) -> Keys:
        return Keys.of(self._prefix, task_id)

    def load(self, task_id: str) -> Fields:
        """The journal as it stands; empty if there is none.

        Raises:
            JournalUnreadableError: it is of another layout.
        """
        keys = self.keys(task_id)
        try:
            [loaded] = self._ask(pack("HGETALL", keys.run))
        except JournalUnreadableError as error:
            raise not_a_journal(keys) from error
        fields = fields_of(loaded)
        check_layout(keys, fields)
        return fields

    def condemn(self, task_id: str, status: str, keep: float, outcome: str) -> bool:
        """End a live run; False if it is not live, unless this process has ended it."""
        keys = self.keys(task_id)
        fence = f"{owner_name(os.getpid())}:{status}"
        condemned = call("condemn", keys.all, task_id, fence, status, ms(keep), "outcome", outcome)
        return self._ask(condemned, patience=SHORT_PATIENCE) == [1]

    def release(self, task_id: str, pid: int) -> bool:
        """Give back what a dead process of this machine held; False if the journal has nothing to do with it."""
        keys = self.keys(task_id)
        released = call("release", keys.all, task_id, "owner", owner_name(pid), 0)
        return self._ask(released, patience=SHORT_PATIENCE) == [1]

    def cancel(self, task_id: str) -> tuple[str, int]:
        """Ask a live run to end by ``TaskCancelled``; the status that it has, and when it ended if it did."""
        [[status, ended]] = self._ask(call("cancel", self.keys(task_id).all, task_id), patience=SHORT_PATIENCE)
        return status.decode(), int(ended or 0)

    def is_known(self, task_id: str) -> bool:
        """Whether an attempt of the run has begun, and its journal is still there."""
        return self._ask(pack("EXISTS", self.keys(task_id).run), patience=SHORT_PATIENCE) == [1]

    def claim(self, tasks: Iterable[str], before: list[Claims] | None = None) -> list[Claims]:
        """Claim runs of these tasks that nobody carries on: one script per shard, sent together.

        *before*: what the last look found, which this one continues.
        """
        names = list(tasks)
        skips = [claims.skips for claims in before] if before else [(0, 0)] * SHARDS
        commands = []
        for shard, skip in enumerate(skips):
            base = shard_prefix(self._prefix, shard)
            keys = (f"{base}leases", f"{base}due")
            facts = (f"{base}run:", _MOST_AT_ONCE, *skip, ms(self._lease), LAYOUT)
            commands.append(call("claim", keys, *facts, *names))
        return [_claims(reply) for reply in self._ask(*commands, patience=SHORT_PATIENCE)]

    def unclaim(self, claimed: Iterable[Claimed]) -> None:
        """These could not be sent: they are to be found again."""
        for run in claimed:
            self._ask(call("unclaim", self.keys(run.task_id).all, run.task_id, ms(_UNSENT_PAUSE)))

    def _ask(self, *commands: bytes, patience: float | None = None) -> list[Any]:
        wire = self._wires.take()
        try:
            wire.send(*commands)
            return wire.replies(patience)
        finally:
            self._wires.give_back(wire)


def _claims(reply: list[Any]) -> Claims:
    next_due, in_leases, in_due, *runs = reply
    claimed = [Claimed(task_id.decode(), task.decode(), call, resume) for task_id, task, call, resume in runs]
    return Claims(claimed, int(next_due) / 1000 if next_due else None, (in_leases, in_due))
