"""A durable wait: recorded with the time at which it is over, and kept by the journal alone."""

from __future__ import annotations

import time
from datetime import timedelta

from celery_durable.config.checks import seconds
from celery_durable.drivers.driver import Driver
from celery_durable.durations import Duration
from celery_durable.exceptions import ConfigurationError, InvalidStepError
from celery_durable.interrupts import Interrupt, Sleep
from celery_durable.journal.entries import open_entry
from celery_durable.journal.layout import Kind, State

from .attempt import Attempt
from .cancellation import cancel

LONGEST = timedelta(days=3653)
"""About ten years: what is longer is a mistake in units."""


class Wait:
    """A wait of one attempt."""

    __slots__ = ("_attempt", "_duration", "_entry", "_name", "_position")

    def __init__(self, attempt: Attempt, duration: Duration, name: str | None) -> None:
        attempt.check_usable()
        self._attempt = attempt
        self._name = "sleep" if name is None else name
        self._duration = self._checked(duration)
        self._position, self._entry = attempt.claim(self._name, Kind.SLEEP)
        attempt.check_not_atomic("wait", self._name, self._entry)

    async def perform(self, driver: Driver) -> None:
        """Return when the time has come; else suspend the run until then."""
        attempt, entry = self._attempt, self._entry
        if entry is not None and entry.settled:
            raise attempt.recorded_failure(self._position, entry)
        until = attempt.now() + round(self._duration * 1000) if entry is None else entry.until
        assert until is not None  # noqa: S101
        left = (until - attempt.now()) / 1000
        if attempt.cancel_requested and (entry is None or left > 0):
            await cancel(attempt, self._position, driver, self._name, kind=Kind.SLEEP, until=until)
        if entry is None:
            attempt.note(self._position, open_entry(self._name, State.SLEEPING, 0, Kind.SLEEP, until=until))
        if left <= 0 or attempt.about.eager:
            return
        if attempt.about.direct or left <= attempt.terms.inline_retry_limit:
            attempt.tell()
            await driver.settle(attempt)
            attempt.progressed_at = time.monotonic() + left
            await driver.pause(left)
        else:
            await driver.park(attempt, Sleep(self._name, until), left)

    def _checked(self, duration: Duration) -> float:
        try:
            wait = seconds("the duration of ctx.sleep", duration)
        except ConfigurationError as error:
            raise self._invalid(str(error)) from None
        if wait > LONGEST.total_seconds():
            raise self._invalid(f"the duration of ctx.sleep must be 10 years or less, got {duration!r}")
        if not isinstance(self._name, str):
            raise self._invalid(f"the name of ctx.sleep must be a string, got {self._name!r}")
        return wait

    def _invalid(self, message: str) -> Interrupt:
        return self._attempt.end_run(InvalidStepError(f"task {self._attempt.about.task_id}: {message}"))
