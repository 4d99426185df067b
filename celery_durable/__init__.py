"""Durable execution for Celery: what a task's steps return is journaled in Redis, and a retry goes on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .commands import cancel
from .config.retry import RetryPolicy, RunOptions
from .exceptions import (
    ConfigurationError,
    ContextClosedError,
    ContextInStepError,
    DurableError,
    DurableTimeoutError,
    EntryNotRecordableError,
    InvalidStepError,
    JournalMismatchError,
    JournalUnavailableError,
    JournalUnreadableError,
    NoContextError,
    RecoveryLimitExceeded,
    RetriesExhausted,
    RetryableError,
    RunNotCancellableError,
    RunNotRetryableError,
    TaskCancelled,
    TerminalError,
)
from .task.base import DurableTask
from .task.decorator import durable_task
from .worker import startup as _startup  # noqa: F401  what workers check when they start

if TYPE_CHECKING:
    from .steps.context import AsyncDurableContext, DurableContext, current_step

__all__ = [
    "AsyncDurableContext",
    "ConfigurationError",
    "ContextClosedError",
    "ContextInStepError",
    "DurableContext",
    "DurableError",
    "DurableTask",
    "DurableTimeoutError",
    "EntryNotRecordableError",
    "InvalidStepError",
    "JournalMismatchError",
    "JournalUnavailableError",
    "JournalUnreadableError",
    "NoContextError",
    "RecoveryLimitExceeded",
    "RetriesExhausted",
    "RetryPolicy",
    "RetryableError",
    "RunNotCancellableError",
    "RunNotRetryableError",
    "RunOptions",
    "TaskCancelled",
    "TerminalError",
    "cancel",
    "current_step",
    "durable_task",
]


def __getattr__(name: str) -> Any:
    """What only a body uses is loaded when it is first named: a process that only sends tasks does without it."""
    if name not in ("AsyncDurableContext", "DurableContext", "current_step"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .steps import context

    value = globals()[name] = getattr(context, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
