"""The span of an attempt in OpenTelemetry: where its trace comes from, what came before it, and how it has ended."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from celery import states

from celery_durable import tracing
from celery_durable.delivery.backend import PAUSED, STALLED, SUSPENDED
from celery_durable.delivery.call import Call
from celery_durable.steps.attempt import Attempt
from celery_durable.tracing import AttemptSpan

from .ends import (
    AskedToRetry,
    Asleep,
    Cancelled,
    Failed,
    Ignored,
    JournalUnavailable,
    LeftToAutoretry,
    NotBegun,
    Paused,
    ProcessEnds,
    Requeued,
    Reraised,
    Retried,
    RetrySent,
    Stalled,
    Succeeded,
    TakenOver,
    ValueUntilRetry,
)
from .invocation import Invocation, Mode

HOW: dict[type, str] = {
    Succeeded: states.SUCCESS,
    ValueUntilRetry: states.RETRY,
    Failed: states.FAILURE,
    Cancelled: states.REVOKED,
    Retried: states.RETRY,
    Asleep: SUSPENDED,
    Paused: PAUSED,
    Stalled: STALLED,
    AskedToRetry: states.RETRY,
    RetrySent: states.RETRY,
    Ignored: states.IGNORED,
    Requeued: states.RETRY,
    LeftToAutoretry: "AUTORETRY",
    TakenOver: "FENCED",
    JournalUnavailable: states.RETRY,
    ProcessEnds: "RELEASED",
    Reraised: "RAISED",
}
"""How an attempt has ended, in a word. (With :class:`NotBegun` there was none.)"""
_FAILURES = (Failed, Paused, Retried, RetrySent, LeftToAutoretry, JournalUnavailable, Reraised)


def begin(invocation: Invocation) -> None:
    """Begin the span before the run is opened: the journal keeps the trace for later attempts."""
    if invocation.mode is not Mode.DIRECT and tracing.is_loaded():
        request = invocation.request
        # Sentry's sender adds headers inside the header "headers". Celery then shows only those as headers.
        headers = {**vars(request), **(request.headers or {})}
        invocation.span = tracing.begin_attempt(invocation.task.name, request.id, headers)


def opened(span: AttemptSpan, attempt: Attempt) -> None:
    """The run is open. Go on with the trace of earlier attempts, and show how the run came from there to here."""
    state = attempt.state
    if state.call and span.is_root:
        with suppress(Exception):  # the call cannot be read here: the attempt itself says what comes of that
            call = Call.load(state.call, attempt.settings.accept)
            span.continue_trace(call.options.get("headers") or {})
    span.number(state.number)
    before = state.before
    if before is not None:
        since = before.began if before.left is None else before.left
        what = f"lost/{attempt.info.task}" if state.follows_a_lost_one else f"wait/{before.how}"
        span.add_before(what, state.number - 1, (state.opened_at - since) / 1000)


def end(span: AttemptSpan, invocation: Invocation) -> None:
    """End it as the attempt has ended. If no attempt has begun, there was none."""
    how = invocation.end
    if invocation.attempt is None or isinstance(how, NotBegun):
        span.leave()
    elif how is None:
        span.end("UNRECORDED", None)
    else:
        span.end(HOW[type(how)], _error_of(how))


def _error_of(how: Any) -> BaseException | None:
    if isinstance(how, AskedToRetry):
        error = getattr(how.raised, "exc", None)
        return error if isinstance(error, BaseException) else None
    return how.error if isinstance(how, _FAILURES) else None
