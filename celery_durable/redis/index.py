"""The index of all runs: by what becomes of them, by task, and by when they were created.

    <prefix>{<shard>}:index:<heading>:<task>  sorted set: ids of runs, by when they were created (ms)
    <prefix>{<shard>}:index                   sorted set: the names of these, <heading>:<task>

The heading of a run is its status; if it is suspended, what it waits for. The scripts that change these move the run.
A run that is running costs nothing here: it is found among the leases, and enters only if its process was lost, or
has given it back. A journal expires by itself: whoever meets its id afterwards lets it leave the index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import SystemRandom
from typing import Any, NamedTuple

from celery_durable.exceptions import JournalUnavailableError
from celery_durable.journal.headings import ENDED_HEADINGS
from celery_durable.journal.layout import Fields

from .client.pool import SHORT_TIMEOUT, JournalConnectionPool
from .client.scripts import call
from .shards import Shard, Shards

_LOOKS = 500
"""Of so many runs a search reads the journals in one call of its script: Redis serves nobody else meanwhile."""
_MOST_AT_ONCE = 200
"""For so many runs all shards are asked at once. For more, each is asked for what may still be among the newest."""
_MOST_LET_GO = 100
"""So many journals of a shard that have expired leave the index before runs are counted."""
_LOOKS_OF_SWEEP = 250
"""So many runs of a shard one call of a sweep looks at, and as many of those that wait. Each worker sweeps, so this is
what a hundred workers cost Redis, too."""
_CALLS_OF_SWEEP = 50
"""So many calls in a row a shard gets at most. It gets the next one at once if many runs have moved."""
_MANY_MOVED = 50


class Indexed(NamedTuple):
    """A run as the index has it."""

    created: int
    """Milliseconds since the epoch, by Redis' clock."""
    task_id: str
    heading: str
    task: str

    @classmethod
    def of(cls, task_id: str, created: int = 0) -> Indexed:
        """A run of which no more is known."""
        return cls(created, task_id, "", "")


class Range(NamedTuple):
    """A part of the index, from the newest run to the oldest."""

    newest: int | None = None
    """The time of creation, in milliseconds; None: any."""
    oldest: int | None = None
    before: str = ""
    """Of the runs that are as new as *newest*, only those whose ids come before this one."""

    def behind(self, last: Indexed) -> Range:
        """What follows the run that was read last."""
        return self._replace(newest=last.created, before=last.task_id)


class Overdue(NamedTuple):
    """Runs that should go on, or whose outcome should be delivered, and that no worker takes."""

    number: int = 0
    seconds: float = 0.0
    """For how long the oldest of them has waited for a worker."""
    oldest: str = ""
    """The id of that run; empty: there is none."""
    task: str = ""
    """The name of its task; empty: its journal is gone."""


class Sieve(NamedTuple):
    """What a page leaves out. Of the runs that are left, some may still lack what is searched for."""

    needle: str = ""
    """A part of the id, of the name of the task, or of the arguments: small letters, and nothing that JSON escapes."""
    pairs: tuple[str, ...] = ()
    """Texts that all stand in the field of the attributes."""


_NO_SIEVE = Sieve()


class Index:
    """The index of an app."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._places: dict[Shard, list[int]] = {}
        """Where the next sweep begins: in the index, and among the runs that wait. The first place is chosen by chance,
        so that many workers look at different parts."""

    def page(
        self, most: int, span: Range, headings: Sequence[str], tasks: Iterable[str] = (), sieve: Sieve = _NO_SIEVE
    ) -> list[Indexed]:
        """The newest runs, at most so many, the newest first. No *tasks*: of all tasks."""
        asked = {
            "most": most,
            "headings": list(headings),
            "tasks": list(tasks),
            "newest": "+inf" if span.newest is None else str(span.newest),
            "oldest": "-inf" if span.oldest is None else str(span.oldest),
            "before": span.before,
            "looks": _LOOKS,
            **sieve._asdict(),
        }
        if sieve == _NO_SIEVE and most <= _MOST_AT_ONCE:
            replies = self._ask(lambda shard: _paging(shard, asked))
            return _newest(most, [run for reply in replies for run in _indexed(reply)])
        found: list[Indexed] = []
        for shard in self._shards:
            found = self._gathered(shard, asked, found)
        return found

    def _gathered(self, shard: Shard, asked: dict[str, Any], found: list[Indexed]) -> list[Indexed]:
        """The newest runs of those that are *found*, and those of this shard. It is asked again and again for a few."""
        asked = {**asked}
        while True:
            if len(found) == asked["most"]:
                asked["oldest"] = str(found[-1].created)
            [reply] = shard.pool.execute(_paging(shard, asked))
            found = _newest(asked["most"], [*found, *_indexed(reply)])
            if not reply[0]:
                return found
            asked["from"] = [part.decode() for part in reply[0]]

    def counts(self) -> dict[tuple[str, str], int]:
        """How many runs there are, by heading and task."""
        return _counts(self._ask(_asks_for_counts))

    def overdue(self, since: float = 0.0) -> Overdue:
        """Which runs no worker takes, and has not for so many seconds. A run that waits in a queue is none of them."""
        return _overdue(self._ask(lambda shard: _asks_for_overdue(shard, since)))

    def census(self) -> tuple[dict[tuple[str, str], int], Overdue]:
        """What :meth:`counts` and :meth:`overdue` say. Each Redis is asked once, and not waited for if it is away."""
        replies = self._ask(_asks_for_counts, _asks_for_overdue, timeout=SHORT_TIMEOUT)
        return _counts(replies[::2]), _overdue(replies[1::2])

    def sweep(self) -> None:
        """Let journals leave that have expired. Put runs in their places that a version without the index has changed.

        Of a large index, each sweep looks at a part. A Redis that is away keeps the others waiting for a second.

        Raises:
            JournalUnavailableError: a Redis does not answer; the index of all others is swept.
        """
        silent = []
        for pool, shards in self._shards.by_pool().items():
            try:
                for shard in shards:
                    self._sweep(shard, pool)
            except JournalUnavailableError as error:
                silent.append(error)
        if silent:
            raise silent[0]

    def _sweep(self, shard: Shard, pool: JournalConnectionPool) -> None:
        chance = SystemRandom()
        places = self._places.setdefault(shard, [chance.randrange(2**31), chance.randrange(2**31)])
        for _ in range(_CALLS_OF_SWEEP):
            # Each call goes alone, so that Redis serves others in between.
            [[moved, *places]] = pool.execute(_sweeping(shard, places), timeout=SHORT_TIMEOUT)
            self._places[shard] = places
            if moved < _MANY_MOVED:
                return

    def load(self, runs: Sequence[Indexed], names: Sequence[bytes]) -> list[tuple[Fields | None, float | None]]:
        """Some fields of these runs, and when their leases lapse (ms).

        The fields are empty if the journal is gone, and None if its key holds something else.
        """
        found: dict[str, tuple[Fields | None, float | None]] = {}
        for pool, grouped in self._by_pool(run.task_id for run in runs).items():
            asked = [(shard, some) for shard, ids in grouped.items() for some in _parted(ids)]
            replies = pool.execute(*(_loading(shard, some, names) for shard, some in asked))
            for (_, some), reply in zip(asked, replies, strict=True):
                for task_id, held, lease in zip(some, reply[::2], reply[1::2], strict=True):
                    fields = {name: text for name, text in zip(names, held, strict=False) if text is not None}
                    found[task_id] = fields if held else None, None if lease is None else float(lease)
        return [found[run.task_id] for run in runs]

    def refile(self, runs: Iterable[Indexed]) -> None:
        """These were met under headings where they do not belong any more: they leave those, and enter their own."""
        met = {run.task_id: run for run in runs}
        for pool, grouped in self._by_pool(met).items():
            pool.execute(*(_refiling(shard, met[task_id]) for shard, ids in grouped.items() for task_id in ids))

    def _by_pool(self, task_ids: Iterable[str]) -> dict[JournalConnectionPool, dict[Shard, list[str]]]:
        grouped: dict[JournalConnectionPool, dict[Shard, list[str]]] = {}
        for task_id in task_ids:
            shard = self._shards.of(task_id)
            grouped.setdefault(shard.pool, {}).setdefault(shard, []).append(task_id)
        return grouped

    def _ask(self, *commands: Callable[[Shard], bytes], timeout: float | None = None) -> list[Any]:
        """Ask all shards. Those of one Redis are asked together."""
        replies: list[Any] = []
        for pool, shards in self._shards.by_pool().items():
            replies += pool.execute(*(command(shard) for shard in shards for command in commands), timeout=timeout)
        return replies


def _counts(replies: list[Any]) -> dict[tuple[str, str], int]:
    numbers: dict[bytes, int] = {}
    for reply in replies:
        for name, number in zip(reply[::2], reply[1::2], strict=True):
            numbers[name] = numbers.get(name, 0) + number
    return {_heading_and_task(name): number for name, number in numbers.items()}


def _parted(task_ids: list[str]) -> Iterator[list[str]]:
    return (task_ids[first : first + _MOST_AT_ONCE] for first in range(0, len(task_ids), _MOST_AT_ONCE))


def _loading(shard: Shard, task_ids: Sequence[str], names: Sequence[bytes]) -> bytes:
    every = shard.keys("")
    return call("load", (every.leases,), every.run, len(names), *names, *task_ids)


def _refiling(shard: Shard, run: Indexed) -> bytes:
    keys = shard.keys(run.task_id)
    return call("refile", (keys.run, keys.leases), run.task_id, run.heading, run.task)


def _asks_for_counts(shard: Shard) -> bytes:
    return _call_on_index("counts", shard, _MOST_LET_GO)


def _sweeping(shard: Shard, places: Sequence[int]) -> bytes:
    keys = shard.keys("")
    facts = _LOOKS_OF_SWEEP, *places, *ENDED_HEADINGS
    return call("sweep", (shard.index_key, keys.leases, keys.due), keys.run, *facts)


def _asks_for_overdue(shard: Shard, since: float = 0.0) -> bytes:
    keys = shard.keys("")
    return call("overdue", (keys.leases, keys.due), keys.run, round(since * 1000))


def _overdue(replies: list[Any]) -> Overdue:
    waited, oldest, task = max((waited, oldest, task) for _, waited, oldest, task in replies)
    return Overdue(sum(number for number, *_ in replies), waited / 1000, oldest.decode(), task.decode())


def _paging(shard: Shard, asked: dict[str, Any]) -> bytes:
    return _call_on_index("page", shard, json.dumps(asked, ensure_ascii=False))


def _call_on_index(script_name: str, shard: Shard, *facts: Any) -> bytes:
    every = shard.keys("")  # with no id, its run is the prefix of all runs
    return call(script_name, (shard.index_key, every.leases), every.run, *facts)


def _indexed(reply: list[Any]) -> Iterator[Indexed]:
    found = iter(reply[1:])
    for task_id, created, name in zip(found, found, found, strict=True):  # (of a damaged journal, a time may be 1e+17)
        yield Indexed(int(float(created)), task_id.decode(), *_heading_and_task(name))


def _heading_and_task(name: bytes) -> tuple[str, str]:
    heading, _, task = name.decode().partition(":")
    return heading, task


def _newest(most: int, runs: list[Indexed]) -> list[Indexed]:
    # A run that goes on during a search may be met twice.
    return list({run.task_id: run for run in sorted(runs, reverse=True)}.values())[:most]
