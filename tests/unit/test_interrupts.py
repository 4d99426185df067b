"""Which of two interrupts ends an attempt: each pair that may meet."""

from __future__ import annotations

import pytest

from celery_durable.exceptions import DurableError
from celery_durable.interrupts import (
    EndRun,
    FailAttempt,
    Fenced,
    Interrupt,
    JournalLost,
    RetryStep,
    Sleep,
    Stall,
    prevailing,
)

ERROR = ValueError("no")
early, late = Sleep("early", 1), Sleep("late", 2)
retry, fail, over = RetryStep("step", ERROR, 5.0), FailAttempt("step", ERROR), EndRun(ERROR)
lost, fenced, stall = JournalLost(DurableError("away")), Fenced(), Stall(ERROR, {})


@pytest.mark.parametrize(
    ("held", "new", "ends"),
    [
        (early, late, early),
        (late, early, early),
        (early, retry, retry),
        (early, fail, fail),
        (early, over, over),
        (retry, over, over),
        (fail, over, over),
        (fail, early, fail),
        (retry, early, retry),
        (retry, fail, retry),
        (over, retry, over),
        (over, early, over),
        (over, EndRun(ERROR), over),
        (stall, over, stall),
        (early, lost, lost),
        (over, lost, lost),
        (stall, fenced, fenced),
        (lost, fenced, fenced),
        (fenced, lost, fenced),
        (fenced, over, fenced),
        (lost, over, lost),
    ],
    ids=lambda interrupt: type(interrupt).__name__,
)
def test_the_interrupt_that_ends_the_attempt(held: Interrupt, new: Interrupt, ends: Interrupt) -> None:
    assert prevailing(held, new) is ends


def test_of_two_failed_steps_the_next_attempt_waits_for_the_later_one() -> None:
    first, second = RetryStep("first", ERROR, 5.0), RetryStep("second", ERROR, 60.0)
    assert prevailing(first, second) is first
    assert first.delay == 60.0
    assert prevailing(first, RetryStep("third", ERROR, 1.0)).delay == 60.0  # type: ignore[attr-defined]
