"""Sentry, where the process has it loaded: what its integration of Celery cannot know of a durable run."""

from __future__ import annotations

import sys
import time
from typing import Any


def _sdk() -> Any:
    """The SDK, if it is at work."""
    sdk: Any = sys.modules.get("sentry_sdk")
    return sdk if sdk is not None and hasattr(sdk, "get_client") and sdk.get_client().is_active() else None


def end_well() -> None:
    """The attempt ends as it should; by an exception of Celery's, though, which Sentry takes for an abort."""
    if (sdk := _sdk()) is not None and (span := sdk.get_current_scope().span) is not None:
        span.set_status("ok")


def end_check_in(request: Any) -> None:
    """A cancelled run of a task that beat has sent has ended; else Crons would wait for it."""
    headers = request.headers or {}
    headers = {**headers, **(headers.get("headers") or {})}
    if (sdk := _sdk()) is not None and "sentry-monitor-slug" in headers:
        began = headers.get("sentry-monitor-start-timestamp-s")
        sdk.crons.capture_checkin(
            monitor_slug=headers["sentry-monitor-slug"],
            monitor_config=headers.get("sentry-monitor-config"),
            check_in_id=headers.get("sentry-monitor-check-in-id"),
            duration=time.time() - float(began) if began else None,
            status="error",
        )


def readable(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers of a message whose trace is to go on: of these Sentry reads what stands within ``headers`` alone."""
    return {**headers, "headers": headers} if "sentry-trace" in headers else headers


def trace_headers() -> dict[str, str]:
    """By which a message goes on with the trace that the code which runs belongs to."""
    if (sdk := _sdk()) is None:
        return {}
    headers = {"sentry-trace": sdk.get_traceparent(), "baggage": sdk.get_baggage()}
    return {name: value for name, value in headers.items() if value}
