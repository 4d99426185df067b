"""The machine: which cores processes may use, and what CPU time they have taken."""

import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

CAN_PIN = hasattr(os, "sched_setaffinity")
WHY_NOT_PINNED = "this operating system has no sched_setaffinity: processes run where it puts them"


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if CAN_PIN else list(range(os.cpu_count() or 1))


def pin(pids: Collection[int], allowed: Collection[int]) -> None:
    """Let all threads of these processes, and of their children, run on the *allowed* cores only."""
    if not CAN_PIN:
        return
    for process in _families(pids):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, allowed)


@contextmanager
def pinned(*groups: tuple[Collection[int], int]) -> Iterator[None]:
    """Keep each group of processes on one core for a while."""
    everywhere = cores()
    for pids, core in groups:
        pin(pids, {core})
    try:
        yield
    finally:
        for pids, _ in groups:
            pin(pids, everywhere)


class Meter:
    """CPU seconds that processes and their children take, this process among them."""

    def __init__(self, pids: Collection[int]) -> None:
        self._processes = _families(pids)
        self._own, self._before, self._others = 0.0, dict[int, float](), 0.0

    def __enter__(self) -> "Meter":  # noqa: PYI034 - Self is in the standard library from Python 3.11
        self._before = self._read()
        self._own = time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        self._own = time.process_time() - self._own
        # What the server forks to write its file anew has a life of its own, and may be gone by now.
        self._others = sum(taken - self._before[pid] for pid, taken in self._read().items() if pid in self._before)

    @property
    def seconds(self) -> float:
        """The time taken between entry and exit."""
        return self._own + self._others

    def _read(self) -> dict[int, float]:
        taken = {}
        for process in self._processes:
            with suppress(psutil.NoSuchProcess, FileNotFoundError):
                taken[process.pid] = _cpu_seconds(process)
        return taken


def _families(pids: Collection[int]) -> list[psutil.Process]:
    parents = [psutil.Process(pid) for pid in pids]
    return parents + [child for parent in parents for child in parent.children(recursive=True)]


def _cpu_seconds(process: psutil.Process) -> float:
    """As fine as the system has it: Linux counts nanoseconds per thread, else there are ticks of 10 ms."""
    threads = [*Path(f"/proc/{process.pid}/task").glob("*/schedstat")]
    if threads:
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    times = process.cpu_times()
    return float(times.user + times.system)
