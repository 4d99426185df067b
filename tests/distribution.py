"""How tests are spread over the workers of pytest-xdist, each of which has servers, ports and folders of its own."""

from __future__ import annotations

import os

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

WORKERS_PER_CORE = 2.5
"""More than one, since most tests wait most of the time; with two, a third of the time of two cores was left over."""

MOST_WORKERS = 8
"""A container may see more cores than it is allowed to keep busy."""

ORDER = (
    "tests/chaos/test_chaos.py",
    "tests/smoke/test_rabbitmq.py",
    "tests/smoke",
    "tests/integration",
    "tests/chaos",
    "tests/unit",
)
"""The slow tests come first: what is left for the end is short, so that all workers end at about the same time."""

APART = "tests/smoke"
"""Each of these tests starts all that it needs, so that any worker may run it; the others share much within a file."""

TOGETHER = ("tests/smoke/test_rabbitmq.py", "tests/smoke/test_flower.py")
"""Except for these: those of a file share what takes seconds to start."""


def number_of_workers() -> int:
    return min(round(WORKERS_PER_CORE * number_of_cores()), MOST_WORKERS)


def number_of_cores() -> int:
    """Count the cores that this process may use, where the system tells them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sort(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place_of(item.nodeid))


def place_of(test: str) -> int:
    return next((place for place, beginning in enumerate(ORDER) if test.startswith(beginning)), len(ORDER))


class Schedule(LoadScopeScheduling):
    """Hands out the tests in the order of the workers: each apart, or those of a file together."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        is_apart = nodeid.startswith(APART) and not nodeid.startswith(TOGETHER)
        return nodeid if is_apart else nodeid.partition("::")[0]
