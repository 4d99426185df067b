"""Every error a user of the library can meet; imports only :mod:`durations`.

    DurableError
    ├── TerminalError            raised by user code: do not retry
    │   ├── RetriesExhausted     a step's retry options are spent
    │   └── TaskCancelled        somebody cancelled the run
    ├── RetryableError           raised by user code: retry, perhaps after a given time
    ├── DurableTimeoutError      a step, or an attempt, took too long; retried like any other failure
    ├── ConfigurationError       an option or a setting is wrong
    │   └── NoContextError       the context was asked for where no task runs
    ├── InvalidStepError         a step was called in a way that can never work
    ├── ContextInStepError       the context was used inside a step
    ├── ContextClosedError       the context was used outside its attempt
    ├── JournalMismatchError     the code no longer does what the journal recorded
    ├── EntryNotRecordableError  a value that the journal cannot keep
    ├── JournalUnreadableError   a journal that this version cannot read
    ├── JournalUnavailableError  Redis did not answer in time
    ├── RunNotRetryableError     Retry was asked for a run that did not fail
    ├── RunNotCancellableError   cancel was asked for a run that is not alive
    └── RecoveryLimitExceeded    attempt after attempt died without progress

Each rebuilds from its ``args``, so that it survives Celery's JSON result serializer.
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
    "RunNotRetryableError",
    "TaskCancelled",
    "TerminalError",
]


def as_text(value: Any, show: Callable[[Any], str] = str) -> str:
    """*value* as the message of an error, whatever user code does there."""
    if isinstance(value, str):
        return str.__str__(value)  # of a subclass, an enum say, the bare text: that is what JSON keeps
    try:
        return show(value)
    except Exception:
        return f"<a {type(value).__qualname__} whose message cannot be read>"


class DurableError(Exception):
    """Base of all errors of this library."""


class TerminalError(DurableError):
    """A failure that no retry can mend; mirrors Restate's ``TerminalError``.

    Raised by a step it is journaled, raised at the call and replayed from then on. Raised by the body of a task it
    ends the run: state FAILURE, no retry, and ``.get()`` of the caller raises it with code and metadata.

    Args:
        message: what went wrong, or the exception that tells.
        status_code: an HTTP-like code for the caller. Default 500.
        metadata: further facts for the caller; must be JSON.

    ``error_type`` names the class of the original error where it was not a ``TerminalError`` itself.
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
    """The retry options of a step are spent; raised from ``ctx.run`` and replayed from then on.

    Attributes:
        attempts: executions of the step that were started.
        elapsed: time from the first execution to the last failure.
        last_error_type, last_error_message, last_error_traceback: the last failure, as text.

    ``status_code`` is that of a last ``RetryableError``, else 500.
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

    Raised once, by the first operation of the context that is not yet recorded; it is an entry of the journal, so that
    compensations replay. The run ends as REVOKED if it leaves the body, as SUCCESS if the body catches it and returns.
    """

    def __init__(
        self,
        message: str | BaseException = "the run was cancelled",
        status_code: int = 409,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, status_code, metadata)


class RetryableError(DurableError):
    """A failure to be retried, with a word on when; mirrors Restate's ``RetryableError``.

    Args:
        message: what went wrong.
        status_code: an HTTP-like code, kept when the retries are spent. Default 500.
        retry_after: ``timedelta`` or seconds; wins over the computed delay. Default: the step's own backoff.
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
    """An execution of a step ran longer than ``RunOptions(timeout=...)``, or an attempt made no progress for
    ``inactivity_timeout`` and ``abort_timeout``. A failure like any other: the retry options decide what follows.
    """


class ConfigurationError(DurableError, ValueError, TypeError):
    """A setting, an option of the decorator, or a field of RunOptions or RetryPolicy is wrong.

    The message suggests the right one. It is a ``ValueError`` and a ``TypeError``, too: code that catches the built-in
    kinds for a bad argument catches it.
    """


class NoContextError(ConfigurationError, AttributeError):
    """``task.ctx`` was asked for where the task does not run.

    To what looks at all attributes of a task (``mock.create_autospec``, ``inspect.getmembers``) it is one that is not
    there.
    """


class InvalidStepError(DurableError, TypeError):
    """A step was called in a way that can never work (name, action or arguments); ends the run, not retried."""


class ContextInStepError(DurableError):
    """The context was used inside a step, where ``current_step()`` is all there is; ends the run, not retried."""


class ContextClosedError(DurableError):
    """The context was used outside the attempt that it belongs to."""


class JournalMismatchError(DurableError):
    """The code took another path than the journal recorded; ends the run, and the journal is left as it is."""


class EntryNotRecordableError(DurableError):
    """A value cannot be kept in the journal (its type, or its size); ends the run, not retried."""


class JournalUnreadableError(DurableError):
    """A journal is of a newer layout, or an entry of it is damaged; nothing of it is changed."""


class JournalUnavailableError(DurableError):
    """Redis did not take or give the journal within a bounded time; the attempt ends and Celery retries it."""


class RunNotRetryableError(DurableError):
    """``celery_durable.retry`` was asked for a run that did not end in FAILURE."""


class RunNotCancellableError(DurableError):
    """``celery_durable.cancel`` was asked for a run that has not begun, or that has ended."""


class RecoveryLimitExceeded(DurableError):
    """Attempts died one after the other without recording anything new; the run is parked, its journal kept."""
