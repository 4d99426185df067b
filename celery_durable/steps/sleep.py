"""A durable wait. Its entry says when it is over, and only the journal keeps it."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, NamedTuple

from celery_durable import tracing
from celery_durable.config.checks import seconds
from celery_durable.drivers.driver import Driver
from celery_durable.drivers.pulse import Pulse
from celery_durable.durations import Duration
from celery_durable.exceptions import ConfigurationError
from celery_durable.interrupts import Sleep
from celery_durable.journal.entries import Entry, open_entry
from celery_durable.journal.layout import Kind, State

from .attempt import Attempt
from .determinism import check_not_atomic, check_usable
from .failures import cancel

LONGEST = timedelta(days=3653)
"""About ten years. A longer wait is a mistake in units."""


class Wait(NamedTuple):
    """A wait of one attempt."""

    attempt: Attempt
    name: str
    duration: float
    position: str
    entry: Entry | None


def make_wait(attempt: Attempt, duration: Duration, name: str | None) -> Wait:
    """The wait that ``ctx.sleep`` is called for, with the next position in program order."""
    check_usable(attempt.pulse)
    name = "sleep" if name is None else name
    wait = _checked(attempt.pulse, duration, name)
    position, entry = attempt.replay.take_position(name, Kind.SLEEP)
    if entry is not None:
        attempt.replay.not_replayed += 1
    check_not_atomic(attempt.pulse, "wait", name, entry)
    return Wait(attempt, name, wait, position, entry)


def _checked(pulse: Pulse, duration: Duration, name: str) -> float:
    try:
        wait = seconds("the duration of ctx.sleep", duration)
    except ConfigurationError as error:
        raise pulse.invalid(error) from None
    if wait > LONGEST.total_seconds():
        raise pulse.invalid(f"the duration of ctx.sleep must be 10 years or less, got {duration!r}")
    if not isinstance(name, str):
        raise pulse.invalid(f"the name of ctx.sleep must be a string, got {name!r}")
    return wait


async def sleep(wait: Wait, driver: Driver) -> None:
    """Return when the time has come. If that is far away, suspend the run until then."""
    attempt, name, duration, position, entry = wait
    pulse, outbox = attempt.pulse, attempt.outbox
    if entry is not None and entry.settled:
        raise attempt.replay.recorded_failure(position, entry)
    until = attempt.now() + round(duration * 1000) if entry is None else entry.until
    assert until is not None  # noqa: S101
    left = (until - attempt.now()) / 1000
    if pulse.cancel_requested and (entry is None or left > 0):
        # A cancellation is all that may take the place of a sleeping entry: it says what that one says.
        kept: dict[str, Any] = {"patches": entry.patches} if entry is not None and entry.patches else {}
        await cancel(attempt, position, driver, name, kind=Kind.SLEEP, until=until, **kept)
    if entry is None:
        outbox.stage(position, open_entry(name, State.SLEEPING, 0, Kind.SLEEP, until=until))
    if left <= 0 or attempt.info.eager:
        return
    if attempt.info.direct or left <= attempt.settings.inline_retry_limit:
        outbox.send_staged()
        await driver.flush()
        pulse.progressed_at = time.monotonic() + left
        await driver.pause(left)
    else:
        await driver.park(Sleep(name, until), left)
    if tracing.is_recording():
        tracing.add_wait(Kind.SLEEP, attempt.info.task_id, left)
