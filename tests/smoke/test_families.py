"""An impatient operator: whatever he does with runs that restart each other, two of them are never at work at once."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest

from celery_durable import DurableError, RunNotRetryableError, Runs
from tests.smoke import effects
from tests.smoke.apps import families
from tests.smoke.nodes import DurableSetup, Worker
from tests.waiting import POLL_INTERVAL, eventually

FAMILIES = 8
ACTS = 300
"""So many are not refused."""
ACTS_PER_KILL = 40
VERBS = {"retry all": 2, "retry": 4, "restart": 4, "from a step": 2, "wake": 1, "cancel": 0.5, "purge": 0.3}
LIVE = {"STARTED", "RETRY", "SUSPENDED", "STALLED", "PAUSED"}


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.families"


def is_retried(runs: Runs, task_id: str) -> bool:
    with suppress(DurableError):
        return bool(runs.retry(task_id))
    return False


def act(runs: Runs, verb: str, ids: list[str], rng: random.Random) -> None:
    """Do something with one of the newest runs of a family."""
    task_id = rng.choice(ids[-5:])
    if verb in ("restart", "from a step"):
        step = None if verb == "restart" else rng.choice(["step1", "nap", "step2"])
        ids.append(runs.restart(task_id, from_step=step))
    elif verb == "retry all":
        if sum(is_retried(runs, one) for one in ids[-4:]) == 0:
            raise RunNotRetryableError
    else:
        getattr(runs, verb)(task_id)


def kill_somebody(worker: Worker, rng: random.Random) -> None:
    with suppress(ProcessLookupError, IndexError):
        os.kill(rng.choice(worker.children()), signal.SIGKILL)


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


@pytest.mark.local_nodes(reason="its processes are killed by their pids")
def test_runs_of_one_family_are_never_at_work_at_once(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=4, conf={"durable_lease": 2})
    runs, rng, done = Runs(durable.app), random.Random(7), Counter[str]()
    known = [[families.work.delay(f"family{number}").id] for number in range(FAMILIES)]

    while done.total() < ACTS:
        verb = rng.choices(list(VERBS), list(VERBS.values()))[0]
        try:
            act(runs, verb, rng.choice(known), rng)
        except DurableError:
            time.sleep(POLL_INTERVAL / 10)  # most are at work
            continue
        done[verb] += 1
        if done.total() % ACTS_PER_KILL == 0:
            kill_somebody(worker, rng)
    eventually(lambda: not LIVE & runs.counts().keys(), deadline=60, what="the end of all runs")

    assert min(done[verb] for verb in ("retry", "restart", "from a step")) > 10, done
    assert list(overlaps()) == []
