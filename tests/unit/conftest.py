"""What unit tests share: a run on the journal in memory, attempt after attempt, and an app without servers."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet, ref

import pytest
from celery import Celery, _state, signals
from celery.contrib.testing.app import setup_default_app
from celery.utils.dispatch import Signal
from hypothesis import settings

from celery_durable import AsyncDurableContext, DurableContext
from celery_durable.config.settings import AttemptSettings, Settings
from celery_durable.drivers.info import TaskInfo
from celery_durable.journal.memory import MemoryJournal
from celery_durable.journal.port import Delivery, Opened
from celery_durable.steps.attempt import Attempt

# A commit is judged by the same examples every time, and not by how busy the machine is.
settings.register_profile("unit", deadline=None, derandomize=True)
settings.load_profile("unit")


@pytest.fixture(autouse=True, scope="module")
def workers_of_smoke_tests_hear_nothing() -> Iterator[None]:
    """Disconnect the receivers of the apps that smoke tests start workers of: to collect a test imports its app."""
    every = [one for one in vars(signals).values() if isinstance(one, Signal)]
    connected = [one.receivers for one in every]
    for one in every:
        one.receivers = [(key, receiver) for key, receiver in one.receivers if not _is_of_smoke(receiver)]
        one.sender_receivers_cache.clear()
    yield
    for one, receivers in zip(every, connected, strict=True):
        one.receivers = receivers
        one.sender_receivers_cache.clear()


def _is_of_smoke(receiver: Any) -> bool:
    function = receiver() if isinstance(receiver, ref) else receiver
    return getattr(function, "__module__", "").startswith("tests.smoke.")


async def turns(number: int) -> None:
    """Let everything else on the loop have so many turns."""
    for _ in range(number):
        await asyncio.sleep(0)


class Run:
    """One run, whose attempts begin one after the other on the same journal."""

    def __init__(self, task_id: str = "task-1", request: Any = None) -> None:
        self.task_id = task_id
        self.request = request or {"id": task_id}
        self.journal = MemoryJournal()
        self._last: Attempt | None = None

    def attempt(self, *, later: float = 0.0, **terms: Any) -> DurableContext:
        """End the last attempt, if there is one, and begin the next, *later* seconds from now."""
        return DurableContext(self._begin(later, terms))

    def async_attempt(self, *, later: float = 0.0, **terms: Any) -> AsyncDurableContext:
        """The same for an `async def` task."""
        return AsyncDurableContext(self._begin(later, terms))

    def end(self) -> None:
        """The attempt gives the run back: what it has not sent yet is written."""
        if self._last is not None:
            self.journal.suspend(0.0, self._last.outbox.drain_staged())
            self._last.pulse.closed = True
            self._last = None

    def die(self) -> None:
        """The process of the attempt dies: what it has not sent is lost."""
        self._last = None

    @property
    def last(self) -> Attempt:
        """The attempt under way."""
        assert self._last is not None
        return self._last

    def reach_the_end(self) -> None:
        """The body returns, and the journal is compared with what it did."""
        self.last.replay.check_nothing_left()

    def entry(self, field: str) -> Any:
        """A field of the journal, as it reads."""
        return json.loads(self.journal.fields[field.encode()])

    def names(self, kind: str = "step") -> list[str]:
        """The fields of a kind."""
        return sorted(name.decode() for name in self.journal.fields if name.startswith(kind.encode() + b":"))

    def _begin(self, later: float, terms: dict[str, Any]) -> Attempt:
        self.end()
        opened = self.journal.open(Delivery(self.task_id, "shop.checkout", "", "{}"))
        assert isinstance(opened, Opened)
        about = TaskInfo(self.task_id, "shop.checkout", request=self.request)
        opened = opened._replace(now=opened.now + int(later * 1000))
        self._last = attempt = Attempt(
            self.journal, opened, about, AttemptSettings.of(Settings(), **{"build": "", **terms})
        )
        return attempt


class Action:
    """An action that counts its executions, and ends each as it is told: it raises an exception, or returns a value."""

    def __init__(self, *endings: Any) -> None:
        self._endings = endings
        self.executions = 0

    def __call__(self) -> Any:
        ending = self._endings[min(self.executions, len(self._endings) - 1)]
        self.executions += 1
        if isinstance(ending, BaseException):
            raise ending
        return ending


VERBS: dict[str, Callable[[DurableContext], Any]] = {
    "uuid": lambda ctx: ctx.uuid(),
    "time": lambda ctx: ctx.time(),
    "now": lambda ctx: ctx.now(),
    "random": lambda ctx: ctx.random().random(),
    "attributes": lambda ctx: ctx.set_attributes(order="o1"),
    "named random": lambda ctx: ctx.random("stream").getrandbits(64),
    "step": lambda ctx: ctx.run("step", random.random),
}
"""One use of each verb that `def` tasks have, except for sleeping."""


@pytest.fixture
def run() -> Run:
    """A run that has not begun."""
    return Run()


@pytest.fixture
def app() -> Iterator[Celery]:
    """The current app, without broker, backend and Redis; tasks that the test makes are forgotten with it."""
    app = Celery("unit", broker="memory://", backend="cache+memory://", set_as_current=False)
    with setup_default_app(app, use_trap=False):
        _state._apps = WeakSet([app])  # noqa: SLF001  shared tasks go to every app; Celery's helper brings the others back
        app.set_current()
        app.set_default()  # of the threads in which actions of async tasks run
        yield app


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Two seconds of CPU for what might go on for ever."""

    def stop(*_: object) -> None:
        raise AssertionError("it did not end")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2.0)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
    signal.signal(signal.SIGVTALRM, before)
