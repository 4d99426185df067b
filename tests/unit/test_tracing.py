"""The trace of the task is visible inside its steps, and each execution of a step is a span."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from celery_durable import RunOptions, tracing
from celery_durable.drivers.interruption import current_target
from celery_durable.interrupts import RetryStep
from tests.unit.conftest import Action, Run

trace = pytest.importorskip("opentelemetry.trace")
sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")


@pytest.fixture(scope="module")
def exporter() -> Any:
    """What was traced; a process has one provider for ever, so that all tests share it."""
    exporter = in_memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: Any) -> Iterator[Any]:
    """The exporter, emptied."""
    exporter.clear()
    yield exporter
    exporter.clear()


async def trace_id_async() -> int:
    return int(trace.get_current_span().get_span_context().trace_id)


def trace_id() -> int:
    return int(trace.get_current_span().get_span_context().trace_id)


@pytest.mark.parametrize("action", [trace_id, trace_id_async], ids=["sync", "async"])
def test_a_step_belongs_to_the_trace_of_its_task(run: Run, spans: Any, action: Any) -> None:
    with trace.get_tracer("unit").start_as_current_span("task") as task:
        seen = run.attempt().run("pay", action)
    assert seen == task.get_span_context().trace_id
    step = next(span for span in spans.get_finished_spans() if span.name == "pay")
    assert step.parent.span_id == task.get_span_context().span_id
    assert dict(step.attributes) == {"celery_durable.task_id": "task-1", "celery_durable.execution": 1}


def test_every_execution_is_a_span_and_a_replay_is_none(run: Run, spans: Any) -> None:
    action, options = Action(OSError(), 1), RunOptions(max_attempts=3)
    with trace.get_tracer("unit").start_as_current_span("task"):
        with pytest.raises(RetryStep):
            run.attempt().run("pay", action, options)
        run.attempt().run("pay", action, options)
        run.attempt().run("pay", action, options)
    executions = [
        span.attributes["celery_durable.execution"] for span in spans.get_finished_spans() if span.name == "pay"
    ]
    assert executions == [1, 2]


def test_without_a_trace_there_is_no_span(run: Run, spans: Any) -> None:
    run.attempt().run("pay", Action(1))
    assert spans.get_finished_spans() == ()


def test_a_module_that_another_thread_is_importing_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps of a process, in a pool of threads, beside user code that imports when it is called."""
    for name in ("opentelemetry.trace", "opentelemetry.metrics", "greenlet", "gevent"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))

    assert not tracing.is_recording()
    tracing.count_inactivity("shop.order")
    current_target()
