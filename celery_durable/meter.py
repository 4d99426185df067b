"""OpenTelemetry: metrics. Nothing is imported, made or measured if the process does not measure with it."""

from __future__ import annotations

import sys
from typing import Any

from . import happenings
from .metrics import COUNTERS, STEP_BUCKETS, STEP_SECONDS, Metric, measured_by

_measures = False


def measure_if_loaded() -> None:
    """Measure from now on, if this process has a provider of OpenTelemetry's metrics by now."""
    global _measures  # noqa: PLW0603  one per process, like the provider
    if not _measures and _has_provider():
        from opentelemetry import metrics

        _measures = True
        happenings.observe(measured_by(OpenTelemetryMeter(metrics.get_meter("celery_durable"))))


def _has_provider() -> bool:
    metrics = sys.modules.get("opentelemetry.metrics")
    # While another thread imports a module, sys.modules has it, but its names may be missing: hence hasattr.
    if metrics is None or not hasattr(metrics, "get_meter_provider"):
        return False
    # The providers of the API itself measure nothing. Many programs have loaded the API, and no more.
    return not type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.metrics")


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
