"""A recorded step against one bare HSET of the same bytes, on the same connection settings; a step that is observed
against one that is not; and a replayed step against json.loads() of its entry.
"""

import json
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from os import getpid
from statistics import median

from benchmarks.charge import charge, charge_async
from benchmarks.machine import CAN_PIN, WHY_NOT_PINNED, cores, pinned
from benchmarks.report import Row
from benchmarks.sample import ratios
from benchmarks.stand import Stand
from celery_durable import AsyncDurableContext, DurableContext, RunOptions, happenings
from celery_durable.signals import step_succeeded

GROUP = "Recorded step against one bare HSET of the same bytes"
_BLOCK = 40
_FIVE = RunOptions(max_attempts=5)

Blocks = dict[str, Callable[[], list[float]]]


def measure(stand: Stand, server_pid: int, seconds: float) -> list[Row]:
    """Compare the ways to record a step, on one core and on two; then replay steps."""
    rows = [row for name, placed in _placements(server_pid) for row in _compare(stand, name, placed, seconds)]
    return [*rows, _replayed(stand)]


def _placements(server_pid: int) -> Iterator[tuple[str, list[tuple[list[int], int]]]]:
    """Client and server on one core, and on two: a round trip takes three times as long between idle cores."""
    if not CAN_PIN:
        sys.stderr.write(f"not pinned: {WHY_NOT_PINNED}\n")
        yield "unpinned", []
        return
    first, last = cores()[0], cores()[-1]
    yield "one core", [([getpid()], first), ([server_pid], first)]
    if first != last:
        yield "two cores", [([getpid()], first), ([server_pid], last)]


_TARGETS = {
    ("sync", "one core"): 1.2,
    ("sync", "two cores"): 1.05,
    ("sync, max_attempts=5", "one core"): 1.6,
    ("sync, max_attempts=5", "two cores"): 1.6,
    ("async", "one core"): 2.5,
}


def _compare(stand: Stand, place: str, placed: list[tuple[list[int], int]], seconds: float) -> list[Row]:
    with _all_blocks(stand) as blocks:
        for block in blocks.values():  # connections, caches, threads
            block()
        with pinned(*placed):
            taken = _interleaved(blocks, seconds)
    bare, observed = taken.pop("bare HSET"), taken.pop("observed")
    watched = Row.of(
        "Recorded step with a receiver of its signal and OpenTelemetry's API, against one without both",
        f"sync, {place}",
        ratios(observed, taken["sync"]),
        at_most=1.15,
        facts={"us": median(observed), "unobserved_us": median(taken["sync"])},
    )
    rows = [
        Row.of(
            GROUP,
            f"{name}, {place}",
            ratios(values, bare),
            at_most=_TARGETS.get((name, place)),
            facts={"us": median(values), "bare_us": median(bare)},
        )
        for name, values in taken.items()
    ]
    return [Row.of(GROUP, f"(bare HSET, {place})", bare, "us"), *rows, watched]


def _interleaved(blocks: Blocks, seconds: float) -> dict[str, list[float]]:
    """The median of each block of each round, in microseconds; blocks of a round in random order."""
    taken: dict[str, list[float]] = {name: [] for name in blocks}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name in random.sample(list(blocks), len(blocks)):
            taken[name].append(median(blocks[name]()) * 1e6)
    return taken


@contextmanager
def _all_blocks(stand: Stand) -> Iterator[Blocks]:
    client = stand.client()
    entry = _recorded_bytes(stand)

    def bare() -> list[float]:
        key = str(uuid.uuid4())
        times = _times(lambda number: client.hset(key, f"step:{number}", entry))
        client.unlink(key)
        return times

    def sync_without_limits() -> list[float]:
        return _attempt(stand, lambda ctx, number: ctx.run("charge", charge, number))

    def sync_with_limits() -> list[float]:
        return _attempt(stand, lambda ctx, number: ctx.run("charge", charge, _FIVE, number))

    def on_loop() -> list[float]:
        return _async_attempt(stand)

    with client, _opentelemetry_at_hand() as at_hand:

        def observed() -> list[float]:
            with at_hand(), _a_receiver():
                return sync_without_limits()

        yield {
            "bare HSET": bare,
            "observed": observed,
            "sync": sync_without_limits,
            "sync, max_attempts=5": sync_with_limits,
            "async": on_loop,
        }


@contextmanager
def _a_receiver() -> Iterator[None]:
    """Somebody hears of each step; afterwards nobody does."""

    def hear(**_: object) -> None: ...

    observers = happenings.observers
    step_succeeded.connect(hear)
    yield
    step_succeeded.disconnect(hear)
    happenings.observers = observers


@contextmanager
def _opentelemetry_at_hand() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Gives what makes a block in which OpenTelemetry's API is loaded. Elsewhere the process has not loaded it."""
    import opentelemetry.trace  # noqa: F401  only this comparison needs it

    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "opentelemetry"}

    @contextmanager
    def loaded() -> Iterator[None]:
        sys.modules.update(modules)
        yield
        unload()

    def unload() -> None:
        for name in modules:
            del sys.modules[name]

    unload()
    yield loaded
    sys.modules.update(modules)


def _recorded_bytes(stand: Stand) -> bytes:
    """What the library writes for one step."""
    task_id = stand.run(lambda ctx: ctx.run("charge", charge, 1))
    entry = stand.journal(task_id)[b"step:1"]
    stand.forget(task_id)
    return entry


def _times(step: Callable[[int], object]) -> list[float]:
    step(0)
    times = []
    for number in range(1, _BLOCK + 1):
        began = time.perf_counter()
        step(number)
        times.append(time.perf_counter() - began)
    return times


def _attempt(stand: Stand, step: Callable[[DurableContext, int], object]) -> list[float]:
    times: list[float] = []
    stand.run(lambda ctx: times.extend(_times(lambda number: step(ctx, number))))
    return times


def _async_attempt(stand: Stand) -> list[float]:
    times = []

    async def body(ctx: AsyncDurableContext) -> None:
        await ctx.run("charge", charge_async, 0)
        for number in range(1, _BLOCK + 1):
            began = time.perf_counter()
            await ctx.run("charge", charge_async, number)
            times.append(time.perf_counter() - began)

    stand.run_async(body)
    return times


REPLAYED_AT_MOST = 2.5
"""Times what `json.loads` needs for the same entry."""


def parsing(entry: bytes) -> float:
    """Microseconds that `json.loads` needs for an entry as it comes from Redis: the yardstick of a replay."""
    times = []
    for _ in range(_BLOCK):
        began = time.perf_counter()
        json.loads(entry)
        times.append(time.perf_counter() - began)
    return median(times) * 1e6


def _replayed(stand: Stand, steps: int = 200, rounds: int = 30) -> Row:
    """One step that is in the journal, after loading."""

    def body(ctx: DurableContext) -> None:
        times = []
        for number in range(steps):
            began = time.perf_counter()
            ctx.run("charge", charge, number)
            times.append(time.perf_counter() - began)
        medians.append(median(times) * 1e6)

    medians: list[float] = []
    parsed: list[float] = []
    task_id = stand.run(body, again=True)
    entry = stand.journal(task_id)[b"step:1"]
    medians.clear()  # the attempt that recorded
    for _ in range(rounds):
        stand.run(body, task_id, again=True)
        parsed.append(parsing(entry))
    stand.forget(task_id)
    return Row.of(
        "Replay",
        "a replayed step, after loading, against json.loads() of its entry",
        ratios(medians, parsed),
        at_most=REPLAYED_AT_MOST,
        facts={"us": median(medians), "parsing_us": median(parsed)},
    )
