"""Round trips that are waited for, counted: the server is put 50 ms away, and time divided by that is their number."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from benchmarks.charge import charge
from benchmarks.distance import Distance
from benchmarks.report import Row
from benchmarks.stand import Stand
from celery_durable import DurableContext, RunOptions

GROUP = "Round trips waited for, counted on a server 50 ms away"
_DELAY = 0.05
_REPEATS = 4

_VERBS: dict[str, tuple[Callable[[DurableContext], object], int]] = {
    "a recorded step": (lambda ctx: ctx.run("charge", charge, 1), 1),
    "a recorded step, max_attempts=5": (lambda ctx: ctx.run("charge", charge, RunOptions(max_attempts=5), 1), 1),
    "a recorded step, max_attempts=1": (lambda ctx: ctx.run("charge", charge, RunOptions(max_attempts=1), 1), 2),
    "ctx.uuid()": (lambda ctx: ctx.uuid(), 0),
    "ctx.random()": (lambda ctx: ctx.random().random(), 0),
    "ctx.time()": (lambda ctx: ctx.time(), 0),
}


def measure(near: Stand, port: int) -> list[Row]:
    """Count the trips of each verb, and of the beginning and the end of an attempt."""
    with Distance(port, _DELAY) as distance:
        far = Stand(f"redis://127.0.0.1:{distance.port}/0")
        far.run(lambda _: None)  # connects, and loads the scripts
        rows = [_verb(far, name, verb, at_most) for name, (verb, at_most) in _VERBS.items()]
        long_run = near.run(lambda ctx: _record(ctx, 1_000), again=True)
        ends = [_edges(far, None) for _ in range(_REPEATS)] + [_edges(far, long_run)]
    near.forget(long_run)
    rows.append(_row("to open a run without entries", [begin for begin, _ in ends[:-1]], 1))
    rows.append(_row("to open a run with 1,000 entries", [ends[-1][0]], 1))
    rows.append(_row("to end a run", [end for _, end in ends], 1))
    return rows + _commands(near)


def _verb(stand: Stand, name: str, verb: Callable[[DurableContext], object], at_most: int) -> Row:
    seconds: list[float] = []

    def body(ctx: DurableContext) -> None:
        for _ in range(_REPEATS):
            began = time.perf_counter()
            verb(ctx)
            seconds.append(time.perf_counter() - began)

    stand.run(body)
    return _row(name, seconds, at_most)


def _edges(stand: Stand, task_id: str | None) -> tuple[float, float]:
    """Seconds until the body is entered, and after it has been left."""
    times = [time.perf_counter()]

    def body(ctx: DurableContext) -> None:
        times.append(time.perf_counter())
        if task_id is not None:
            _record(ctx, 1_000)
        times.append(time.perf_counter())

    stand.run(body, task_id)
    times.append(time.perf_counter())
    return times[1] - times[0], times[3] - times[2]


def _record(ctx: DurableContext, count: int) -> None:
    for number in range(count):
        ctx.run("charge", charge, number)


def _row(what: str, seconds: list[float], at_most: int) -> Row:
    # A busy machine adds to the time, nothing takes from it.
    trips = int(median(seconds) / _DELAY)
    return Row(GROUP, what, trips, at_most=at_most, facts={"ms": [each * 1e3 for each in seconds]})


def _commands(stand: Stand) -> list[Row]:
    """What clients send in all, waited for or not, by the server's own count."""
    rows = []
    with stand.client() as client:
        for what, options in {"without limits": (), "with max_attempts=5": (RunOptions(max_attempts=5),)}.items():
            before = _calls(client)
            stand.run(partial(_some, options=options))
            after = _calls(client)
            sent = {name: after[name] - before.get(name, 0) for name in after if after[name] > before.get(name, 0)}
            # Scripts and the one load; what scripts call inside the server is counted under its own name.
            total = sent.get("evalsha", 0) + sent.get("hgetall", 0)
            facts = {"server_calls": sent}
            rows.append(Row("Commands sent", f"a whole run with 10 steps {what}", total, facts=facts))
    return rows


def _some(ctx: DurableContext, options: tuple[RunOptions, ...]) -> None:
    for number in range(10):
        ctx.run("charge", charge, *options, number)


def _calls(client: Any) -> dict[str, int]:
    return {name.removeprefix("cmdstat_"): facts["calls"] for name, facts in client.info("commandstats").items()}
