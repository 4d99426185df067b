"""How an attempt ends, row by row: decided from facts alone, without Celery and Redis."""

import re
from asyncio import CancelledError
from pathlib import Path
from typing import Any

import pytest

from celery_durable import (
    DurableTimeoutError,
    JournalMismatchError,
    JournalUnavailableError,
    RetriesExhausted,
    RetryableError,
    TaskCancelled,
    TerminalError,
)
from celery_durable.drivers.pulse import Overrun
from celery_durable.interrupts import EndRun, FailAttempt, Fenced, JournalLost, NotNow, RetryStep, Sleep, Stall
from celery_durable.invocation import ends
from celery_durable.invocation.ends import (
    AskedToRetry,
    Asleep,
    Cancelled,
    EndedBy,
    Facts,
    Failed,
    Ignored,
    JournalUnavailable,
    LeftToAutoretry,
    NotBegun,
    Paused,
    PolicyAnswer,
    ProcessEnds,
    Requeued,
    Reraised,
    Retried,
    RetrySent,
    Stalled,
    Succeeded,
    TakenOver,
    ValueUntilRetry,
    decide,
    decide_success,
)
from celery_durable.journal.port import Outdated

ERROR = ValueError("no")
REFUSED = TerminalError("no")
CANCELLED = TaskCancelled("the run was cancelled")
MISMATCH = JournalMismatchError("another path")
AWAY = JournalUnavailableError("away")
LATE = DurableTimeoutError("too long")
SLEEP = Sleep("patience", 5)
STALL = Stall(MISMATCH, {})
FENCED = Fenced()
SAID = Exception("what user code raised of Celery's")
VERDICT = Outdated("older")
AGAIN = PolicyAnswer(3.0, 1, 5, {"failures": "1"})
NO_MORE = PolicyAnswer(None, 5, 5, {})
ASKS = PolicyAnswer(None, 5, 5, {}, pauses=True)


def again(_error: BaseException) -> PolicyAnswer:
    return AGAIN


def no_more(_error: BaseException) -> PolicyAnswer:
    return NO_MORE


def asks(_error: BaseException) -> PolicyAnswer:
    return ASKS


def overrun() -> Overrun:
    attempt: Any = None
    return Overrun(attempt, LATE)


ROWS: list[tuple[str, Facts, ends.End]] = [
    # -- an interrupt of the attempt
    ("a message that begins none", Facts(NotNow(VERDICT)), NotBegun(VERDICT)),
    ("a step asks for a retry", Facts(RetryStep("s", ERROR, 2.0)), Retried(ERROR, 2.0)),
    ("a sleep", Facts(SLEEP), Asleep(SLEEP)),
    ("code that does not fit", Facts(STALL, stall_left=4.0), Stalled(STALL, 4.0)),
    ("code that did not fit for too long", Facts(STALL, stall_left=0.0), Failed(MISMATCH)),
    ("a step without retry options failed", Facts(FailAttempt("s", ERROR)), Failed(ERROR)),
    ("the same under a policy", Facts(FailAttempt("s", ERROR), policy=again), Retried(ERROR, 3.0, AGAIN)),
    ("it took too long", Facts(overrun(), policy=again), Retried(LATE, 3.0, AGAIN)),
    ("it took too long, in plain Celery", Facts(overrun()), Failed(LATE)),
    ("the run cannot go on", Facts(EndRun(REFUSED), policy=again), Failed(REFUSED)),
    ("the journal is away", Facts(JournalLost(AWAY)), JournalUnavailable(AWAY)),
    ("another attempt has the run", Facts(FENCED), TakenOver(FENCED)),
    # -- what user code said in Celery's words
    ("self.retry()", Facts(SAID, EndedBy.RETRY), AskedToRetry(SAID)),
    ("Ignore", Facts(SAID, EndedBy.IGNORE), Ignored(SAID)),
    ("Reject", Facts(SAID, EndedBy.REJECT), Failed(SAID)),
    ("Reject(requeue=True)", Facts(SAID, EndedBy.REQUEUE), Requeued(SAID)),
    ("the worker ends the process", Facts(SAID, EndedBy.SHUTDOWN), ProcessEnds(SAID, orderly=True)),
    ("the task ends the process", Facts(SAID, EndedBy.EXIT), ProcessEnds(SAID, orderly=False)),
    ("the same, called as a function", Facts(SAID, EndedBy.EXIT, is_direct=True), ProcessEnds(SAID, orderly=False)),
    ("Ignore, called as a function", Facts(SAID, EndedBy.IGNORE, is_direct=True), Reraised(SAID)),
    # -- an exception of the body
    ("plain Celery", Facts(ERROR), Failed(ERROR)),
    ("autoretry_for", Facts(ERROR, is_autoretried=lambda error: error is ERROR), LeftToAutoretry(ERROR)),
    ("after retry(throw=False)", Facts(ERROR, retry_due=7.0), RetrySent(ERROR, 7.0)),
    ("a policy", Facts(ERROR, policy=again), Retried(ERROR, 3.0, AGAIN)),
    ("a policy that is spent", Facts(ERROR, policy=no_more), Failed(ERROR, NO_MORE)),
    ("a policy that is spent, and pauses", Facts(ERROR, policy=asks), Paused(ERROR, ASKS)),
    ("the same after a step", Facts(FailAttempt("s", ERROR), policy=asks), Paused(ERROR, ASKS)),
    ("the same after a time limit of a step", Facts(LATE, policy=asks), Paused(LATE, ASKS)),
    ("the same in an eager run", Facts(ERROR, is_eager=True, policy=asks), Failed(ERROR, ASKS)),
    ("the same, called as a function", Facts(ERROR, is_direct=True, policy=asks), Reraised(ERROR)),
    ("a terminal error under such a policy", Facts(REFUSED, policy=asks), Failed(REFUSED)),
    ("self.retry() that is spent under it", Facts(ERROR, exhausted=ERROR, policy=asks), Failed(ERROR)),
    ("a cancellation under it", Facts(CANCELLED, policy=asks), Cancelled(CANCELLED)),
    ("self.retry() that is spent, under a policy", Facts(ERROR, exhausted=ERROR, policy=again), Failed(ERROR)),
    ("a terminal error", Facts(REFUSED, policy=again, is_autoretried=lambda _: True), Failed(REFUSED)),
    ("a retryable error", Facts(later := RetryableError("later"), policy=again), Retried(later, 3.0, AGAIN)),
    ("a time limit of a step", Facts(LATE, policy=again), Retried(LATE, 3.0, AGAIN)),
    ("spent retries of a step", Facts(spent := RetriesExhausted("spent"), policy=again), Failed(spent)),
    ("a cancellation", Facts(CANCELLED, policy=again), Cancelled(CANCELLED)),
    ("a cancellation that eager code raised", Facts(CANCELLED, is_eager=True), Failed(CANCELLED)),
    ("called as a function", Facts(ERROR, is_direct=True, policy=again), Reraised(ERROR)),
    ("terminal, called as a function", Facts(EndRun(REFUSED), is_direct=True), Reraised(REFUSED)),
    # -- before the run was open, or the function entered
    ("no run is open", Facts(ERROR, is_open=False), Reraised(ERROR)),
    ("arguments that do not fit", Facts(ERROR, has_entered=False, policy=again), Failed(ERROR)),
    (
        "a time limit before the function was entered",
        Facts(ERROR, has_entered=False, hit_by_time_limit=True, policy=again),
        Retried(ERROR, 3.0, AGAIN),
    ),
    (
        "arguments that do not fit, of a run that another build has begun",
        Facts(ERROR, has_entered=False, policy=again, refuse_arguments=lambda _: STALL, stall_left=4.0),
        Stalled(STALL, 4.0),
    ),
    # -- steps that the code did not reach
    ("a terminal error amid the journal", Facts(REFUSED, left_over=lambda: EndRun(MISMATCH)), Failed(MISMATCH)),
    ("another error amid the journal", Facts(ERROR, left_over=lambda: EndRun(MISMATCH)), Failed(ERROR)),
]


@pytest.mark.parametrize(("facts", "end"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_an_end_follows_from_the_facts(facts: Facts, end: ends.End) -> None:
    decided = decide(facts)

    assert type(decided) is type(end)
    assert decided == end


VALUES: list[tuple[str, float | None, ends.End]] = [
    ("the body has returned", None, Succeeded("value")),
    ("it has returned after retry(throw=False)", 7.0, ValueUntilRetry("value", 7.0)),
]


@pytest.mark.parametrize(("retry_due", "end"), [row[1:] for row in VALUES], ids=[row[0] for row in VALUES])
def test_a_value_is_the_outcome_unless_a_retry_was_sent(retry_due: float | None, end: ends.End) -> None:
    decided = decide_success("value", retry_due)

    assert type(decided) is type(end)
    assert decided == end


def test_each_end_has_a_row() -> None:
    assert {type(end) for _, _, end in [*ROWS, *VALUES]} == set(ends.End.__args__)


def test_an_overrun_of_another_attempt_is_passed_on() -> None:
    late = overrun()

    assert decide(Facts(late, is_its_own=False, policy=again)) == Reraised(late)


def test_a_time_limit_before_the_journal_was_open_is_a_journal_that_is_away() -> None:
    end = decide(Facts(ERROR, is_open=False, is_time_limit=True, hit_by_time_limit=True))

    assert isinstance(end, JournalUnavailable)
    assert "a time limit was reached before the journal was open" in str(end.error)


def test_refused_arguments_are_read_in_another_process() -> None:
    class ValidationError(Exception):
        """As Pydantic's is named, which cannot be pickled."""

    end = decide(Facts(refused := ValidationError("one field"), has_entered=False, policy=again))

    assert isinstance(end, Failed)
    assert (str(end.error), end.error.error_type, end.error.__cause__) == ("one field", "ValidationError", refused)  # type: ignore[attr-defined]


def test_a_cancelled_body_was_struck_by_what_cancelled_it() -> None:
    cancelled, late = CancelledError(), overrun()

    assert ends.reason_of(cancelled, late) is late
    assert ends.reason_of(cancelled, None) is cancelled
    assert ends.reason_of(ERROR, late) is ERROR


def test_the_table_in_the_docs_has_each_end() -> None:
    page = (Path(__file__).parents[2] / "docs" / "design.md").read_text("utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \|", page.partition("## How an attempt ends")[2].partition("\n## ")[0], re.MULTILINE
    )

    assert sorted(rows) == sorted(end.__name__ for end in ends.End.__args__)
