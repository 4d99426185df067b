"""A task without steps: what being durable adds to its CPU time, from `delay()` to `get()`."""

import random
import time
from collections.abc import Collection
from dataclasses import dataclass
from os import getpid
from typing import Any

from benchmarks.machine import Meter, cores, pinned
from benchmarks.report import Row
from benchmarks.sample import ratios

GROUP = "CPU of a task without steps (client, worker and Redis), against the plain task"
PLAIN = "plain task"
TWIN = "plain task, another worker"
UNTOUCHED = "task_cls=DurableTask, context untouched"
STEPLESS = "@durable_task without steps"
_TARGETS = {UNTOUCHED: 1.02, STEPLESS: 1.1}
_BLOCK = 40

Taken = dict[str, list[float]]
"""CPU microseconds per task, of every block."""


@dataclass(frozen=True)
class Case:
    """A task, and the processes that have a part in it."""

    name: str
    task: Any
    pids: Collection[int]


def take(cases: Collection[Case], seconds: float, taken: Taken) -> None:
    """Interleave blocks of tasks, all processes on one core: there CPU times repeat best."""
    everyone = {getpid(), *(pid for case in cases for pid in case.pids)}
    for case in cases:
        _block(case)
    with pinned((everyone, cores()[-1])):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for case in random.sample(list(cases), len(cases)):
                taken.setdefault(case.name, []).append(_block(case))


def rows(taken: Taken) -> list[Row]:
    """Each against the mean of the two plain workers of its round: two workers of one app differ by some percent."""
    base = [(one + other) / 2 for one, other in zip(taken[PLAIN], taken[TWIN], strict=True)]
    compared = [
        Row.of(GROUP, name, ratios(taken[name], base), at_most=target, facts={"us": taken[name]})
        for name, target in _TARGETS.items()
    ]
    noise = Row.of(GROUP, "(one plain worker against the other: the noise)", ratios(taken[TWIN], taken[PLAIN]))
    return [Row.of(GROUP, "(plain task)", base, "us"), noise, *compared]


def _block(case: Case) -> float:
    with Meter(case.pids) as meter:
        for number in range(_BLOCK):
            case.task.delay(number).get(timeout=60)
    return meter.seconds / _BLOCK * 1e6
