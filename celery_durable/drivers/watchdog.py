"""Progress of this process's attempts: one thread looks at them, reports silence, and ends what takes too long.

It sleeps until something may be due. Steps and heartbeats note the time of their progress and wake nobody.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from math import inf
from typing import TYPE_CHECKING, Protocol

from celery_durable.exceptions import DurableTimeoutError
from celery_durable.interrupts import Overrun

from .interruption import Place
from .threads import actions

if TYPE_CHECKING:
    from celery_durable.steps.attempt import Attempt
    from celery_durable.steps.step import Step

logger = logging.getLogger("celery_durable")

_LONGEST_SLEEP = 5.0
_BETWEEN_STRIKES = 0.1
GRACE = 5.0
"""Seconds for struck code to end; after that the run goes on without it."""


class Owner(Protocol):
    """Who answers for an attempt; asked by the thread that watches, which is not to be held up."""

    def silent(self, seconds: float) -> None:
        """The attempt has made no progress for so long."""
        ...

    def go_on_without(self, overrun: Overrun) -> None:
        """The code of the attempt has run too long, and cannot be interrupted."""
        ...


class Watch:
    """What is looked at in one attempt."""

    def __init__(
        self,
        attempt: Attempt,
        owner: Owner,
        place: Place | None,
        inactivity_timeout: float = inf,
        abort_timeout: float = inf,
    ) -> None:
        self.attempt = attempt
        self._owner = owner
        self._place = place
        self._inactivity = inactivity_timeout
        self._abort = inactivity_timeout + abort_timeout
        self.first_due = attempt.progressed_at + inactivity_timeout
        self._reported = -inf
        self._strike: _Strike | None = None

    def _due(self) -> float:
        """When to look next, by the monotonic clock."""
        since = self.attempt.progressed_at
        silence = since + (self._abort if self._reported == since else self._inactivity)
        return min([silence, *(step.deadline for step in tuple(self.attempt.running))])

    def look(self, now: float) -> float:
        """Do what is due; when to look again."""
        since = self.attempt.progressed_at
        if self.attempt.closed:
            return inf
        if self._strike is None and self._sleeps:
            return now + self._inactivity
        if now - since >= self._inactivity and self._reported != since:
            self._reported = since
            self._owner.silent(now - since)
        if self._strike is None or not self._strike.stands():
            self._strike = self._needed(now)
        return self._due() if self._strike is None else self._end(self._strike, now)

    @property
    def _sleeps(self) -> bool:
        """Whether it keeps its worker for what goes on beside a sleep: that may last as long."""
        return self.attempt.siblings.is_ending and not self.attempt.running

    def _needed(self, now: float) -> _Strike | None:
        attempt = self.attempt
        running = tuple(attempt.running)
        for step in running:
            if now >= step.deadline:
                return _Strike(attempt, step, timed_out(step), now)
        since = attempt.progressed_at
        # To wait for a thread is nobody's fault who waits.
        if now - since >= self._abort and (running or not actions.waiting(attempt)):
            error = DurableTimeoutError(f"no progress for {self._abort:g} s (inactivity_timeout and abort_timeout)")
            return _Strike(attempt, running[0] if running else None, error, now, since)
        return None

    def _end(self, strike: _Strike, now: float) -> float:
        if strike.given_up:
            return inf
        if self._place is None or now - strike.began >= GRACE:
            strike.given_up = True
            self._owner.go_on_without(strike.overrun)
            return inf
        if strike.landed:
            return strike.began + GRACE
        self._place.send(strike)
        return now + _BETWEEN_STRIKES


class _Strike:
    """What ends the execution of a step, or the body between its steps; once, however often it is sent."""

    def __init__(
        self,
        attempt: Attempt,
        step: Step | None,
        error: DurableTimeoutError,
        began: float,
        silent_since: float | None = None,
    ) -> None:
        self.overrun = Overrun(attempt, error, step)
        self.began = began
        self.landed = False
        self.given_up = False
        self._execution = step.executions if step is not None else 0
        self._silent_since = silent_since

    def stands(self) -> bool:
        """Whether it still runs, and too long."""
        attempt, step = self.overrun.attempt, self.overrun.step
        if attempt.closed or self._silent_since not in (None, attempt.progressed_at):
            return False
        if step is None:
            return not attempt.running
        return step in attempt.running and step.executions == self._execution

    def lands(self) -> bool:
        if self.landed or not self.stands():
            return False
        self.landed = True
        if self.overrun.step is None:
            # Swallowed, it is raised again by the next use of the context.
            self.overrun.attempt.stop(self.overrun)
        return True


def timed_out(step: Step) -> DurableTimeoutError:
    return DurableTimeoutError(f"no result within {step.options.longest_execution:g} s (RunOptions.timeout)")


class Watcher:
    """The thread of this process that looks."""

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Also in a forked child: the parent's attempts are not ours, and its thread is not here."""
        self._watches: dict[Attempt, Watch] = {}
        self._thread: threading.Thread | None = None
        self._bell = threading.Event()
        self._sleeps_until = inf

    def watch(self, watch: Watch) -> None:
        """Look at an attempt until :meth:`forget`."""
        self._watches[watch.attempt] = watch
        self.expect(watch.first_due)

    def forget(self, attempt: Attempt) -> None:
        self._watches.pop(attempt, None)

    def expect(self, when: float) -> None:
        """Something may be due at this monotonic time."""
        if when >= self._sleeps_until:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_looking, name="celery-durable-progress", daemon=True)
            self._thread.start()
        self._bell.set()

    def _keep_looking(self) -> None:
        while True:
            self._bell.clear()
            # Whoever expects something from now on rings: it may come too late for this look.
            self._sleeps_until = inf
            now = time.monotonic()
            until = min([now + _LONGEST_SLEEP, *(self._look(watch, now) for watch in list(self._watches.values()))])
            self._sleeps_until = until
            self._bell.wait(max(0.0, until - time.monotonic()))

    def _look(self, watch: Watch, now: float) -> float:
        try:
            when = watch.look(now)
        except Exception:
            logger.exception("task %s: its progress cannot be watched any more", watch.attempt.about.task_id)
            when = inf
            self.forget(watch.attempt)
        return when


watcher = Watcher()
