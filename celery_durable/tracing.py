"""OpenTelemetry: spans of attempts, waits and steps, and traces that go on over attempts.

Nothing here imports OpenTelemetry by itself: if the process has not loaded it, nothing is done.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from . import sentry

_NOTHING: AbstractContextManager[Any] = nullcontext()


def is_loaded() -> bool:
    """Whether this process has loaded OpenTelemetry's traces."""
    trace = sys.modules.get("opentelemetry.trace")
    # While another thread imports a module, sys.modules has it, but its names may be missing: hence hasattr.
    return trace is not None and hasattr(trace, "get_current_span")


def has_provider(api: str, getter: str) -> bool:
    """Whether this process has set a provider of an *api*. Many programs have loaded the API, and no more."""
    # While another thread imports a module, sys.modules has it, but its names may be missing.
    get = getattr(sys.modules.get(api), getter, None)
    return get is not None and not type(get()).__module__.startswith(api)


def may_record() -> bool:
    """Whether this process records traces at all."""
    return has_provider("opentelemetry.trace", "get_tracer_provider")


def is_recording() -> bool:
    """Whether this code belongs to a trace that is recorded."""
    if not _has_context():
        return False
    get_current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    return get_current_span is not None and get_current_span().is_recording()


def _has_context() -> bool:
    """Whether OpenTelemetry knows anything of this code. To ask it costs half of what a look at the span costs."""
    get_current = getattr(sys.modules.get("opentelemetry.context"), "get_current", None)
    return get_current is not None and bool(get_current())


def _tracer() -> Any:
    from opentelemetry import trace

    return trace.get_tracer("celery_durable")


# -- spans of steps and waits ------------------------------------------------------------------------------------------


def span(name: str, task_id: str, execution: int) -> AbstractContextManager[Any]:
    """A span around one execution of a step; *execution* is its number."""
    attributes: dict[str, str | int] = {"celery_durable.task_id": task_id, "celery_durable.execution": execution}
    span: AbstractContextManager[Any] = _tracer().start_as_current_span(name, attributes=attributes)
    return span


def add_wait(what: str, task_id: str, seconds: float) -> None:
    """Add a span of a wait that has lasted for so many seconds, until now."""
    _add_past(f"wait/{what}", {"celery_durable.task_id": task_id}, seconds)


def _add_past(name: str, attributes: Mapping[str, str | int], seconds: float, parent: Any = None) -> None:
    now = time.time_ns()
    past = _tracer().start_span(name, parent, attributes=attributes, start_time=now - int(seconds * 1e9))
    past.end(now)


# -- spans of attempts -------------------------------------------------------------------------------------------------


def begin_attempt(task: str, task_id: str, headers: Mapping[str, Any]) -> AttemptSpan | None:
    """Begin the span of an attempt, and let this thread belong to it. None: it belongs to no trace.

    The parent is the span that this thread is in: that of an instrumentation of Celery, perhaps. If there is none, it
    is the one that the *headers* of the message name.
    """
    from opentelemetry import context, trace

    is_inside = _has_context() and trace.get_current_span().get_span_context().is_valid
    # To look is much cheaper than to begin a span that nobody sees.
    if not (is_inside or may_record() or _name_a_trace(headers)):
        return None
    span = AttemptSpan(task, task_id, context.get_current() if is_inside else _extracted(headers))
    return span if span.is_valid else None


def _name_a_trace(headers: Mapping[str, Any]) -> bool:
    from opentelemetry import propagate

    return not propagate.get_global_textmap().fields.isdisjoint(headers)


class AttemptSpan:
    """The span of an attempt that is under way."""

    def __init__(self, task: str, task_id: str, parent: Any) -> None:
        self._task = task
        self._about: dict[str, str | int] = {"celery_durable.task": task, "celery_durable.task_id": task_id}
        self._begin(parent)

    def _begin(self, parent: Any) -> None:
        from opentelemetry import context, trace

        self._parent = parent
        self._span = _tracer().start_span(f"attempt/{self._task}", parent, attributes=self._about)
        self._thread = threading.get_ident()
        self._token = context.attach(trace.set_span_in_context(self._span, parent)) if self.is_valid else None

    @property
    def is_valid(self) -> bool:
        """Whether there is a trace: one is recorded here, or the sender has one."""
        return bool(self._span.get_span_context().is_valid)

    @property
    def is_root(self) -> bool:
        """Whether a trace begins with this span."""
        from opentelemetry import trace

        return not trace.get_current_span(self._parent).get_span_context().is_valid

    def continue_trace(self, headers: Mapping[str, Any]) -> None:
        """Begin again, in the trace that *headers* name: an earlier attempt was in it."""
        parent = _extracted(headers)
        self.leave()
        self._begin(parent)

    def number(self, number: int) -> None:
        """The number of the attempt is known: its run is open."""
        self._span.set_attribute("celery_durable.attempt", number)

    def add_before(self, what: str, number: int, seconds: float) -> None:
        """Add a span beside this one, about the attempt with this *number*. It has lasted so long, until just now."""
        _add_past(what, {**self._about, "celery_durable.attempt": number}, seconds, self._parent)

    def end(self, how: str, error: BaseException | None) -> None:
        """End it, and say how the attempt has ended."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("celery_durable.end", how)
        if error is not None:
            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self.leave()
        self._span.end()

    def leave(self) -> None:
        """This thread does not belong to it any more. A span that is left and does not end was none: it is not sent."""
        # The context may have been used first in another thread of the body. That one keeps its own context.
        if self._token is not None and self._thread == threading.get_ident():
            from opentelemetry import context

            context.detach(self._token)
        self._token = None


# -- traces in messages ------------------------------------------------------------------------------------------------


def _extracted(headers: Mapping[str, Any]) -> Any:
    from opentelemetry import propagate

    return propagate.extract({name: value for name, value in headers.items() if isinstance(value, str)})


def continue_trace(headers: Mapping[str, Any] | None) -> AbstractContextManager[Any]:
    """A block: the messages that are sent in it belong to the trace in *headers*."""
    if not (headers and is_loaded()):
        return _NOTHING
    return _Attached(headers)


def trace_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers that bring the trace of this code to a message; empty if *headers* have one, or if there is none."""
    if not _has_context():
        return {}
    from opentelemetry import propagate

    own: dict[str, Any] = {}
    propagate.inject(own)
    return own if own.keys().isdisjoint(headers) else {}


def with_trace(headers: Mapping[str, Any]) -> dict[str, Any]:
    """*headers*; if they have no trace, the trace of this code is added, that of Sentry, too."""
    own = trace_headers(headers)
    if "sentry-trace" not in headers:
        own |= sentry.trace_headers()
    return {**own, **headers}


class _Attached:
    def __init__(self, headers: Mapping[str, Any]) -> None:
        self._headers = headers

    def __enter__(self) -> None:
        from opentelemetry import context

        self._token = context.attach(_extracted(self._headers))

    def __exit__(self, *exc_info: object) -> None:
        from opentelemetry import context

        context.detach(self._token)
