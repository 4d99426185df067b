"""What observers are told of a run by its attempt: that this begins, and how it leaves the run.

They are told when the journal has it. Nobody calls these functions if there is no observer.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from celery_durable import happenings
from celery_durable.delivery.backend import STATE_OF_HEADING
from celery_durable.exceptions import RecoveryLimitExceeded
from celery_durable.happenings import Happening
from celery_durable.interrupts import EndRun
from celery_durable.journal.layout import Status, Wait
from celery_durable.records import error_line, moment
from celery_durable.steps.attempt import Attempt

_ENDS = {
    Status.SUCCEEDED: Happening.RUN_SUCCEEDED,
    Status.FAILED: Happening.RUN_FAILED,
    Status.REVOKED: Happening.RUN_CANCELLED,
}
_WAITS_FOR = {
    Wait.RETRY: "its next attempt",
    Wait.SLEEP: "the end of a sleep",
    Wait.STALL: "code that fits",
    Wait.PAUSE: "somebody to retry it or to cancel it, as no retry is left",
}


def begun(attempt: Attempt) -> None:
    """The attempt has begun."""
    if not attempt.info.is_local:
        happening = Happening.RUN_STARTED if attempt.state.number == 1 else Happening.RUN_RESUMED
        happenings.tell(happening, attempt.shown_run, limits=attempt.info.limits)  # its body has not run yet


def suspended(attempt: Attempt, waits: str, delay: float) -> None:
    """The run waits, as its journal says: for what (a word of :class:`Wait`), and for so many seconds."""
    happening = Happening.RUN_STALLED if waits == Wait.STALL else Happening.RUN_SUSPENDED
    until = None if waits == Wait.PAUSE else moment(attempt.now() + delay * 1000)
    _tell(attempt, happening, waits, waits_for=_WAITS_FOR.get(waits, waits), until=until)


def ended(attempt: Attempt, status: str, outcome: str | None) -> None:
    """The run has this *outcome*, as the journal keeps it."""
    facts: dict[str, Any] = {"ended": moment(attempt.now())}
    if outcome is not None and status != Status.SUCCEEDED:
        facts["error"] = error_line(json.loads(outcome).get("error"))
    if _is_parked(attempt):
        _tell(attempt, Happening.RUN_PARKED, status, **facts)
    if status in _ENDS:
        _tell(attempt, _ENDS[status], status, **facts)


def fenced(attempt: Attempt) -> None:
    """The attempt is over, because another one has the run, or because the run has ended elsewhere."""
    if not attempt.info.is_local:
        happenings.tell(Happening.ATTEMPT_FENCED, attempt.shown_run)


def _is_parked(attempt: Attempt) -> bool:
    by = attempt.pulse.interrupt
    return isinstance(by, EndRun) and isinstance(by.error, RecoveryLimitExceeded)


def _tell(attempt: Attempt, happening: str, heading: str, **facts: Any) -> None:
    """Tell how the attempt has left the run: under this *heading*, with these *facts*."""
    if not attempt.info.is_local:
        state, run = STATE_OF_HEADING.get(heading, heading), attempt.shown_run
        left = replace(run.attempts[0], ended=moment(attempt.now()), how=state)
        happenings.tell(happening, replace(run, state=state, attempts=(left,), **facts))
