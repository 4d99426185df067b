"""The end of a step: what its action has returned is recorded. It counts when Redis has it."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from celery_durable import happenings
from celery_durable.drivers.driver import LARGE, Driver, off_loop
from celery_durable.happenings import Happening
from celery_durable.interrupts import Interrupt
from celery_durable.journal.entries import done_entry
from celery_durable.journal.layout import State
from celery_durable.records import StepRecord
from celery_durable.values.codec import seems_large

from .step import Step

logger = logging.getLogger("celery_durable")


async def record(step: Step, value: Any, began: float, driver: Driver) -> Any:
    """Record what the action has returned. Returns the value as a replay will give it."""
    attempt, pulse = step.attempt, step.pulse
    if step.violation is not None or pulse.violation is not None:
        step.check_violation()
    limit: BaseException | None = None
    try:
        if driver.on_loop and seems_large(value, LARGE):
            encoded = await off_loop(partial(step.encode, value))
        else:
            encoded = step.encode(value)
    except pulse.info.limits as met:  # what the action did is recorded first
        limit, encoded = met, step.encode(value)
    pulse.progressed_at = pulse.heard_at = ended = time.monotonic()
    ms = int((ended - began) * 1000)
    at = attempt.at(ended)
    entry = done_entry(step.name, step.executions, at, ms, encoded.metadata, encoded.text)
    send(step, entry, driver)
    shown: StepRecord | None = None
    if Happening.STEP_SUCCEEDED in happenings.observers:
        try:
            shown = step.shown(State.DONE, at, ms=ms, value=encoded)  # while Redis writes the entry
        except BaseException as met:
            limit = limit or met
    late = await acknowledged(step, driver)
    logger.info("task %s: step %r recorded (%d ms)", pulse.info.task_id, step.name, ms)
    if shown is not None:
        step.tell(Happening.STEP_SUCCEEDED, shown)
    limit = late if limit is None else limit
    if limit is not None:
        raise limit
    if pulse.closed and pulse.interrupt is not None:
        raise pulse.interrupt
    return encoded.value


def send(step: Step, entry: str, driver: Driver) -> None:
    """Send the final entry, unless it is so large that :func:`acknowledged` lets a thread do so."""
    step.attempt.outbox.record(step.position, entry, driver.most_at_once)


async def acknowledged(step: Step, driver: Driver) -> BaseException | None:
    """Wait until Redis has the entry that was sent. That comes before a time limit, which is returned."""
    try:
        await driver.flush()
    except Interrupt:
        logger.error("%s ran but could not be recorded; it will run again", step.where)
        raise
    except BaseException as met:
        await driver.flush()
        return met
    return None
