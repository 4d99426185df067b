"""The shards of the journal, and the connections that lead to each. With one Redis they are the same for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .client.pool import JournalConnectionPool
from .keys import SHARDS, Keys, shard_of, shard_prefix


class Shard(NamedTuple):
    """A part of all runs, whose keys share one slot of a Cluster."""

    number: int
    prefix: str
    """Each of its keys begins with this."""
    pool: JournalConnectionPool

    @property
    def index_key(self) -> str:
        """The key of the set that names all sets of its index."""
        return f"{self.prefix}index"

    def keys(self, task_id: str) -> Keys:
        """The keys of one of its runs."""
        return Keys.under(self.prefix, task_id)


class Shards:
    """All shards of an app."""

    def __init__(self, prefix: str, pool_for: Callable[[str], JournalConnectionPool]) -> None:
        prefixes = [shard_prefix(prefix, number) for number in range(SHARDS)]
        self._all = tuple(Shard(number, base, pool_for(base)) for number, base in enumerate(prefixes))

    def of(self, task_id: str) -> Shard:
        """The shard of a run."""
        return self._all[shard_of(task_id)]

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._all)

    def by_pool(self) -> dict[JournalConnectionPool, list[Shard]]:
        """The shards by their connections. The shards of one group can be asked together."""
        grouped: dict[JournalConnectionPool, list[Shard]] = {}
        for shard in self._all:
            grouped.setdefault(shard.pool, []).append(shard)
        return grouped
