"""The watchdog: one thread checks the attempts of this process, reports inactive ones, and ends what takes too long.

It sleeps until something may be due. Steps and heartbeats only note the time of their progress, and do not wake it.
"""

from __future__ import annotations

import logging
import os
import time
from math import inf
from typing import Protocol

from celery_durable.exceptions import DurableTimeoutError
from celery_durable.rounds import Rounds

from .interruption import Target
from .pulse import Overrun, Pulse, Running
from .threads import actions

logger = logging.getLogger("celery_durable")

_LONGEST_SLEEP = 5.0
_BETWEEN_INTERRUPTIONS = 0.1
GRACE = 5.0
"""Seconds for interrupted code to end; after that the run goes on without it."""


class Owner(Protocol):
    """The owner of an attempt. The thread of the watchdog calls it, and must not be held up."""

    def inactive(self, seconds: float) -> None:
        """The attempt has made no progress for so long."""
        ...

    def go_on_without(self, overrun: Overrun) -> None:
        """The code of the attempt has run too long, and cannot be interrupted."""
        ...


class Watch:
    """What is checked of one attempt."""

    def __init__(
        self,
        pulse: Pulse,
        owner: Owner,
        target: Target | None,
        inactivity_timeout: float = inf,
        abort_timeout: float = inf,
    ) -> None:
        self.pulse = pulse
        self._owner = owner
        self._target = target
        self._inactivity = inactivity_timeout
        self._abort = inactivity_timeout + abort_timeout
        self.first_due = pulse.progressed_at + inactivity_timeout
        self._reported = -inf
        self._interruption: _Interruption | None = None

    def _due(self) -> float:
        """When to check next, by the monotonic clock."""
        since = self.pulse.progressed_at
        inactivity = since + (self._abort if self._reported == since else self._inactivity)
        return min([inactivity, *(step.deadline for step in tuple(self.pulse.running))])

    def check(self, now: float) -> float:
        """Do what is due. Returns when to check again."""
        since = self.pulse.progressed_at
        if self.pulse.closed:
            return inf
        if self._interruption is None and self._sleeps:
            return now + self._inactivity
        if now - since >= self._inactivity and self._reported != since:
            self._reported = since
            self._owner.inactive(now - since)
        if self._interruption is None or not self._interruption.stands():
            self._interruption = self._needed(now)
        return self._due() if self._interruption is None else self._end(self._interruption, now)

    @property
    def _sleeps(self) -> bool:
        """Whether a sleep is held up by what goes on beside it. That may last as long as the sleep."""
        return self.pulse.is_ending and not self.pulse.running

    def _needed(self, now: float) -> _Interruption | None:
        pulse = self.pulse
        running = tuple(pulse.running)
        for step in running:
            if now >= step.deadline:
                return _Interruption(Overrun(pulse, timed_out(step), step), now)
        since = pulse.progressed_at
        # An attempt that waits for a thread is not aborted: the delay is not its own.
        if now - since >= self._abort and (running or not actions.waiting(pulse)):
            error = DurableTimeoutError(f"no progress for {self._abort:g} s (inactivity_timeout and abort_timeout)")
            return _Interruption(Overrun(pulse, error, running[0] if running else None), now, since)
        return None

    def _end(self, interruption: _Interruption, now: float) -> float:
        if interruption.given_up:
            return inf
        if self._target is None or now - interruption.began >= GRACE:
            interruption.given_up = True
            self._owner.go_on_without(interruption.overrun)
            return inf
        if interruption.arrived:
            return interruption.began + GRACE
        self._target.send(interruption)
        return now + _BETWEEN_INTERRUPTIONS


class _Interruption:
    """It ends the execution of a step, or the body between its steps; once, even if it is sent many times."""

    def __init__(self, overrun: Overrun, began: float, inactive_since: float | None = None) -> None:
        self.overrun = overrun
        self.began = began
        self.arrived = False
        self.given_up = False
        self._execution = overrun.step.executions if overrun.step is not None else 0
        self._inactive_since = inactive_since

    def stands(self) -> bool:
        """Whether the code still runs, and runs too long."""
        pulse, step = self.overrun.pulse, self.overrun.step
        if pulse.closed or self._inactive_since not in (None, pulse.progressed_at):
            return False
        if step is None:
            return not pulse.running
        return step in pulse.running and step.executions == self._execution

    def arrives(self) -> bool:
        if self.arrived or not self.stands():
            return False
        self.arrived = True
        if self.overrun.step is None:
            # If the code swallows it, the next use of the context raises it again.
            self.overrun.pulse.stop(self.overrun)
        return True


def timed_out(step: Running) -> DurableTimeoutError:
    return DurableTimeoutError(f"no result within {step.options.longest_execution:g} s (RunOptions.timeout)")


class Watchdog:
    """It checks the attempts of this process."""

    def __init__(self) -> None:
        self._watches: dict[Pulse, Watch] = {}
        self._rounds = Rounds("celery-durable-progress", self._check_all)

    def start_over(self) -> None:
        """Begin with no attempts. A forked child does so: the attempts are its parent's."""
        self._watches = {}
        self._rounds.start_over()

    def watch(self, watch: Watch) -> None:
        """Check an attempt until :meth:`forget`."""
        self._watches[watch.pulse] = watch
        self.schedule(watch.first_due)

    def forget(self, pulse: Pulse) -> None:
        self._watches.pop(pulse, None)

    def schedule(self, when: float) -> None:
        """Something may be due at this monotonic time."""
        if when != inf:
            self._rounds.expect(when)

    def _check_all(self) -> float:
        now = time.monotonic()
        return min([now + _LONGEST_SLEEP, *(self._check(watch, now) for watch in list(self._watches.values()))])

    def _check(self, watch: Watch, now: float) -> float:
        try:
            when = watch.check(now)
        except Exception:
            logger.exception("task %s: its progress cannot be watched any more", watch.pulse.info.task_id)
            when = inf
            self.forget(watch.pulse)
        return when


watchdog = Watchdog()
os.register_at_fork(after_in_child=watchdog.start_over)
