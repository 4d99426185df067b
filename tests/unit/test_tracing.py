"""Each attempt and each execution of a step is a span, and they belong to the trace of the sender."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_args

import pytest
from celery import Celery, signals

from celery_durable import DurableContext, RunOptions, TerminalError, durable_task, tracing
from celery_durable.drivers.interruption import current_target
from celery_durable.interrupts import RetryStep
from celery_durable.invocation.ends import End, NotBegun
from celery_durable.invocation.span import HOW
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
    current_target()
    assert not tracing.is_loaded()


# -- attempts ----------------------------------------------------------------------------------------------------------


def by_name(spans: Any) -> dict[str, Any]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_an_attempt_is_a_span_and_its_steps_are_its_children(app: Celery, spans: Any) -> None:
    @durable_task(name="shop.order")
    def order(ctx: DurableContext) -> int:
        return ctx.run("pay", trace_id)

    assert order.apply().get() == by_name(spans)["attempt/shop.order"].get_span_context().trace_id
    attempt, step = by_name(spans)["attempt/shop.order"], by_name(spans)["pay"]
    assert attempt.parent is None
    assert step.parent.span_id == attempt.get_span_context().span_id
    assert {name: attempt.attributes[f"celery_durable.{name}"] for name in ("task", "attempt", "end")} == {
        "task": "shop.order", "attempt": 1, "end": "SUCCESS",
    }  # fmt: skip
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_failed_attempt_says_so(app: Celery, spans: Any) -> None:
    pay = Action(OSError("no money"), 1)

    @durable_task(name="shop.order")
    def order(ctx: DurableContext) -> int:
        return ctx.run("pay", pay)

    with trace.get_tracer("unit").start_as_current_span("caller") as caller:
        order.apply().get()
    failed, good = (span for span in spans.get_finished_spans() if span.name == "attempt/shop.order")
    assert [span.attributes["celery_durable.end"] for span in (failed, good)] == ["RETRY", "SUCCESS"]
    assert failed.status.description == "OSError: no money"
    assert not good.status.description
    assert {span.parent.span_id for span in (failed, good)} == {caller.get_span_context().span_id}


def test_an_attempt_is_in_the_trace_of_its_message(app: Celery, spans: Any) -> None:
    @durable_task(name="shop.order")
    def order(ctx: DurableContext) -> None:
        ctx.run("pay", Action(1))
        raise TerminalError("declined")

    order.apply(headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    attempt = by_name(spans)["attempt/shop.order"]
    assert f"{attempt.get_span_context().trace_id:x}" == "af7651916cd43dd8448eb211c80319c"
    assert f"{attempt.parent.span_id:x}" == "b7ad6b7169203331"
    assert attempt.attributes["celery_durable.end"] == "FAILURE"


def test_a_span_that_another_thread_has_begun_is_ended_without_a_word(spans: Any, caplog: Any) -> None:
    begun: list[Any] = []
    thread = threading.Thread(target=lambda: begun.append(tracing.begin_attempt("shop.order", "task-1", {})))
    thread.start()
    thread.join()

    begun[0].end("SUCCESS", None)
    assert by_name(spans).keys() == {"attempt/shop.order"}
    assert caplog.text == ""


def test_a_delivery_that_begins_no_attempt_leaves_no_span(spans: Any) -> None:
    span = tracing.begin_attempt("shop.order", "task-1", {})
    assert span is not None
    span.leave()
    assert spans.get_finished_spans() == ()
    assert not tracing.is_recording()


def test_without_a_provider_an_attempt_is_a_span_only_if_its_message_names_a_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its steps then pass the trace on. Nobody would see any other span."""
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    traced = {"traceparent": f"00-{7:032x}-{8:016x}-01"}

    assert tracing.begin_attempt("shop.order", "task-1", {"retries": 0}) is None
    span = tracing.begin_attempt("shop.order", "task-1", traced)
    assert span is not None
    assert trace_id() == 7
    span.leave()
    assert trace_id() == 0


def test_each_end_of_an_attempt_has_a_word() -> None:
    assert HOW.keys() == {*get_args(End)} - {NotBegun}


def test_the_sender_puts_its_trace_into_the_message(app: Celery, spans: Any) -> None:
    @durable_task(name="shop.order")
    def order(ctx: DurableContext) -> None: ...

    sent: list[dict[str, Any]] = []

    def look(headers: dict[str, Any], **_: Any) -> None:
        sent.append(headers)

    signals.before_task_publish.connect(look)
    try:
        order.delay()
        with trace.get_tracer("unit").start_as_current_span("web") as web:
            order.delay()
            order.apply_async(headers={"traceparent": "that of somebody else"})
    finally:
        signals.before_task_publish.disconnect(look)
    context = web.get_span_context()
    ours = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert [headers.get("traceparent") for headers in sent] == [None, ours, "that of somebody else"]
