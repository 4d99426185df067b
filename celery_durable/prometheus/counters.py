"""What this process has done, counted by prometheus-client."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from weakref import WeakSet

from prometheus_client import CollectorRegistry, Counter, Histogram

from celery_durable import happenings
from celery_durable.exceptions import ConfigurationError
from celery_durable.metrics import COUNTERS, MEASURED, STEP_BUCKETS, STEP_SECONDS, Metric, measured_by

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""By it, prometheus-client lets the processes of a pool count in files of one folder."""

_registered: WeakSet[CollectorRegistry] = WeakSet()


def register(registry: CollectorRegistry) -> None:
    """Count from now on, and let *registry* have the counts of this process.

    Raises:
        ConfigurationError: the processes of the pool are to count in a folder that does not exist.
    """
    folder = counted_in_files()
    if folder and not Path(folder).is_dir():
        raise ConfigurationError(
            f"{FOLDER_VARIABLE} names {folder!r}, which is no folder: make it before the process starts"
        )
    counters = _counters()
    # What is counted in files is collected from there, for all processes at once.
    if not folder and registry not in _registered:
        for metric in counters.metrics:
            registry.register(metric)
        _registered.add(registry)


def counted_in_files() -> str:
    """The folder in which the processes of a worker count; empty: each counts for itself."""
    return os.environ.get(FOLDER_VARIABLE, "")


@cache
def _counters() -> Counters:
    counters = Counters()
    happenings.observe(measured_by(counters), MEASURED)
    return counters


class Counters:
    """The counters of this process. A process has one set of them, for all registries."""

    def __init__(self) -> None:
        self._counters = {
            metric.name: Counter(f"celery_durable_{metric.name}", _sentence(metric), metric.labels, registry=None)
            for metric in COUNTERS
        }
        self._step_seconds = Histogram(
            f"celery_durable_{STEP_SECONDS.name}", _sentence(STEP_SECONDS), STEP_SECONDS.labels,
            buckets=STEP_BUCKETS, registry=None,
        )  # fmt: skip

    @property
    def metrics(self) -> tuple[Counter | Histogram, ...]:
        return (*self._counters.values(), self._step_seconds)

    def count(self, metric: Metric, amount: int, *labels: str) -> None:
        self._counters[metric.name].labels(*labels).inc(amount)

    def time_step(self, seconds: float, task: str) -> None:
        self._step_seconds.labels(task).observe(seconds)


def _sentence(metric: Metric) -> str:
    return f"{metric.description[0].upper()}{metric.description[1:]}."
