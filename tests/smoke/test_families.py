"""Impatient operators: whatever they do with runs that restart each other, two of them are never at work at once."""

import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from celery_durable import DurableError, Runs
from tests.smoke import effects
from tests.smoke.apps import families
from tests.smoke.nodes import DurableSetup, Worker
from tests.waiting import POLL_INTERVAL, eventually

FAMILIES = 8
OPERATORS = 3
ACTS = 120
"""So many are not refused, of each operator."""
VERBS = {"retry": 6, "restart": 4, "from a step": 2, "wake": 1, "cancel": 0.5, "purge": 0.3}
LIVE = {"STARTED", "RETRY", "SUSPENDED", "STALLED", "PAUSED"}


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.families"


def operate(runs: Runs, known: list[list[str]], seed: int) -> Counter[str]:
    """Do something with some run, again and again; return what was done how often."""
    rng, done = random.Random(seed), Counter[str]()
    while done.total() < ACTS:
        ids = rng.choice(known)
        task_id = rng.choice(ids[-5:])
        verb = rng.choices(list(VERBS), list(VERBS.values()))[0]
        try:
            if verb in ("restart", "from a step"):
                step = None if verb == "restart" else rng.choice(["step1", "nap", "step2"])
                ids.append(runs.restart(task_id, from_step=step))
            else:
                getattr(runs, verb)(task_id)
        except DurableError:
            time.sleep(POLL_INTERVAL / 4)  # most are at work
        else:
            done[verb] += 1
    return done


def overlaps() -> Iterator[tuple[str, str]]:
    """Attempts of one family of which one was at work between two signs of life of the other."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, attempt in enumerate(effects.keys("work")):
        first.setdefault(attempt, number)
        last[attempt] = number
    for one, began in first.items():
        for other, began_too in first.items():
            if one.split()[0] == other.split()[0] and began < began_too < last[one]:
                yield one, other


def kill_somebody(worker: Worker, rng: random.Random) -> None:
    with suppress(ProcessLookupError, IndexError):
        os.kill(rng.choice(worker.children()), signal.SIGKILL)


@pytest.mark.local_nodes(reason="its processes are killed by their pids")
def test_runs_of_one_family_are_never_at_work_at_once(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=4, conf={"durable_lease": 2})
    runs, rng = Runs(durable.app), random.Random(7)
    known = [[families.work.delay(f"family{number}").id] for number in range(FAMILIES)]

    with ThreadPoolExecutor(OPERATORS) as threads:
        at_work = [threads.submit(operate, runs, known, seed) for seed in range(OPERATORS)]
        for seen in itertools.count(60, 60):  # signs of life
            eventually(lambda: effects.count("work") >= seen or all(one.done() for one in at_work), deadline=60)  # noqa: B023
            if all(one.done() for one in at_work):
                break
            kill_somebody(worker, rng)
        done = sum((one.result() for one in at_work), Counter[str]())
    eventually(lambda: not LIVE & runs.counts().keys(), deadline=60, what="the end of all runs")

    assert min(done[verb] for verb in ("retry", "restart", "from a step")) > 10, done
    assert list(overlaps()) == []
