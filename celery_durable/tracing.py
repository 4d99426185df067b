"""OpenTelemetry: spans of steps, traces that go on over attempts, and a metric.

Nothing here imports OpenTelemetry by itself: if the process has not loaded it, nothing is done.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from . import sentry

_NOTHING: AbstractContextManager[Any] = nullcontext()


def is_recording() -> bool:
    """Whether this code belongs to a trace that is recorded."""
    if not _has_context():
        return False
    get_current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    return get_current_span is not None and get_current_span().is_recording()


def _has_context() -> bool:
    """Whether OpenTelemetry knows anything of this code. To ask it costs half of what a look at the span costs."""
    # While another thread imports a module, sys.modules has it, but its names may be missing: hence getattr.
    get_current = getattr(sys.modules.get("opentelemetry.context"), "get_current", None)
    return get_current is not None and bool(get_current())


def span(name: str, task_id: str, execution: int) -> AbstractContextManager[Any]:
    """A span around one execution of a step; *execution* is its number."""
    from opentelemetry import trace

    attributes: dict[str, str | int] = {"celery_durable.task_id": task_id, "celery_durable.execution": execution}
    return trace.get_tracer("celery_durable").start_as_current_span(name, attributes=attributes)


def continue_trace(headers: Mapping[str, Any] | None) -> AbstractContextManager[Any]:
    """A block: the messages that are sent in it belong to the trace in *headers*."""
    if "opentelemetry.trace" not in sys.modules or not headers:
        return _NOTHING
    return _Attached(headers)


def with_trace(headers: Mapping[str, Any]) -> dict[str, Any]:
    """*headers*; if they have no trace, the trace of this code is added."""
    own: dict[str, Any] = {}
    if _has_context():
        from opentelemetry import propagate

        propagate.inject(own)
        if not own.keys().isdisjoint(headers):
            own = {}
    if "sentry-trace" not in headers:
        own |= sentry.trace_headers()
    return {**own, **headers}


class _Attached:
    def __init__(self, headers: Mapping[str, Any]) -> None:
        self._headers = {name: value for name, value in headers.items() if isinstance(value, str)}

    def __enter__(self) -> None:
        from opentelemetry import context, propagate

        self._token = context.attach(propagate.extract(self._headers))

    def __exit__(self, *exc_info: object) -> None:
        from opentelemetry import context

        context.detach(self._token)


def count_inactivity(task: str) -> None:
    """Count an attempt without progress, where the process has OpenTelemetry's metrics loaded."""
    get_meter = getattr(sys.modules.get("opentelemetry.metrics"), "get_meter", None)
    if get_meter is not None:
        counter = get_meter("celery_durable").create_counter(
            "celery_durable.inactive", description="attempts that made no progress for their inactivity_timeout"
        )
        counter.add(1, {"celery_durable.task": task})
