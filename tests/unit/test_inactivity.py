"""The silence of an attempt is a line of the log, an event where somebody listens, and told to observers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.app.task import Context

from celery_durable import DurableTask, happenings
from celery_durable.ending import inactivity, orphan
from celery_durable.steps.context import DurableContext
from tests.unit.conftest import Run


def nothing() -> None:
    """The body of a task."""


class Events:
    """Stands for the dispatcher of the app."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    @contextmanager
    def default_dispatcher(self, hostname: str | None) -> Any:
        yield self

    def send(self, kind: str, **facts: Any) -> None:
        self.sent.append((kind, facts))


@pytest.fixture
def events(app: Celery) -> Events:
    app.events = events = Events()  # type: ignore[assignment]
    return events


def report(app: Celery, ctx: DurableContext, *, listened_to: bool = False) -> None:
    app.conf.worker_send_task_events = listened_to
    task = app.task(base=DurableTask, name="inactivity.task")(nothing)
    attempt = ctx._attempt  # noqa: SLF001
    inactivity.report(task, attempt.info, inactivity.silent_parts(attempt), 61.2, "worker@shop")


def test_the_log_names_the_step(app: Celery, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    ctx = run.attempt()
    ctx.run("charge", lambda: report(app, ctx))
    report(app, ctx)
    found = [record.getMessage() for record in caplog.records if "no progress" in record.getMessage()]
    assert [text.partition(" has ")[0] for text in found] == [
        "task task-1: step 'charge'",
        "task task-1: the code between its steps",
    ]
    assert "61.2 s" in found[0]


def test_the_log_names_what_was_silent_though_it_ends_before_it_is_told(
    app: Celery, run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread tells it, and on a busy machine that comes late."""
    ctx, late = run.attempt(), list[Callable[[], None]]()
    monkeypatch.setattr(orphan, "_in_thread", lambda work, _id, *args: late.append(partial(work, *args)))
    task = app.task(base=DurableTask, name="inactivity.task")(nothing)
    invocation: Any = Mock(attempt=ctx._attempt, task=task)  # noqa: SLF001
    ctx.run("charge", orphan.OrphanedAttempt(invocation, Mock()).inactive, 61.2)

    late[0]()

    assert "step 'charge' has made no progress for 61.2 s" in caplog.text


def test_an_event_is_sent_where_task_events_are(app: Celery, run: Run, events: Events) -> None:
    ctx = run.attempt()
    report(app, ctx)
    assert events.sent == []
    report(app, ctx, listened_to=True)
    facts = {"uuid": "task-1", "name": "shop.checkout", "steps": [], "seconds": 61.2}
    assert events.sent == [("durable-inactive", facts)]


def test_observers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphan, "_in_thread", Mock())
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(happenings, "observers", {})
    happenings.observe(lambda happening, run, _step: told.append((happening, run.task)))
    invocation: Any = Mock(attempt=Run(request=Context()).attempt()._attempt)  # noqa: SLF001

    orphan.OrphanedAttempt(invocation, Mock()).inactive(61.2)

    assert told == [("attempt_inactive", "shop.checkout")]
