"""A survey of all runs: how the index, the journals and the sets of runs fit together. It changes nothing.

Each script looks at a bounded number of runs, so Redis serves the workers in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from random import SystemRandom
from typing import Any, NamedTuple

from celery_durable.records import moment

from .client.scripts import call
from .shards import Shard, Shards

_MOST_OF_EACH = 20
"""So many runs of each heading and task of a shard are examined."""
_MOST = 500
"""So many runs of a shard are examined."""
_MOST_LEASES = 1000
_MOST_RESENT = 4
"""With a lease of 30 s, this often within three quarters of an hour."""
_MOST_COUNTED = 1000
"""So many runs of a shard are counted at a time."""


class Flaw:
    """What is wrong with an entry of the index."""

    GONE = "gone"
    """Its journal has expired, or was lost."""
    ELSEWHERE = "elsewhere"
    """Its journal says another heading, or another task."""
    STRANDED = "stranded"
    """It has not ended, or is not delivered, and it is neither among the leases nor due: nobody will go on with it."""
    IN_VAIN = "in_vain"
    """Recovery has sent it again and again, and no attempt has begun."""
    FOREIGN = "foreign"
    """Under the key of its journal is something else."""


class Examined(NamedTuple):
    """What was found in all shards."""

    entries: int
    """How many runs the index has."""
    looked_at: int
    """How many of these were examined."""
    flaws: dict[str, list[str]]
    """A :class:`Flaw` → the ids of the runs that have it."""
    sizes: list[tuple[int, str]]
    """The bytes of a journal and the id of its run; empty if the server does not say the bytes."""
    holders: dict[str, tuple[int, int]]
    """A process (empty: not known) → how many leases it has, and how many of these have lapsed."""


@dataclass(frozen=True)
class Build:
    """The live runs of a task that one build began.

    Attributes:
        task: the name of the task.
        build: the build of its code; empty if it is not known.
        runs: how many runs have not ended.
        stalled: how many of these wait for code that fits.
        oldest: when the oldest of them was created (aware datetime, UTC).
    """

    task: str
    build: str
    runs: int
    stalled: int
    oldest: datetime

    def with_more(self, more: Build) -> Build:
        runs, stalled = self.runs + more.runs, self.stalled + more.stalled
        return Build(self.task, self.build, runs, stalled, min(self.oldest, more.oldest))


class Survey:
    """Questions to all shards."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def examine(self) -> Examined:
        """Examine a sample."""
        where = round(SystemRandom().random(), 6)
        facts = _MOST_OF_EACH, _MOST, where, _MOST_LEASES, _MOST_RESENT
        replies = self._ask(self._shards, lambda shard: _examining(shard, *facts))
        found = Examined(0, 0, {}, [], {})
        for _, (entries, looked_at, flaws, sizes, holders) in replies:
            found = found._replace(entries=found.entries + entries, looked_at=found.looked_at + looked_at)
            for flaw, task_id in _grouped(flaws, 2):
                found.flaws.setdefault(flaw.decode(), []).append(task_id.decode())
            found.sizes.extend((size, task_id.decode()) for size, task_id in _grouped(sizes, 2))
            for process, lapsed in _grouped(holders, 2):
                leases, before = found.holders.get(process.decode(), (0, 0))
                found.holders[process.decode()] = leases + 1, before + lapsed
        return found

    def builds(self, headings: Sequence[str], most: int) -> tuple[list[Build], bool]:
        """Count live runs, about *most* of them. Returns the counts, and whether there are more."""
        found: dict[tuple[str, str], Build] = {}
        skips, counted = dict.fromkeys(self._shards, 0), 0
        while skips and counted < most:
            ended = []
            for shard, (looked_at, facts) in self._ask(list(skips), lambda shard: _counting(shard, skips, headings)):
                for build in map(_build, _grouped(facts, 5)):
                    known = found.get((build.task, build.build))
                    found[build.task, build.build] = known.with_more(build) if known else build
                counted += looked_at
                skips[shard] += looked_at
                if looked_at < _MOST_COUNTED:
                    ended.append(shard)
            for shard in ended:
                del skips[shard]
        return list(found.values()), bool(skips)

    def _ask(self, shards: Iterable[Shard], command: Callable[[Shard], bytes]) -> Iterator[tuple[Shard, Any]]:
        """Ask these shards, each in a command of its own, so that Redis serves others in between."""
        for shard in shards:
            [reply] = shard.pool.execute(command(shard))
            yield shard, reply


def _counting(shard: Shard, skips: dict[Shard, int], headings: Sequence[str]) -> bytes:
    every = shard.keys("")  # with no id, its run is the prefix of all runs
    return call("builds", (shard.index_key, every.leases), every.run, skips[shard], _MOST_COUNTED, *headings)


def _examining(shard: Shard, *facts: float) -> bytes:
    every = shard.keys("")
    return call("examine", (shard.index_key, every.leases, every.due), every.run, *facts)


def _grouped(facts: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    return zip(*[iter(facts)] * size, strict=True)


def _build(facts: tuple[Any, ...]) -> Build:
    task, build, runs, stalled, created = facts
    return Build(task.decode(), build.decode(), runs, stalled, moment(int(created)))
