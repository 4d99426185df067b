"""How Celery reads the events that the library sends: each rule that is relied on fails here when it changes."""

from __future__ import annotations

from typing import Any

import pytest
from celery import states
from celery.events.state import State
from celery.fixups import django

from celery_durable.delivery.announcement import REVOKED_EVENT_FIELDS, started_fields


def state_after(*events: tuple[str, dict[str, Any]]) -> Any:
    """What a monitor knows of a task that was told by these events, one after the other."""
    monitor = State()
    for clock, (kind, fields) in enumerate(events):
        monitor.event(
            {
                "type": f"task-{kind}", "uuid": "1", "hostname": "worker", "clock": clock, "timestamp": clock,
                "local_received": clock, **fields,
            }
        )  # fmt: skip
    return monitor.tasks["1"]


STARTED, SUSPENDED = ("started", {}), ("suspended", {"until": "soon"})


@pytest.mark.parametrize("before", ["sent", "received", "started", "retried"])
def test_an_event_of_an_unknown_kind_is_a_state(before: str) -> None:
    task = state_after((before, {}), SUSPENDED)

    assert (task.state, task.until) == ("SUSPENDED", "soon")


@pytest.mark.parametrize(("before", "state"), [("succeeded", states.SUCCESS), ("failed", states.FAILURE)])
def test_it_does_not_take_the_place_of_an_end(before: str, state: str) -> None:
    assert state_after((before, {}), SUSPENDED).state == state


@pytest.mark.parametrize("end", ["started", "revoked"])
def test_these_take_its_place_only_if_they_say_so(end: str) -> None:
    state = {"started": states.STARTED, "revoked": states.REVOKED}[end]
    fields = {"started": started_fields({}), "revoked": REVOKED_EVENT_FIELDS}[end]

    assert state_after(STARTED, SUSPENDED, (end, {})).state == "SUSPENDED"
    assert state_after(STARTED, SUSPENDED, (end, fields)).state == state


def test_a_run_that_is_reopened_is_failed_no_more() -> None:
    failed = ("failed", {"exception": "KeyError()", "traceback": "..."})
    task = state_after(STARTED, failed, ("started", started_fields({"reopen": "1"})))

    assert (task.state, task.exception, task.traceback, task.failed) == (states.STARTED, None, None, None)


def test_celery_reads_how_often_a_connection_of_django_is_used_from_this_setting() -> None:
    assert "CELERY_DB_REUSE_MAX" in django.DjangoWorkerFixup.__init__.__code__.co_consts  # type: ignore[attr-defined]
