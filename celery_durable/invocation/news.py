"""What observers are told of a run by its attempt: that this begins, and how it leaves the run.

They are told when the journal has it. Nobody calls these functions if there is no observer.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from celery_durable import happenings
from celery_durable.delivery.backend import WAITS_FOR, state_of
from celery_durable.exceptions import RecoveryLimitExceeded
from celery_durable.happenings import Happening
from celery_durable.interrupts import EndRun
from celery_durable.journal.layout import Status, Wait
from celery_durable.records import moment
from celery_durable.steps.attempt import Attempt

ENDS = {
    Status.SUCCEEDED: Happening.RUN_SUCCEEDED,
    Status.FAILED: Happening.RUN_FAILED,
    Status.REVOKED: Happening.RUN_CANCELLED,
}
"""How a run has ended → what is told."""


def begun(attempt: Attempt) -> None:
    """The attempt has begun."""
    run, state, limits = attempt.shown_run, attempt.state, attempt.info.limits  # its body has not run yet
    if run is not None:
        if state.follows_a_lost_one:
            happenings.tell(Happening.RUN_RECOVERED, run, limits=limits)
        happenings.tell(Happening.RUN_STARTED if state.number == 1 else Happening.RUN_RESUMED, run, limits=limits)


def suspended(attempt: Attempt, waits: str, delay: float, *, by_broker: bool) -> None:
    """The run waits, as its journal says: for what (a word of :class:`Wait`), and for so many seconds.

    *by_broker*: a message of the broker will bring it back.
    """
    told = [Happening.ATTEMPT_ENDED]
    if not by_broker:
        told.append(Happening.RUN_STALLED if waits == Wait.STALL else Happening.RUN_SUSPENDED)
    until = None if waits == Wait.PAUSE else moment(attempt.now() + delay * 1000)
    _tell(attempt, told, waits, waits_for=WAITS_FOR[waits], until=until)


def ended(attempt: Attempt, status: str, outcome: str | None, *, was_over: bool) -> None:
    """The run has this *outcome*, as the journal keeps it.

    *was_over*: the attempt had ended in another way before.
    """
    facts: dict[str, Any] = {"ended": moment(attempt.now())}
    if outcome is not None and status != Status.SUCCEEDED:
        facts["error"] = attempt.redaction.error(json.loads(outcome).get("error"))
    told = [Happening.RUN_PARKED] if _is_parked(attempt) else []
    if status in ENDS:
        told.append(ENDS[status])
    if not was_over:
        told.append(Happening.ATTEMPT_ENDED)
    _tell(attempt, told, status, **facts)


def inactive(attempt: Attempt) -> None:
    """The attempt has made no progress for its ``inactivity_timeout``."""
    if attempt.shown_run is not None:
        happenings.tell(Happening.ATTEMPT_INACTIVE, attempt.shown_run)


def fenced(attempt: Attempt) -> None:
    """The attempt is over, because another one has the run, or because the run has ended elsewhere."""
    if attempt.shown_run is not None:
        happenings.tell(Happening.ATTEMPT_FENCED, attempt.shown_run)


def _is_parked(attempt: Attempt) -> bool:
    by = attempt.pulse.interrupt
    return isinstance(by, EndRun) and isinstance(by.error, RecoveryLimitExceeded)


def _tell(attempt: Attempt, told: list[str], heading: str, **facts: Any) -> None:
    """Tell how the attempt has left the run: under this *heading*, with these *facts*."""
    state, run = state_of(heading), attempt.shown_run
    if run is not None:
        left = replace(
            run.attempts[0], ended=moment(attempt.now()), how=state,
            executed=attempt.state.executed, replayed=attempt.replayed,
        )  # fmt: skip
        run = replace(run, state=state, attempts=(left,), **facts)
        for happening in told:
            happenings.tell(happening, run)
