"""An app in OpenTelemetry traces: an instrumentation of Celery, and spans that are written where tests read them.

With ``WITHOUT_INSTRUMENTATION`` in its environment, only the library makes spans.
"""

import asyncio
import json
import os
import signal
from typing import Any

from celery import Celery, signals
from opentelemetry import context, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

import celery_durable as restate
from tests.smoke import effects

app = Celery("tracing")
app.conf.durable_task_retry_policy = restate.RetryPolicy(initial_retry_interval=0.02)

tracer = trace.get_tracer("shop")


class Exporter(SpanExporter):
    """Writes each span as an execution of the action "span"."""

    def export(self, spans: Any) -> SpanExportResult:
        for span in spans:
            effects.hit("span", json.dumps(facts(span)))
        return SpanExportResult.SUCCESS


def facts(span: ReadableSpan) -> dict[str, Any]:
    return {
        "name": span.name,
        "trace": f"{span.context.trace_id:032x}",
        "id": f"{span.context.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent else None,
        "began": span.start_time,
        "ended": span.end_time,
        "ok": span.status.is_ok or span.status.is_unset,
        **dict(span.attributes or {}),
    }


@signals.worker_init.connect
def record_spans(**_: Any) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    trace.set_tracer_provider(provider)


# What an instrumentation of Celery does: the headers of a message carry the trace, a task is a span of it.


def inject(headers: dict[str, Any], **_: Any) -> None:
    propagate.inject(headers)


def begin(task: Any, **_: Any) -> None:
    carried = {"traceparent": task.request.get("traceparent") or (task.request.headers or {}).get("traceparent", "")}
    span = tracer.start_span(f"run {task.name.rpartition('.')[2]}", propagate.extract(carried))
    token = context.attach(trace.set_span_in_context(span))
    task.request.spanned = (span, token)


def end(task: Any, **_: Any) -> None:
    span, token = task.request.spanned
    context.detach(token)
    span.end()


if "WITHOUT_INSTRUMENTATION" not in os.environ:
    signals.before_task_publish.connect(inject)
    signals.task_prerun.connect(begin)
    signals.task_postrun.connect(end)


def seen() -> str:
    """The trace that the caller is in."""
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


def look(where: str) -> str:
    """In a step: note the trace; a span of the step's own is a child of the step's."""
    execution = effects.hit(where, seen())
    with tracer.start_as_current_span(f"inside {where}"):
        if execution == 1:
            raise ConnectionError(f"the first execution of {where} fails")
    return seen()


async def look_async(where: str) -> str:
    await asyncio.sleep(0)
    return look(where)


OPTIONS = restate.RunOptions(initial_retry_interval=0.02)


@restate.durable_task
def in_a_def_task(ctx: restate.DurableContext) -> list[str]:
    return [
        ctx.run("sync", look, OPTIONS, "sync"),
        ctx.run("async", look_async, OPTIONS, "async"),
        ctx.run("without options", look, "without options"),
    ]


@restate.durable_task
async def in_an_async_task(ctx: restate.AsyncDurableContext) -> list[str]:
    return [
        await ctx.run("sync", look, OPTIONS, "sync"),
        await ctx.run("async", look_async, OPTIONS, "async"),
        await ctx.run("without options", look, "without options"),
    ]


@app.task(base=restate.DurableTask, bind=True)
def on_the_base_class(self: Any) -> list[str]:
    return [
        self.ctx.run("sync", look, OPTIONS, "sync"),
        self.ctx.run("async", look_async, OPTIONS, "async"),
        self.ctx.run("without options", look, restate.RunOptions(max_attempts=2), "without options"),
    ]


@restate.durable_task
def failing(ctx: restate.DurableContext) -> str:
    """Fails for good until the test releases it."""
    first = ctx.run("first", seen)
    if effects.hit("failing", seen()) == 1:
        raise restate.TerminalError("not today")
    return first


@restate.durable_task
def sleeping(ctx: restate.DurableContext) -> list[str]:
    """Looks, sleeps, and looks again in another attempt; the last time outside of its steps."""
    first = ctx.run("before", seen)
    ctx.sleep(0.05)
    return [first, ctx.run("after", seen), seen()]


def die_once(task_id: str) -> str:
    """In a step: kill the process, the first time."""
    if effects.hit("dies", task_id) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return seen()


def fail_once(task_id: str) -> str:
    if effects.hit("fails", task_id) == 1:
        raise ConnectionError("the first execution fails")
    return seen()


@restate.durable_task
def eventful(ctx: restate.DurableContext) -> list[str]:
    """Sleeps, is retried, and loses its process: four attempts."""
    before = ctx.run("before", seen)
    ctx.sleep(0.05)
    return [
        before,
        ctx.run("fails once", fail_once, OPTIONS, ctx.task_id),
        ctx.run("dies once", die_once, ctx.task_id),
        seen(),
    ]
