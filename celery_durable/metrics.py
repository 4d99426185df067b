"""What is measured, whatever library measures it: each metric, and how it follows from what happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from celery import states

from .happenings import Happening

if TYPE_CHECKING:
    from .happenings import Observer
    from .records import Run, StepRecord


class Metric(NamedTuple):
    """A metric. Its name follows that of the library."""

    name: str
    description: str
    labels: tuple[str, ...] = ("task",)


STEPS = Metric("steps", "steps that have ended: succeeded, or failed for good", ("task", "outcome"))
REPLAYS = Metric("replays", "steps whose result was replayed, and that were not executed")
RETRIES = Metric("retries", "how often a step or a task is tried again")
RECOVERIES = Metric("recoveries", "attempts that have begun because the process of the one before was lost")
FENCED = Metric("fenced_attempts", "attempts that found that another one has the run, or that it has ended elsewhere")
INACTIVE = Metric("inactive", "attempts that made no progress for their inactivity_timeout")
RUNS_ENDED = Metric("runs_ended", "ends of runs: successes, failures, cancellations", ("task", "state"))
STEP_SECONDS = Metric("step_seconds", "how long the execution took that gave a step its result")

COUNTERS = (STEPS, REPLAYS, RETRIES, RECOVERIES, FENCED, INACTIVE, RUNS_ENDED)

STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Seconds: the upper bounds of the buckets of :data:`STEP_SECONDS`."""


class Meter(Protocol):
    """Measures with a library."""

    def count(self, metric: Metric, amount: int, *labels: str) -> None:
        """Let one of the :data:`COUNTERS` grow."""
        ...

    def time_step(self, seconds: float, task: str) -> None:
        """Take note of a duration for :data:`STEP_SECONDS`."""
        ...


def measured_by(meter: Meter) -> Observer:
    """An observer of all that is :data:`MEASURED`."""

    def measure(happening: str, run: Run, step: StepRecord | None) -> None:
        MEASURED[happening](meter, run, step)

    return measure


def _succeeded(meter: Meter, run: Run, step: StepRecord | None) -> None:
    meter.count(STEPS, 1, run.task, "succeeded")
    if step is not None and step.ms is not None:
        meter.time_step(step.ms / 1000, run.task)


def _failed(meter: Meter, run: Run, _step: StepRecord | None) -> None:
    meter.count(STEPS, 1, run.task, "failed")


def _left(meter: Meter, run: Run, _step: StepRecord | None) -> None:
    [attempt] = run.attempts
    if attempt.replayed:
        meter.count(REPLAYS, attempt.replayed, run.task)
    if attempt.how == states.RETRY:
        meter.count(RETRIES, 1, run.task)


def _ended(meter: Meter, run: Run, _step: StepRecord | None) -> None:
    meter.count(RUNS_ENDED, 1, run.task, run.state)


def _one_more(metric: Metric) -> Callable[[Meter, Run, StepRecord | None], None]:
    def count(meter: Meter, run: Run, _step: StepRecord | None) -> None:
        meter.count(metric, 1, run.task)

    return count


MEASURED: dict[str, Callable[[Meter, Run, StepRecord | None], None]] = {
    Happening.STEP_SUCCEEDED: _succeeded,
    Happening.STEP_FAILED: _failed,
    Happening.STEP_RETRIED: _one_more(RETRIES),
    Happening.RUN_RECOVERED: _one_more(RECOVERIES),
    Happening.RUN_SUCCEEDED: _ended,
    Happening.RUN_FAILED: _ended,
    Happening.RUN_CANCELLED: _ended,
    Happening.ATTEMPT_ENDED: _left,
    Happening.ATTEMPT_FENCED: _one_more(FENCED),
    Happening.ATTEMPT_INACTIVE: _one_more(INACTIVE),
}
"""A happening → how it is measured."""
