"""OpenTelemetry: metrics. Nothing is imported, made or measured if the process does not measure with it."""

from __future__ import annotations

import threading
from typing import Any

from . import happenings
from .metrics import COUNTERS, MEASURED, STEP_BUCKETS, STEP_SECONDS, Metric, measured_by
from .tracing import has_provider

_measures = False
_beginning = threading.Lock()


def measure_if_loaded() -> None:
    """Measure from now on, if this process has a provider of OpenTelemetry's metrics by now."""
    global _measures  # noqa: PLW0603  one per process, like the provider
    if not _measures and has_provider("opentelemetry.metrics", "get_meter_provider"):
        from opentelemetry import metrics

        with _beginning:  # two threads may open their first runs side by side
            if _measures:
                return
            _measures = True
        happenings.observe(measured_by(OpenTelemetryMeter(metrics.get_meter("celery_durable"))), MEASURED)


class OpenTelemetryMeter:
    """The metrics ``celery_durable.<name>``, with labels ``celery_durable.<label>``."""

    def __init__(self, meter: Any) -> None:
        self._counters: dict[str, Any] = {
            metric.name: meter.create_counter(_named(metric.name), description=metric.description)
            for metric in COUNTERS
        }
        self._step_seconds = meter.create_histogram(
            _named(STEP_SECONDS.name), unit="s", description=STEP_SECONDS.description,
            explicit_bucket_boundaries_advisory=STEP_BUCKETS,
        )  # fmt: skip

    def count(self, metric: Metric, amount: int, *labels: str) -> None:
        self._counters[metric.name].add(amount, dict(zip(map(_named, metric.labels), labels, strict=True)))

    def time_step(self, seconds: float, task: str) -> None:
        self._step_seconds.record(seconds, {"celery_durable.task": task})


def _named(name: str) -> str:
    return f"celery_durable.{name}"
