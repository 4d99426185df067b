"""What a person should know of the runs of an app, and what to do about it: ``celery durable doctor``.

A sample of the index is compared with the journals. The sets of leases and of due runs say who has runs, and which runs
nobody takes. Nothing is changed, and Redis is never asked for long at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_durable.app.store import store_of
from celery_durable.delivery.backend import PAUSED, STALLED
from celery_durable.exceptions import JournalUnavailableError
from celery_durable.records import number_of_runs
from celery_durable.redis.index import Overdue
from celery_durable.redis.survey import Examined, Flaw, Survey

from .states import by_state

REDIS = "redis"
"""The check whose only finding is that nothing else can be looked at."""
_OVERDUE = 10.0
"""Seconds: workers look every second, and Redis and the broker may be away for a moment."""
_MOST_IDS = 5
"""So many ids are named of each kind."""
_MOST_PROCESSES = 20


class Level:
    """Whether somebody has to do something."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One result of an examination.

    Attributes:
        check: what was looked at: ``start``, ``redis``, ``index``, ``overdue``, ``stalled``, ``paused``,
            ``leases`` or ``memory``.
        level: ``ok``; ``note``: good to know, nobody has to do anything; ``problem``: a person has to do something.
        found: what was found, as a sentence.
        advice: what to do; empty: nothing.
        facts: the numbers, and up to five ids, as plain data.
    """

    check: str
    level: str
    found: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def examine(app: Any) -> Iterator[Finding]:
    """Examine the runs of an app.

    Raises:
        JournalUnreadableError: a key of the index holds something else.
    """
    store = store_of(app)
    try:
        examined, overdue = Survey(store.shards).examine(), store.index.overdue(_OVERDUE)
        counts = by_state(store.index.counts())
    except JournalUnavailableError as error:
        yield Finding(REDIS, Level.PROBLEM, str(error), "bring Redis back, or set the URL that it has; then runs go on")
        return
    yield from _of_index(examined)
    yield _of_overdue_runs(overdue)
    yield from _of_waiting_runs(counts)
    yield from _of_leases(examined.holders)
    yield _of_memory(examined.sizes)


# -- the index ---------------------------------------------------------------------------------------------------------

_FLAWS = {
    Flaw.GONE: (
        Level.NOTE,
        "entries without a journal",
        "nothing: workers let them leave the index within minutes, and lists pass over them",
    ),
    Flaw.ELSEWHERE: (
        Level.NOTE,
        "runs that are under a wrong heading, because a worker of an older version has moved them",
        "celery durable list puts right what it meets",
    ),
    Flaw.STRANDED: (
        Level.PROBLEM,
        "runs that have not ended, and that no worker will go on with",
        "celery durable wake ID: a worker goes on with it, or delivers its outcome",
    ),
    Flaw.IN_VAIN: (
        Level.PROBLEM,
        "runs that recovery has sent four times or more, and that no worker has begun",
        "see that workers take messages of their queues, and what their logs say; then celery durable wake ID",
    ),
    Flaw.FOREIGN: (
        Level.PROBLEM,
        "keys of journals that hold something else, so another program uses the key prefix",
        "look at these keys, and delete them; give each program its own durable_key_prefix",
    ),
}
"""A flaw → how bad it is, what it is, and what to do."""


def _of_index(examined: Examined) -> Iterator[Finding]:
    looked_at = f"{examined.looked_at:,} of {examined.entries:,} entries were looked at"
    if not examined.flaws:
        yield Finding(
            "index", Level.OK, f"{looked_at}: all agree with their journals", facts=_sample(examined, flawed=0)
        )
    for flaw, (level, what, advice) in _FLAWS.items():
        if ids := examined.flaws.get(flaw):
            found = f"{looked_at}; {what}: {len(ids):,} ({_some(ids)})"
            yield Finding("index", level, found, advice, _sample(examined, len(ids)) | {"ids": ids[:_MOST_IDS]})


def _sample(examined: Examined, flawed: int) -> dict[str, Any]:
    return {"entries": examined.entries, "looked_at": examined.looked_at, "flawed": flawed}


def _some(ids: list[str]) -> str:
    more = ", ..." if len(ids) > _MOST_IDS else ""
    return ", ".join(ids[:_MOST_IDS]) + more


# -- runs that nobody takes --------------------------------------------------------------------------------------------


def _of_overdue_runs(overdue: Overdue) -> Finding:
    if not overdue.number:
        return Finding("overdue", Level.OK, "no run is overdue", facts={"runs": 0})
    number, seconds, task = overdue.number, int(overdue.seconds), overdue.task or "an unknown task"
    return Finding(
        "overdue",
        Level.PROBLEM,
        f"{number_of_runs(number)} should go on, and no worker sends or takes them; the oldest, {overdue.oldest} of "
        f"{task}, has waited for {_duration(seconds)}",
        f"start a worker that knows {task}; if one runs, its log says why it cannot",
        {"runs": number, "seconds": seconds, "id": overdue.oldest, "task": overdue.task},
    )


def _duration(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


# -- runs that wait for people -----------------------------------------------------------------------------------------

_WAITING = {
    STALLED: (
        "for code that fits their journals",
        "start workers with the build that they began with, or deploy code that fits (docs/deploys.md)",
    ),
    PAUSED: (
        "for somebody, because no retry is left",
        "look at their errors (celery durable list --state PAUSED), then retry or cancel them",
    ),
}


def _of_waiting_runs(counts: Mapping[tuple[str, str], int]) -> Iterator[Finding]:
    for state, (what, advice) in _WAITING.items():
        tasks = {task: number for (of, task), number in counts.items() if of == state and number}
        name, number = state.lower(), sum(tasks.values())
        facts = {"runs": number, "tasks": tasks}
        if not number:
            yield Finding(name, Level.OK, f"no run is {state}", facts=facts)
            continue
        found = f"{number_of_runs(number)} of {', '.join(sorted(tasks))} {'waits' if number == 1 else 'wait'} {what}"
        yield Finding(name, Level.PROBLEM, found, advice, facts)


# -- who has runs ------------------------------------------------------------------------------------------------------


def _of_leases(holders: dict[str, tuple[int, int]]) -> Iterator[Finding]:
    if not holders:
        yield Finding("leases", Level.OK, "no process has a run", facts={"processes": 0})
    by_number = sorted(holders.items(), key=lambda one: (-one[1][0], one[0]))
    for process, (leases, lapsed) in by_number[:_MOST_PROCESSES]:
        facts = {"process": process, "leases": leases, "lapsed": lapsed}
        found = f"{process or 'a process that is not known'} has {number_of_runs(leases)}"
        if lapsed:
            found += f"; {lapsed:,} of the leases have lapsed: it was lost, or it hangs"
            yield Finding("leases", Level.NOTE, found, "nothing: another worker goes on with these runs", facts)
        else:
            yield Finding("leases", Level.OK, found, facts=facts)
    if more := by_number[_MOST_PROCESSES:]:
        leases, lapsed = (sum(counts) for counts in zip(*(counts for _, counts in more), strict=True))
        facts = {"processes": len(more), "leases": leases, "lapsed": lapsed}
        found = f"{len(more):,} more processes have {number_of_runs(leases)}; {lapsed:,} of the leases have lapsed"
        yield Finding("leases", Level.NOTE if lapsed else Level.OK, found, facts=facts)


# -- memory ------------------------------------------------------------------------------------------------------------

_LARGE = 10_000_000


def _of_memory(sizes: list[tuple[int, str]]) -> Finding:
    if not sizes:
        return Finding("memory", Level.OK, "no journal was weighed", facts={"journals": 0})
    mean, (largest, task_id) = sum(size for size, _ in sizes) // len(sizes), max(sizes)
    found = f"a journal takes {_size(mean)}; the largest of {len(sizes):,} takes {_size(largest)} ({task_id})"
    facts = {"journals": len(sizes), "mean": mean, "largest": largest, "id": task_id}
    if largest < _LARGE:
        return Finding("memory", Level.OK, found, facts=facts)
    advice = "each attempt reads its whole journal: return references to large data from steps, and not the data"
    return Finding("memory", Level.NOTE, found, advice, facts)


def _size(number: int) -> str:
    for size, unit in ((1_000_000, "MB"), (1_000, "kB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
