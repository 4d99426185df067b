"""Steps in OpenTelemetry traces, where the process has it loaded and a trace is being recorded, and its metric."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from . import sentry

_NOTHING: AbstractContextManager[Any] = nullcontext()


def is_recording() -> bool:
    """Whether the code that runs belongs to a trace."""
    # While another thread imports a module, it is there without what it will have: so here and below.
    get_current = getattr(sys.modules.get("opentelemetry.context"), "get_current", None)
    # Most often nothing is being traced, which is seen at half the price of a look at the span.
    if get_current is None or not get_current():
        return False
    get_current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    return get_current_span is not None and get_current_span().is_recording()


def span(name: str, task_id: str, execution: int) -> AbstractContextManager[Any]:
    """A span around one execution of a step."""
    from opentelemetry import trace

    attributes: dict[str, str | int] = {"celery_durable.task_id": task_id, "celery_durable.execution": execution}
    return trace.get_tracer("celery_durable").start_as_current_span(name, attributes=attributes)


def continued(headers: Mapping[str, Any] | None) -> AbstractContextManager[Any]:
    """Within this, what is sent belongs to the trace that *headers* carry."""
    if "opentelemetry.trace" not in sys.modules or not headers:
        return _NOTHING
    return _Attached(headers)


def traced(headers: Mapping[str, Any]) -> dict[str, Any]:
    """*headers* with the trace that the code which runs belongs to, where they carry none themselves."""
    own: dict[str, Any] = {}
    if "opentelemetry.trace" in sys.modules:
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
