"""How long an operator waits among very many runs, for a list, the counts or a search; and what the index weighs."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import redis
from celery import Celery

from benchmarks.report import Row
from celery_durable import Runs
from celery_durable.app.store import store_of
from tests.planting import Garden

DATABASE = 1
"""The runs of the other parts are not among these."""
_REPEATS = 7

_QUESTIONS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("the newest 50", {}, 50),
    ("the newest 50 that have failed", {"state": "FAILURE"}, 50),
    ("the newest 50 of one task that have failed", {"state": "FAILURE", "task": "shop.crowd0"}, 50),
    ("50 in a state that no run has", {"state": "PAUSED"}, 50),
    ("50 by a text that all have", {"text": "crowd"}, 500),
    ("one by a text that it alone has", {"text": "crowd-00007"}, 500),
    ("none by a text that no run has", {"text": "nothing"}, 500),
    ("none by an attribute that no run has", {"attributes": {"order": "o1"}}, 500),
)


def measure(url: str, *, quick: bool) -> list[Row]:
    """Plant runs in a database of their own, and ask for some of them."""
    number = 10_000 if quick else 100_000
    address = f"{url.rpartition('/')[0]}/{DATABASE}"
    app = Celery("listing", broker=address, set_as_current=False)
    app.conf.update(durable_redis_url=address)
    with redis.Redis.from_url(address, decode_responses=True) as client:
        Garden(store_of(app), client, round(time.time() * 1000)).crowd(number)
        runs = Runs(app)
        group = f"Milliseconds until an operator has an answer, among {number:,} runs"
        rows = [_row(group, what, partial(runs.list, **asked), most) for what, asked, most in _QUESTIONS]
        rows.append(_row(group, "how many there are in each state", runs.counts, 5))
        rows.append(Row("Memory", "bytes of the index for each run", _weight(client) / number, "bytes", at_most=160))
        client.flushdb()
    return rows


def _row(group: str, what: str, ask: Callable[[], object], at_most: float) -> Row:
    ask()  # connections and scripts
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        ask()
        times.append((time.perf_counter() - began) * 1000)
    return Row.of(group, what, times, "ms", at_most=at_most)


def _weight(client: "redis.Redis") -> int:
    """The bytes of all that the index consists of."""
    names = client.scan_iter(match="*index*", count=10_000, _type="zset")
    return sum(client.memory_usage(name, samples=0) or 0 for name in names)
