"""Durable execution for Celery: what a task's steps return is journaled in Redis, and a retry goes on from there."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    RunNotFound,
    RunNotImportableError,
    RunNotPurgeableError,
    RunNotRestartableError,
    RunNotRetryableError,
    RunNotWakeableError,
    TaskCancelled,
    TerminalError,
)
from .operate import tasks as _tasks  # noqa: F401  registers celery_durable.retry and the others with every app
from .operate.verbs.cancelling import cancel
from .task.base import DurableTask
from .task.decorator import durable_task
from .worker import startup as _startup  # noqa: F401  what workers check when they start

if TYPE_CHECKING:
    from .operate.runs import Runs
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
    "RunNotFound",
    "RunNotImportableError",
    "RunNotPurgeableError",
    "RunNotRestartableError",
    "RunNotRetryableError",
    "RunNotWakeableError",
    "RunOptions",
    "Runs",
    "TaskCancelled",
    "TerminalError",
    "cancel",
    "current_step",
    "durable_task",
]


_LATE = {
    "AsyncDurableContext": "steps.context",
    "DurableContext": "steps.context",
    "Runs": "operate.runs",
    "current_step": "steps.context",
}
"""What a process that only sends tasks does without; the module of each."""


def __getattr__(name: str) -> Any:
    """It is loaded when it is first named."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_LATE[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
