"""Durable execution for Celery: what a task's steps return is journaled in Redis, and a retry goes on from there."""

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
from .steps.context import AsyncDurableContext, DurableContext, current_step
from .task.base import DurableTask
from .task.decorator import durable_task
from .worker import startup as _startup  # noqa: F401  what workers check when they start

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
