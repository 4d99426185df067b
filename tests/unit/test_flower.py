"""Runs in Flower: how times become bars and words, what a state allows, and which news a list takes over."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celery_durable.flower import shown
from celery_durable.flower.task_list import is_news
from celery_durable.flower.timeline import Timeline
from celery_durable.flower.verbs import buttons
from celery_durable.records import AttemptRecord, Run, StepRecord

BEGAN = datetime(2030, 1, 31, 12, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def attempt(number: int, began: float, ended: float | None, how: str) -> AttemptRecord:
    return AttemptRecord(number, at(began), None if ended is None else at(ended), how, "w", "")


def step(place: str, ended: float | None, ms: int | None = None, state: str = "done", **facts: Any) -> StepRecord:
    return StepRecord("step", "s", place, state, 1, at=None if ended is None else at(ended), ms=ms, **facts)


def run(*attempts: AttemptRecord, steps: tuple[StepRecord, ...] = (), **facts: Any) -> Run:
    last = attempts[-1]
    known: dict[str, Any] = {
        "id": "r", "task": "t", "state": last.how, "args": [], "kwargs": {}, "created": BEGAN, "began": last.began,
        "ended": last.ended, "worker": "w", "lease": None, "waits_for": "", "until": None, "build": "", "error": "",
    }  # fmt: skip
    return Run(**{**known, **facts}, attempts=attempts, steps=steps)


# -- bars --------------------------------------------------------------------------------------------------------------


def test_a_run_of_one_attempt_fills_the_line() -> None:
    line = Timeline(run(attempt(1, 0, 10, "SUCCESS"), steps=(step("1", 5, 5000), step("2", 10, 1000))), at(60))

    [whole] = line.attempt(line._run.attempts[0])  # noqa: SLF001
    assert (whole.left, whole.width) == (0, 100)
    [[first], [second]] = line.steps(line._run.steps, BEGAN)  # noqa: SLF001
    assert (first.left, first.width) == (0, 50)
    assert (second.left, second.width) == (90, 10)
    assert line.waits() == []


def test_the_time_between_attempts_is_folded() -> None:
    line = Timeline(run(attempt(1, 0, 10, "SUSPENDED"), attempt(2, 86_410, 86_420, "SUCCESS")), at(90_000))

    [wait] = line.waits()
    assert (round(wait.left, 1), round(wait.width, 1)) == (35.7, 28.6)
    assert wait.title == "waited 1 d"


def test_a_sleeper_shows_until_when_it_waits() -> None:
    asleep = run(attempt(1, 0, 10, "SUSPENDED"), ended=None, until=at(3610))
    line = Timeline(asleep, at(60))

    assert line.end == at(3610)
    [wait] = line.waits()
    assert round(wait.left + wait.width) == 100


def test_an_attempt_that_died_lasts_until_its_last_sign_of_life() -> None:
    steps = (step("1", 4, 1000), step("2", 21, 1000))
    line = Timeline(run(attempt(1, 0, None, "DIED"), attempt(2, 20, 22, "SUCCESS"), steps=steps), at(60))

    [wait] = line.waits()
    assert wait.title == "waited 16.0 s"


def test_what_is_under_way_goes_on_until_now() -> None:
    busy = run(attempt(1, 0, None, "STARTED"), steps=(step("1", None, state="started", first=at(5)),))
    line = Timeline(busy, at(10))

    [[bar]] = line.steps(busy.steps, BEGAN)
    assert (bar.left, bar.width, bar.kind) == (50, 50, "started")


def test_executions_that_failed_are_another_bar() -> None:
    tried = run(attempt(1, 0, 10, "FAILURE"), steps=(step("1", 10, 1000, state="failed", first=at(0)),))

    [[before, last]] = Timeline(tried, at(60)).steps(tried.steps, BEGAN)

    assert (before.kind, before.left, before.width) == ("tried", 0, 90)
    assert (last.kind, last.left, last.width) == ("failed", 90, 10)


def test_a_bar_can_always_be_seen() -> None:
    short = run(attempt(1, 0, 3600, "SUCCESS"), steps=(step("1", 3600, 0), step("2", 7200, 1)))

    for [bar] in Timeline(short, at(3600)).steps(short.steps, BEGAN):
        assert bar.width > 0
        assert bar.left + bar.width <= 100


def test_a_run_without_duration_has_a_line() -> None:
    assert Timeline(run(attempt(1, 0, 0, "SUCCESS")), BEGAN).waits() == []


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"), (0.0125, "12 ms"), (2.44, "2.4 s"), (60, "1 min"), (192, "3 min 12 s"), (3600, "1 h"),
        (3660, "1 h 1 min"), (90_000, "1 d 1 h"), (86_400 * 40, "40 d"),
    ],
)  # fmt: skip
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert shown.span(timedelta(seconds=seconds)) == text


def test_a_distance_has_a_direction() -> None:
    assert shown.distance(at(90), BEGAN) == "in 1 min 30 s"
    assert shown.distance(at(-90), BEGAN) == "1 min 30 s ago"


def test_long_values_are_cut() -> None:
    assert len(shown.value("x" * 10_000)) == 4_000
    assert len(shown.call(run(attempt(1, 0, 1, "SUCCESS"), args=["x" * 1_000]))) == 120


# -- what a state allows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        ({"state": "FAILURE"}, ["retry", "restart"]),
        ({"state": "SUCCESS"}, ["restart"]),
        ({"state": "REVOKED"}, ["restart"]),
        ({"state": "STARTED", "ended": None}, ["cancel"]),
        ({"state": "SUSPENDED", "ended": None, "until": at(90)}, ["wake", "cancel"]),
        ({"state": "RETRY", "ended": None, "until": at(90)}, ["wake", "cancel"]),
        ({"state": "PAUSED", "ended": None}, ["retry", "cancel"]),
    ],
)
def test_the_buttons_of_a_run(facts: dict[str, Any], names: list[str]) -> None:
    assert list(buttons(run(attempt(1, 0, 10, "SUCCESS"), **facts))) == names


# -- news --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "recorded", "news"),
    [
        ("STARTED", "SUCCESS", True),
        ("STARTED", "SUSPENDED", True),
        ("STARTED", "STARTED", False),
        ("SUSPENDED", "STARTED", True),
        ("FAILURE", "STARTED", True),
        ("FAILURE", "FAILURE", False),
        ("RETRY", "STARTED", False),
        ("RECEIVED", "STARTED", False),
        ("SUCCESS", "RETRY", False),
        ("RECEIVED", "STALLED", True),
    ],
)
def test_the_journal_knows_better_than_events(told: str, recorded: str, *, news: bool) -> None:
    assert is_news(told, recorded) is news
