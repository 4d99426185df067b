"""All errors that a user of the library can meet. This module imports only :mod:`durations`.

    DurableError
    ├── TerminalError            user code raises it: do not retry
    │   ├── RetriesExhausted     a step failed, and its retry options allow no further try
    │   └── TaskCancelled        somebody cancelled the run
    ├── RetryableError           user code raises it: retry, perhaps after a given time
    ├── DurableTimeoutError      a step or an attempt took too long; retried like any other failure
    ├── ConfigurationError       an option or a setting is wrong
    │   └── NoContextError       code asked for the context where no task runs
    ├── InvalidStepError         a step was called in a way that can never work
    ├── ContextInStepError       the context was used inside a step
    ├── ContextClosedError       the context was used outside its attempt
    ├── JournalMismatchError     the code no longer does what the journal recorded
    ├── EntryNotRecordableError  a value that the journal cannot keep
    ├── JournalUnreadableError   a journal that this version cannot read
    ├── JournalUnavailableError  Redis did not answer in time
    ├── RunNotFound              there is no journal of this run
    ├── RunNotRetryableError     somebody retried a run that did not fail, and is not paused
    ├── RunNotRestartableError   somebody restarted a run that is alive, or from a step that it does not have
    ├── RunNotCancellableError   somebody cancelled a run that is not alive
    ├── RunNotWakeableError      somebody woke a run that does not wait
    ├── RunNotPurgeableError     somebody purged a run that has not ended
    ├── RunNotImportableError    somebody imported what is no export of a run that has ended
    └── RecoveryLimitExceeded    attempt after attempt died without progress

Each error can be made again from its ``args``. So it passes through Celery's JSON result serializer unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from .durations import in_seconds

__all__ = [
    "ConfigurationError",
    "ContextClosedError",
    "ContextInStepError",
    "DurableError",
    "DurableTimeoutError",
    "EntryNotRecordableError",
    "InvalidStepError",
    "JournalMismatchError",
    "JournalUnavailableError",
    "JournalUnreadableError",
    "NoContextError",
    "RecoveryLimitExceeded",
    "RetriesExhausted",
    "RetryableError",
    "RunNotCancellableError",
    "RunNotFound",
    "RunNotImportableError",
    "RunNotPurgeableError",
    "RunNotRestartableError",
    "RunNotRetryableError",
    "RunNotWakeableError",
    "TaskCancelled",
    "TerminalError",
]


def as_text(value: Any, show: Callable[[Any], str] = str) -> str:
    """*value* as the message of an error. If code of the user fails there, a text says so."""
    if isinstance(value, str):
        return str.__str__(value)  # JSON keeps only the plain text of a subclass, such as an enum
    try:
        return show(value)
    except Exception:
        return f"<a {type(value).__qualname__} whose message cannot be read>"


class DurableError(Exception):
    """Base of all errors of this library."""


class TerminalError(DurableError):
    """A failure that no retry can repair; mirrors Restate's ``TerminalError``.

    If a step raises it, the journal keeps it: ``ctx.run`` raises it at once, and again in each replay. If the body of a
    task raises it, the run ends: its state is FAILURE, there is no retry, and ``.get()`` raises it at the caller with
    its code and metadata.

    Args:
        message: what went wrong (text), or the exception that says it. Default: an empty text.
        status_code: a code for the caller, like those of HTTP. Default 500.
        metadata: further facts for the caller, a dict that JSON can keep. Default None.

    Attributes:
        error_type: the class name of the original error, if that was not a ``TerminalError`` itself; else None.
    """

    def __init__(
        self,
        message: str | BaseException = "",
        status_code: int = 500,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.error_type: str | None = None
        self.message = as_text(message)
        if isinstance(message, BaseException):
            self.error_type = type(message).__qualname__
            self.__cause__ = message
            self.message = self.message or as_text(message, repr)
        self.status_code = status_code
        self.metadata = metadata
        super().__init__(self.message, status_code, metadata)

    def __str__(self) -> str:
        return self.message


class RetriesExhausted(TerminalError):
    """A step failed, and its retry options allow no further try. ``ctx.run`` raises it, and again in each replay.

    Attributes:
        attempts: how many executions of the step were started.
        elapsed: the time from the first execution to the last failure (``timedelta``).
        last_error_type, last_error_message, last_error_traceback: the last failure, as text.
        status_code: the code of the last failure, if that was a ``RetryableError``; else 500.
    """

    def __init__(
        self,
        message: str = "",
        status_code: int = 500,
        metadata: dict[str, Any] | None = None,
        attempts: int = 0,
        elapsed: timedelta | float = 0.0,
        last_error_type: str = "",
        last_error_message: str = "",
        last_error_traceback: str = "",
    ) -> None:
        super().__init__(message, status_code, metadata)
        self.attempts = attempts
        self.elapsed = elapsed if isinstance(elapsed, timedelta) else timedelta(seconds=elapsed)
        self.last_error_type = last_error_type
        self.last_error_message = last_error_message
        self.last_error_traceback = last_error_traceback
        self.error_type = last_error_type
        # Seconds, not a timedelta: ``args`` must pass through JSON.
        self.args = (
            *self.args,
            attempts,
            self.elapsed.total_seconds(),
            last_error_type,
            last_error_message,
            last_error_traceback,
        )


class TaskCancelled(TerminalError):
    """Somebody cancelled the run, with :func:`celery_durable.cancel`; mirrors Restate's cancellation (code 409).

    The first operation of the context that is not recorded yet raises it, once. It is an entry of the journal, so that
    compensations replay. If it leaves the body, the run ends as REVOKED. If the body catches it and returns, the run
    ends as SUCCESS.
    """

    def __init__(
        self,
        message: str | BaseException = "the run was cancelled",
        status_code: int = 409,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, status_code, metadata)


class RetryableError(DurableError):
    """A failure that is retried, perhaps after a given time; mirrors Restate's ``RetryableError``.

    Args:
        message: what went wrong (text). Default: an empty text.
        status_code: a code like those of HTTP; ``RetriesExhausted`` takes it over. Default 500.
        retry_after: how long to wait before the next try (``timedelta`` or seconds, 0 or more). It replaces the delay
            that the retry options give. Default None: that delay.

    Raises:
        ConfigurationError: *retry_after* is no such duration.
    """

    def __init__(self, message: str = "", status_code: int = 500, retry_after: timedelta | float | None = None) -> None:
        if retry_after is not None:
            try:
                retry_after = in_seconds("retry_after", retry_after)
            except ValueError as error:
                raise ConfigurationError(str(error)) from None
        self.message = as_text(message)
        super().__init__(self.message, status_code, retry_after)
        self.status_code = status_code
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class DurableTimeoutError(DurableError, TimeoutError):
    """A step ran longer than ``RunOptions(timeout=...)``, or an attempt made no progress for too long.

    Too long is ``inactivity_timeout`` plus ``abort_timeout``. It is a failure like any other: the retry options decide
    what follows.
    """


class ConfigurationError(DurableError, ValueError, TypeError):
    """A setting, an option of the decorator, or a field of RunOptions or RetryPolicy is wrong.

    The message suggests the right one. The error is a ``ValueError`` and a ``TypeError`` as well, so that code which
    catches Python's own errors for a wrong argument catches it.
    """


class NoContextError(ConfigurationError, AttributeError):
    """Code asked for ``task.ctx`` where the task does not run.

    It is an ``AttributeError`` as well: code that looks at all attributes of a task (``mock.create_autospec``,
    ``inspect.getmembers``) goes on, as if the task had no such attribute.
    """


class InvalidStepError(DurableError, TypeError):
    """The context was called in a way that can never work: a step, a wait, a branch, attributes. The run ends."""


class ContextInStepError(DurableError):
    """The context was used inside a step, where only ``current_step()`` may be used. The run ends without a retry."""


class ContextClosedError(DurableError):
    """The context was used outside the attempt that it belongs to."""


class JournalMismatchError(DurableError):
    """The code took another path than the journal has recorded. The run ends, and the journal stays as it is."""


class EntryNotRecordableError(DurableError):
    """The journal cannot keep a value, because of its type or its size. The run ends without a retry."""


class JournalUnreadableError(DurableError):
    """A newer version has written the journal, or an entry is damaged. The journal stays as it is."""


class JournalUnavailableError(DurableError):
    """Redis did not read or write the journal in time. The attempt ends, and Celery retries it."""


class RunNotFound(DurableError, LookupError):
    """There is no journal of this run: it has not begun, is not durable, or its journal has expired or was purged."""


class RunNotWakeableError(DurableError):
    """The run does not wait for a time: it is running or paused, has ended, or has no journal."""


class RunNotPurgeableError(DurableError):
    """The run has not ended, its outcome is not delivered, or it has no journal."""


class RunNotRetryableError(DurableError):
    """The run is neither FAILURE nor PAUSED, nor a SUCCESS whose outcome was not delivered; or it has no journal."""


class RunNotRestartableError(DurableError):
    """The run is alive or has no journal, or it cannot be restarted from this step."""


class RunNotImportableError(DurableError):
    """The document is no export of a run that has ended, or its id has a journal already."""


class RunNotCancellableError(DurableError):
    """The run has not begun, or has ended."""


class RecoveryLimitExceeded(DurableError):
    """Attempt after attempt died without recording anything new. The run is parked, and its journal is kept."""
