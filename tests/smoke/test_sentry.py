"""What Sentry is told of durable tasks: one event per failure, with the user's own error; attempts that end well."""

import json
from typing import Any

import pytest
from celery.result import AsyncResult

from celery_durable import TaskCancelled, cancel
from tests.smoke import effects
from tests.smoke.apps import sentry
from tests.smoke.nodes import DurableSetup
from tests.smoke.watching import wait_until_suspended
from tests.waiting import eventually

CHECK_IN = "c" * 32


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.sentry"


def told(kind: str) -> list[dict[str, Any]]:
    return [json.loads(hit.key) for hit in effects.hits(kind)]


def transactions(task: Any, number: int) -> list[dict[str, Any]]:
    """Return those of the attempts of a task; each is told when all else about its attempt has been."""

    def found() -> list[dict[str, Any]]:
        return [each for each in told("transaction") if each["transaction"] == task.name]

    eventually(lambda: len(found()) >= number, what=f"{number} transactions")
    assert len(found()) == number
    return found()


def failed(result: AsyncResult) -> None:
    eventually(lambda: result.state == "FAILURE", what="a failure")


def functions(exception: dict[str, Any]) -> list[str]:
    return [frame["function"] for frame in exception["stacktrace"]["frames"]]


@pytest.mark.parametrize(
    ("task", "attempts", "chain", "last"),
    [
        (sentry.spends_its_policy, 2, ["ValueError"], "boom"),
        (sentry.spends_its_policy_async, 2, ["ValueError"], "boom"),
        (sentry.of_the_base_class, 1, ["ValueError"], "boom"),
        (sentry.retried_by_celery, 2, ["ValueError"], "boom"),
        (sentry.exhausts_a_step, 2, ["ValueError", "RetriesExhausted"], None),
        (sentry.unrecordable, 1, ["EntryNotRecordableError"], None),
    ],
)
def test_a_failure_is_one_event_with_the_error_and_the_way_to_it(
    durable: DurableSetup, task: Any, attempts: int, chain: list[str], last: str | None
) -> None:
    durable.start_worker()
    failed(task.delay())
    transactions(task, attempts)

    (event,) = told("event")
    exceptions = event["exception"]["values"]
    assert [each["type"] for each in exceptions] == chain
    way = functions(exceptions[-1])
    # The line of the body, then that of the action; nothing of how we hand it on.
    body = way.index(task.name.rpartition(".")[2])
    assert last is None or way[-1] == last
    assert body < len(way) - 1
    assert not [name for name in way if name.startswith("_settle") or name == "_interrupted"]


def test_a_replayed_failure_shows_where_it_was_raised(durable: DurableSetup) -> None:
    durable.start_worker()
    failed(sentry.fails_later.delay())
    transactions(sentry.fails_later, 2)

    (event,) = told("event")
    recorded, error = event["exception"]["values"]
    assert (recorded["type"], error["type"], error["value"]) == ("RecordedTraceback", "TerminalError", "no such card")
    assert "in refuse\n" in recorded["value"]


def test_attempts_of_a_sleeper_end_well_in_one_trace_though_the_sender_had_none(durable: DurableSetup) -> None:
    durable.start_worker()
    assert sentry.sleeps.delay(0.05).get(timeout=20) == "awake"

    traces = [each["contexts"]["trace"] for each in transactions(sentry.sleeps, 2)]
    assert [trace["status"] for trace in traces] == ["ok", "ok"]
    assert len({trace["trace_id"] for trace in traces}) == 1
    assert traces[0].get("parent_span_id") is None


def test_crons_is_told_of_the_end_of_a_cancelled_run(durable: DurableSetup) -> None:
    durable.start_worker()
    headers = {"sentry-monitor-slug": "nightly", "sentry-monitor-check-in-id": CHECK_IN}
    result = sentry.sleeps.apply_async((3600,), headers=headers)
    wait_until_suspended(durable, result.id)
    cancel(result.id, app=durable.app)

    with pytest.raises(TaskCancelled):
        result.get(timeout=20)
    transactions(sentry.sleeps, 2)
    (check_in,) = told("check_in")
    assert (check_in["monitor_slug"], check_in["check_in_id"], check_in["status"]) == ("nightly", CHECK_IN, "error")
    assert told("event") == []
