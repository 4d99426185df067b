"""The keys of a run in Redis, and the form of what is read there.

    <prefix>{<shard>}:run:<task id>   one hash per run: see :mod:`~celery_durable.journal.layout`
    <prefix>{<shard>}:leases          sorted set: when the lease of a run lapses
    <prefix>{<shard>}:due             sorted set: when a suspended run goes on
    <prefix>{<shard>}:index...        sorted sets: see :mod:`~celery_durable.redis.index`

The shard is the Cluster hash tag, so that one script can change all of these.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from zlib import crc32

from celery_durable.exceptions import JournalUnreadableError
from celery_durable.journal.layout import LAYOUT, UNBRANCHED, Fields

SHARDS = 16


def shard_of(task_id: str) -> int:
    """The number of a run's shard."""
    return crc32(task_id.encode()) % SHARDS


def shard_prefix(prefix: str, shard: int) -> str:
    """What the keys of a shard begin with."""
    return f"{prefix}{{{shard}}}:"


class Keys(NamedTuple):
    """The keys of one run in Redis."""

    task_id: str
    run: str
    leases: str
    due: str

    @classmethod
    def under(cls, shard: str, task_id: str) -> Keys:
        """The keys under the prefix of the run's shard."""
        return cls(task_id, f"{shard}run:{task_id}", f"{shard}leases", f"{shard}due")

    @property
    def all(self) -> tuple[str, str, str]:
        """The three keys, as most scripts are given them."""
        return self.run, self.leases, self.due


def not_a_journal(keys: Keys) -> JournalUnreadableError:
    """The error if one of the keys has another type."""
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
