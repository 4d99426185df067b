"""The rules that let each attempt take the path that the journal has recorded, and the refusal of what breaks one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any

from celery_durable import django
from celery_durable.drivers.pulse import Pulse, running_step
from celery_durable.drivers.siblings import InFlight
from celery_durable.exceptions import ContextClosedError, ContextInStepError, InvalidStepError
from celery_durable.interrupts import EndRun
from celery_durable.journal.entries import Entry
from celery_durable.journal.layout import State
from celery_durable.journal.positions import in_order

logger = logging.getLogger("celery_durable")


def same_name(recorded: Entry, name: str) -> bool:
    """An operation has the name that is recorded at its position."""
    return recorded.name == name


def same_kind(recorded: Entry, kind: str) -> bool:
    """An operation is of the kind that is recorded at its position: a step, or a sleep."""
    return recorded.kind == kind and recorded.state in State.KNOWN


def nothing_left_over(positions: Iterable[str]) -> str | None:
    """The body reaches all that is recorded. Returns the first position that it has not reached.

    Raises:
        JournalUnreadableError: one of them is not a position.
    """
    return min(positions, key=in_order, default=None)


def every_step_awaited(in_flight: InFlight) -> str | None:
    """The body awaits each operation that it calls. Returns the name of one that has not begun for that reason."""
    return in_flight.never_awaited()


def no_context_in_a_step(pulse: Pulse, inside: Any) -> None:
    """The context is used between steps only: inside a step it would take the positions of other operations.

    *inside*: the step whose action this code belongs to. It is None in a thread that the action has started.
    """
    if inside is None and not (pulse.running and threading.get_ident() != pulse.home):
        return
    used_in = pulse if inside is None else inside.pulse
    name = "another thread" if inside is None else f"step {inside.name!r}"
    error = ContextInStepError(
        f"task {used_in.info.task_id}: the context was used inside {name}; inside a step use its arguments "
        f"and current_step(), and call the context before or after it"
    )
    used_in.interrupt = violation = EndRun(error)
    if inside is None:
        pulse.violation = violation
    else:
        inside.violation = violation
    raise error


def check_usable(pulse: Pulse, *, draws: bool = False) -> None:
    """Refuse a verb after the attempt, after an interrupt was swallowed, and inside a step.

    *draws*: the verb only draws a value. It may do so while the attempt, which is about to end, lets its steps finish.
    """
    inside = running_step.get()
    if inside is None and pulse.interrupt is None and not (pulse.running or pulse.closed):
        return
    if pulse.closed:
        raise ContextClosedError(
            f"task {pulse.info.task_id}: the context was used after its attempt had ended; "
            f"use it in the body of the task only"
        )
    if pulse.interrupt is not None and not (draws and pulse.is_ending):
        raise pulse.interrupt
    no_context_in_a_step(pulse, inside)


def check_not_atomic(pulse: Pulse, verb: str, name: str, entry: Entry | None) -> None:
    """Refuse to record inside a transaction: a retry rolls it back, and what is recorded is not executed again."""
    alias = django.entered_since(pulse.info.atomic_blocks)
    if alias is None:
        return
    text = (
        f"task {pulse.info.task_id}: {verb} {name!r} was called inside of transaction.atomic() on the database "
        f"connection {alias!r}: a retry or a sleep rolls the transaction back, and its steps are not executed "
        f"again; open the transaction inside the step"
    )
    if not pulse.settings.allow_atomic:
        raise pulse.end_run(InvalidStepError(f"{text} (durable_allow_atomic=True makes this a warning)"))
    if entry is None:  # if there is an entry, an earlier attempt has logged it
        logger.warning("%s", text)
