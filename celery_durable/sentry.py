"""Sentry, if the process has loaded it: what its Celery integration cannot know about a durable run."""

from __future__ import annotations

import sys
import time
from typing import Any


def _sdk() -> Any:
    """The SDK, if it is active; else None."""
    sdk: Any = sys.modules.get("sentry_sdk")
    return sdk if sdk is not None and hasattr(sdk, "get_client") and sdk.get_client().is_active() else None


def mark_ok() -> None:
    """Mark the attempt as ``ok``. It ends by an exception of Celery's, which Sentry would count as an abort."""
    if (sdk := _sdk()) is not None and (span := sdk.get_current_scope().span) is not None:
        span.set_status("ok")


def end_check_in(request: Any) -> None:
    """Tell Crons that a cancelled run has ended, if beat has sent its task; else Crons would wait for it."""
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


def readable_headers(headers: dict[str, Any]) -> dict[str, Any]:
    """*headers* of a message so that its trace goes on: Sentry reads only those inside the header ``headers``."""
    return {**headers, "headers": headers} if "sentry-trace" in headers else headers


def trace_headers() -> dict[str, str]:
    """The headers that bring the trace of this code to a message; empty if there is none."""
    if (sdk := _sdk()) is None:
        return {}
    headers = {"sentry-trace": sdk.get_traceparent(), "baggage": sdk.get_baggage()}
    return {name: value for name, value in headers.items() if value}
