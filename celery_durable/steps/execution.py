"""The executions of a step in one attempt, until it is recorded or another attempt must go on.

The code is written once, as coroutines. In a sync task they are never suspended: its driver blocks the thread. In an
async task they wait on the event loop.
"""

from __future__ import annotations

import time
from typing import Any

from celery_durable import django, happenings, tracing
from celery_durable.drivers.action import Stale
from celery_durable.drivers.driver import Driver
from celery_durable.drivers.loop import needs_thread
from celery_durable.drivers.pulse import StepWork, running_step
from celery_durable.drivers.threads import Thread
from celery_durable.happenings import Happening
from celery_durable.interrupts import Interrupt
from celery_durable.journal.entries import started_entry
from celery_durable.journal.layout import State
from celery_durable.values.failure import shown

from .determinism import check_not_atomic
from .failures import cancel, count_the_dead, fail, is_failure, meaning
from .record import record
from .step import Step


async def perform(step: Step, driver: Driver) -> Any:
    """Execute the action until its result is recorded. Raises an interrupt if another attempt must go on."""
    pulse = step.pulse
    if django.is_imported():
        check_not_atomic(pulse, "step", step.name, step.entry)
    if step.entry is not None:
        await count_the_dead(step, step.entry, driver)
    step.check_type()
    while True:
        # The thread comes first: between these checks and the action, the step must wait for nothing else.
        thread = await driver.thread_for(step) if driver.on_loop and needs_thread(step) else None
        try:
            if pulse.is_in_doubt:
                await _ask(step, driver)
            if _send_start(step):
                await driver.flush()
        except BaseException:
            if thread is not None:
                thread.leave()
            raise
        pulse.progressed_at = began = time.monotonic()
        try:
            value = await _act(step, driver, thread)
        except Stale:
            pulse.check_goes_on()
            _take_back(step)
        except BaseException as raised:
            # If the action was interrupted, what cleans up after it must not be interrupted for the same reason.
            pulse.progressed_at = time.monotonic()
            if step.work is None or not step.work.is_given_up:
                await _wait_after(step, raised, driver)
            else:
                await _wait_without(step, step.work, raised, driver)
        else:
            return await record(step, value, began, driver)


async def _ask(step: Step, driver: Driver) -> None:
    """Check that an execution may begin. Redis is asked if it was not heard of for too long."""
    attempt, pulse = step.attempt, step.pulse
    pulse.check_goes_on()  # siblings may have ended the attempt
    if pulse.is_out_of_touch:
        await driver.ask(pulse.journal.prove_lease)
        pulse.heard_at = time.monotonic()
    if pulse.cancel_requested:
        await cancel(attempt, step.position, driver, step.name, step.executions)


def _send_start(step: Step) -> bool:
    """Send what must be known if the process dies inside the action. Returns whether to wait until Redis has it."""
    outbox, backoff = step.attempt.outbox, step.options.backoff
    if step.is_untouched:
        step.attempt.state.executed += 1
    step.executions += 1
    if backoff is None or not backoff.limited:
        outbox.send_staged(with_next=True)
        return outbox.keeps_back
    if step.first is None:
        step.first = step.attempt.now()
    outbox.stage(step.position, started_entry(step.name, step.executions, step.first))
    wait = backoff.max_attempts == 1
    outbox.send_staged(with_next=not wait)
    return wait or outbox.keeps_back


def _take_back(step: Step) -> None:
    """This execution has not begun."""
    step.executions -= 1
    if step.is_untouched:
        step.attempt.state.executed -= 1


async def _act(step: Step, driver: Driver, thread: Thread | None) -> Any:
    pulse = step.pulse
    token = running_step.set(step)
    pulse.running.add(step)
    try:
        if step.attempt.may_be_traced and tracing.is_recording():
            with tracing.span(step.name, pulse.info.task_id, step.executions):
                return await driver.call(step, thread)
        return await driver.call(step, thread)
    finally:
        running_step.reset(token)
        try:
            pulse.running.remove(step)
        except KeyError:
            # Another thread lets the run go on without this execution. What that thread records comes first.
            with step.handover:
                pass


async def _wait_after(step: Step, raised: BaseException, driver: Driver) -> None:
    """Wait until the next execution in this attempt. Raises if there is none."""
    error = meaning(step, raised)
    if not is_failure(step, error, driver):
        if error is raised:
            raise raised
        raise error from None
    delay = await fail(step, error, driver)
    if Happening.STEP_RETRIED in happenings.observers:
        step.tell(Happening.STEP_RETRIED, step.shown(State.RETRYING, step.attempt.now(), error=shown(error)))
    # The failure must count, even if Redis goes away during the wait.
    step.attempt.outbox.send_staged()
    await driver.flush()
    step.pulse.progressed_at = time.monotonic() + delay
    await driver.pause(delay)


async def _wait_without(step: Step, work: StepWork, raised: BaseException, driver: Driver) -> None:
    """Do the same for an execution that has failed, but whose action still runs in its thread."""
    try:
        await _wait_after(step, raised, driver)
    except Interrupt:
        # The failure is written first: a value that the action still returns replaces it.
        step.attempt.outbox.send_staged()
        await driver.flush()
        raise
    finally:
        work.decided()
