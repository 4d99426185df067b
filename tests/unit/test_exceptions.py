"""Every error rebuilds from its ``args``: through pickle, and through Celery's JSON result serializer."""

from __future__ import annotations

import json
import pickle
from datetime import timedelta
from enum import Enum
from typing import Any

import pytest
from celery import Celery

import celery_durable
from celery_durable import (
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


class CardDeclined(TerminalError):
    """A user's own."""


EXHAUSTED = RetriesExhausted(
    "step 'pay' failed 3 times", 503, None, 3, timedelta(seconds=2.5), "OSError", "no route", "Traceback ..."
)
ERRORS = [
    TerminalError("no such order", 404, {"order": 5}),
    CardDeclined("declined", 402, {"reason": ["funds"]}),
    EXHAUSTED,
    RetryableError("busy", 503, retry_after=timedelta(seconds=5)),
    *[
        kind("what happened, where, and what to do")
        for kind in (
            ConfigurationError,
            ContextClosedError,
            ContextInStepError,
            DurableTimeoutError,
            EntryNotRecordableError,
            InvalidStepError,
            JournalMismatchError,
            JournalUnavailableError,
            JournalUnreadableError,
            NoContextError,
            RecoveryLimitExceeded,
            RunNotCancellableError,
            RunNotFound,
            RunNotImportableError,
            RunNotPurgeableError,
            RunNotRestartableError,
            RunNotRetryableError,
            RunNotWakeableError,
            TaskCancelled,
        )
    ],
]
every_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


def facts(error: BaseException) -> dict[str, Any]:
    """All that an error carries."""
    return {"args": error.args, "text": str(error), **vars(error)}


def test_every_exported_error_is_tested_here_and_is_a_durable_error() -> None:
    exported = {getattr(celery_durable, name) for name in celery_durable.__all__}
    errors = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, BaseException)}
    assert errors == {*map(type, ERRORS), DurableError} - {CardDeclined}
    assert all(issubclass(kind, DurableError) for kind in errors)


@every_error
def test_an_error_rebuilds_from_its_args(error: DurableError) -> None:
    rebuilt = type(error)(*error.args)
    assert facts(rebuilt) == facts(error)


@every_error
def test_an_error_survives_pickle(error: DurableError) -> None:
    unpickled = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(unpickled) is type(error)
    assert facts(unpickled) == facts(error)


@every_error
def test_an_error_survives_celerys_json_results(app: Celery, error: DurableError) -> None:
    stored = json.loads(json.dumps(app.backend.prepare_exception(error, serializer="json")))
    received = app.backend.exception_to_python(stored)
    assert type(received) is type(error)
    assert facts(received) == facts(error)


def test_a_terminal_error_has_the_documented_args() -> None:
    error = TerminalError("no such order", 404, {"order": 5})
    assert error.args == ("no such order", 404, {"order": 5})
    assert (error.message, error.status_code, error.metadata) == error.args
    assert str(error) == "no such order"
    assert error.error_type is None


def test_a_terminal_error_has_the_documented_defaults() -> None:
    assert TerminalError("no").args == ("no", 500, None)


def test_a_terminal_error_made_of_an_exception_says_what_that_was() -> None:
    cause = ValueError("negative amount")
    error = TerminalError(cause, 400)
    assert error.args == ("negative amount", 400, None)
    assert error.error_type == "ValueError"
    assert error.__cause__ is cause
    assert str(TerminalError(ValueError())) == "ValueError()"


class Reason(str, Enum):
    FUNDS = "no funds"


@pytest.mark.parametrize("kind", [TerminalError, RetryableError, CardDeclined, TaskCancelled, RetriesExhausted])
@pytest.mark.parametrize(
    ("message", "text"), [(None, "None"), (42, "42"), (Reason.FUNDS, "no funds"), ("no", "no"), ("", "")], ids=repr
)
def test_a_message_is_text_whatever_it_is_made_of(kind: Any, message: Any, text: str) -> None:
    error = kind(message)
    assert str(error) == error.message == error.args[0] == text
    assert type(error.message) is type(error.args[0]) is str
    assert facts(kind(*error.args)) == facts(error)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


class Blank(Exception):
    def __str__(self) -> str:
        return ""

    def __repr__(self) -> str:
        raise RuntimeError("no form")


@pytest.mark.parametrize("kind", [Unspeakable, Blank], ids=lambda kind: kind.__name__)
def test_a_terminal_error_is_made_of_an_exception_whose_message_cannot_be_read(kind: type[Exception]) -> None:
    error = TerminalError(kind())
    assert str(error) == error.args[0] == f"<a {kind.__name__} whose message cannot be read>"
    assert error.error_type == kind.__name__


def test_a_retryable_error_may_be_made_of_an_exception() -> None:
    assert RetryableError(OSError("gone")).args == ("gone", 500, None)  # type: ignore[arg-type]


def test_spent_retries_carry_the_last_failure() -> None:
    assert isinstance(EXHAUSTED, TerminalError)
    assert EXHAUSTED.attempts == 3
    assert EXHAUSTED.elapsed == timedelta(seconds=2.5)
    assert EXHAUSTED.last_error_type == EXHAUSTED.error_type == "OSError"
    assert EXHAUSTED.last_error_message == "no route"
    assert EXHAUSTED.last_error_traceback == "Traceback ..."
    assert EXHAUSTED.status_code == 503


@pytest.mark.parametrize("after", [5, 5.0, timedelta(seconds=5)], ids=repr)
def test_retry_after_is_seconds_or_a_timedelta(after: Any) -> None:
    assert RetryableError("busy", retry_after=after).retry_after == 5.0


@pytest.mark.parametrize("after", [-1, timedelta(seconds=-1), float("nan"), float("inf"), "5", True], ids=repr)
def test_a_wrong_retry_after_is_refused(after: Any) -> None:
    with pytest.raises(ConfigurationError, match="retry_after"):
        RetryableError("busy", retry_after=after)


def test_a_configuration_error_is_caught_as_the_builtin_kinds_for_bad_arguments() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(ConfigurationError, TypeError)
