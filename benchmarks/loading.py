"""Replay of long journals: time per entry, and peak memory against the bytes of the journal."""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.charge import charge, kilobyte
from benchmarks.report import Row
from benchmarks.sample import ratios
from benchmarks.stand import Stand
from benchmarks.step import REPLAYED_AT_MOST
from celery_durable import DurableContext

GROUP = "Replay"
_PROJECT = Path(__file__).parents[1]


def measure(stand: Stand, url: str, *, quick: bool) -> list[Row]:
    """Time replays of 100, 1,000 and 10,000 entries, then weigh 10,000 entries of 1 KB."""
    rows = [row for entries in (100, 1_000, 10_000) for row in _replays(stand, entries, 3 if quick else 7)]
    return rows + _memory(stand, url, 10_000, rounds=1 if quick else 3)


def _replays(stand: Stand, entries: int, rounds: int) -> list[Row]:
    loading: list[float] = []
    stepping: list[float] = []
    parsed: list[float] = []

    def body(ctx: DurableContext) -> None:
        entered = time.perf_counter()
        for number in range(entries):
            ctx.run("charge", charge, number)
        loading.append((entered - began) / entries * 1e6)
        stepping.append((time.perf_counter() - entered) / entries * 1e6)

    began = time.perf_counter()
    task_id = stand.run(body, again=True)
    recorded = list(stand.journal(task_id).items())
    for _ in range(rounds):
        began = time.perf_counter()
        stand.run(body, task_id, again=True)
        parsed.append(_parse(recorded))
    stand.forget(task_id)
    del loading[0], stepping[0]  # the attempt that recorded
    whole = [load + step for load, step in zip(loading, stepping, strict=True)]
    what = f"{entries:,} entries: per entry, after loading, against json.loads() of it"
    facts = {"us": median(stepping), "parsing_us": median(parsed)}
    return [
        Row.of(GROUP, what, ratios(stepping, parsed), at_most=REPLAYED_AT_MOST, facts=facts),
        Row.of(GROUP, f"{entries:,} entries: per entry, loading included", whole, "us"),
    ]


def _parse(recorded: list[tuple[bytes, bytes]]) -> float:
    """Microseconds that `json.loads` needs for one of these entries, one after the other, as a replay meets them."""
    entries = [value for name, value in recorded if name.startswith(b"step:")]
    began = time.perf_counter()
    for entry in entries:
        json.loads(entry)
    return (time.perf_counter() - began) / len(entries) * 1e6


def _memory(stand: Stand, url: str, entries: int, rounds: int) -> list[Row]:
    """Peak memory of a replay in fresh processes, beside the bytes of all fields and values."""
    task_id = stand.run(lambda ctx: _step_through(ctx, entries), again=True)
    journal = sum(len(name) + len(value) for name, value in stand.journal(task_id).items())
    grown, traced = [], []
    for _ in range(rounds):
        grown.append(_weigh(url, task_id, entries, "rss") / journal)
        traced.append(_weigh(url, task_id, entries, "tracemalloc") / journal)
    stand.forget(task_id)
    what = f"{entries:,} entries of 1 KB: peak memory / bytes of the journal"
    facts = {"journal_bytes": journal}
    return [
        Row.of(GROUP, f"{what} (resident)", grown, at_most=2, facts=facts),
        Row.of(GROUP, f"{what} (tracemalloc)", traced, at_most=2, facts=facts),
    ]


def _step_through(ctx: DurableContext, entries: int) -> None:
    for number in range(entries):
        ctx.run("kilobyte", kilobyte, number)


def _weigh(url: str, task_id: str, entries: int, way: str) -> int:
    command = [sys.executable, "-m", "benchmarks.weight", url, task_id, str(entries), way]
    done = subprocess.run(command, cwd=_PROJECT, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout)["peak"])
