"""N steps as a chain of N plain tasks, against N steps of one durable task."""

import time
from collections.abc import Callable, Collection
from typing import Any

from celery import chain

from benchmarks.machine import Meter
from benchmarks.report import Row
from benchmarks.sample import ratios

GROUP = "A chain of plain tasks against the steps of one durable task"


class Chains:
    """Chains of *count* tasks `link`, and tasks `steps` with as many steps: latency and CPU per step, unpinned."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._of_chain: list[tuple[float, float]] = []
        self._of_steps: list[tuple[float, float]] = []

    def take(self, link: Any, plain_pids: Collection[int], steps: Any, durable_pids: Collection[int]) -> None:
        """Interleave both, on workers that have just started: the first round warms them up."""
        for number in range(3):
            chained = self._once(lambda: self._chain(link), plain_pids)
            stepped = self._once(lambda: self._task(steps), durable_pids)
            if number:
                self._of_chain.append(chained)
                self._of_steps.append(stepped)

    def rows(self) -> list[Row]:
        """What one step costs either way, and the ratios."""
        count, rows = self._count, []
        for index, quantity in enumerate(("latency", "CPU")):
            of_chain = [values[index] for values in self._of_chain]
            of_steps = [values[index] for values in self._of_steps]
            rows += [
                Row.of(GROUP, f"chain of {count}: {quantity} per step", of_chain, "us"),
                Row.of(GROUP, f"one task, {count} steps: {quantity} per step", of_steps, "us"),
                Row.of(GROUP, f"{quantity}: chain / steps", ratios(of_chain, of_steps)),
            ]
        return rows

    def _chain(self, link: Any) -> None:
        chain(*(link.si(number) for number in range(self._count))).apply_async().get(timeout=120)

    def _task(self, steps: Any) -> None:
        steps.delay(self._count).get(timeout=120)

    def _once(self, work: Callable[[], None], pids: Collection[int]) -> tuple[float, float]:
        """Microseconds of latency and of CPU per step."""
        with Meter(pids) as meter:
            began = time.perf_counter()
            work()
            wall = time.perf_counter() - began
        return wall / self._count * 1e6, meter.seconds / self._count * 1e6
