"""Events of Celery, one for each signal, where the events of tasks are on (``celery worker -E``).

They are called ``durable-run-started``, ``durable-step-succeeded`` and so on, and their ``uuid`` is the id of the task.
Monitors that do not know them, like Flower, ignore them: only an event ``task-...`` changes the state that they show.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from itertools import islice
from math import inf
from typing import Any

from celery import signals

from celery_durable import happenings
from celery_durable.forks import no_fork
from celery_durable.records import Run, StepRecord
from celery_durable.rounds import Rounds
from celery_durable.signals import SIGNALS

logger = logging.getLogger("celery_durable")

_GROUP = "durable"
_MOST = 10_000
"""So many events wait while the broker is away. New ones are dropped then."""
_AT_ONCE = 100
_PAUSE = 1.0
"""Seconds until the next try if the broker is away."""
_LONGEST_FAREWELL = 1.0
"""Seconds for which a process that ends waits until its events are sent."""


class Events:
    """An observer that sends events. Its thread does so: a task does not wait for the broker."""

    def __init__(self, app: Any, hostname: str) -> None:
        self._app = app
        self._hostname = hostname
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._rounds = Rounds("celery-durable-events", self._round)
        self._next_try = -inf
        """When the broker is asked again, by the monotonic clock; ``-inf``: it is not away."""

    def __call__(self, happening: str, run: Run, step: StepRecord | None) -> None:
        task = self._app.tasks.get(run.task)
        if task is not None and task.send_events and len(self._waiting) < _MOST:
            self._waiting.append((f"{_GROUP}-{happening.replace('_', '-')}", _facts(run, step)))
            self._rounds.expect(self._next_try)

    def start_over(self) -> None:
        """Forget what waits. In a forked child, the parent sends it."""
        self._waiting.clear()
        self._next_try = -inf
        self._rounds.start_over()

    def say_farewell(self) -> None:
        """Wait a moment until the thread has sent what waits: the process ends."""
        until = time.monotonic() + _LONGEST_FAREWELL
        while self._waiting and time.monotonic() < until:
            # Again and again: a try that was under way may have failed, and would be followed by a pause.
            self._next_try = -inf
            self._rounds.expect(-inf)
            time.sleep(0.02)

    # -- its thread

    def _round(self) -> float:
        """Send what waits. Returns when to try again, by the monotonic clock."""
        if time.monotonic() < self._next_try:  # an event came while the last try went on
            return self._next_try
        try:
            while self._waiting:
                self._send(list(islice(self._waiting, _AT_ONCE)))
        except Exception as error:
            is_first, self._next_try = self._next_try == -inf, time.monotonic() + _PAUSE
            if is_first:
                logger.warning("events cannot be sent, tried again after %g s: %r", _PAUSE, error)
            return self._next_try
        self._next_try = -inf
        return inf

    def _send(self, some: list[tuple[str, dict[str, Any]]]) -> None:
        # The connection is made inside of no_fork, too: kombu makes a client of Redis under a lock that all channels of
        # the process share. A child that is forked just then would wait for it for ever.
        with no_fork, self._app.events.default_dispatcher(hostname=self._hostname) as dispatcher:
            # They travel in one message. Celery's worker does so with its own events.
            dispatcher.buffer_group, dispatcher.buffer_limit = {_GROUP}, inf
            for kind, facts in some:
                dispatcher.send(kind, **facts)
            dispatcher.flush(errors=False)
        for _ in some:
            self._waiting.popleft()


def _facts(run: Run, step: StepRecord | None) -> dict[str, Any]:
    """What an event says. What is not known is left out."""
    facts: dict[str, Any] = {
        "uuid": run.id, "name": run.task, "state": run.state, "timestamp": time.time(),
        "attempt": run.attempts[-1].number if run.attempts else 0, "error": run.error, "waits_for": run.waits_for,
        "until": run.until and run.until.timestamp(),
    }  # fmt: skip
    if step is not None:
        facts |= {
            "step": step.name, "place": step.place, "executions": step.executions, "ms": step.ms, "error": step.error,
        }  # fmt: skip
    return {name: fact for name, fact in facts.items() if fact not in (None, "")}


_everywhere: dict[Any, Events] = {}


def send_events(app: Any, hostname: str) -> None:
    """Send events of *app* from this process, and from those that it forks. They name the worker *hostname*."""
    if app not in _everywhere:
        _everywhere[app] = Events(app, hostname)
        happenings.observe(_everywhere[app], SIGNALS)


def _start_over() -> None:
    for events in _everywhere.values():
        events.start_over()


os.register_at_fork(after_in_child=_start_over)


@signals.worker_process_shutdown.connect(weak=False, dispatch_uid="celery_durable.events")
@signals.worker_shutdown.connect(weak=False, dispatch_uid="celery_durable.events")
def _say_farewell(**_: Any) -> None:
    for events in _everywhere.values():
        events.say_farewell()
