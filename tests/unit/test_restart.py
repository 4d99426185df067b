"""Which part of a journal a restart from a step takes over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from celery_durable import JournalUnreadableError, RunNotRestartableError
from celery_durable.journal.entries import done_entry, open_entry, started_entry
from celery_durable.journal.restarting import before_step

Steps = dict[str, str]


def done(name: str, at: int, ms: int = 5) -> str:
    return done_entry(name, 1, at, ms, {}, '{"at":99999,"first":1}')


def failed(name: str, at: int, **facts: Any) -> str:
    return open_entry(name, "failed", 1, at=at, error={"metadata": {"at": 1}}, **facts)


def slept(until: int) -> str:
    return open_entry("pause", "sleeping", 0, "sleep", until=until)


def fields_of(steps: Steps, **more: str) -> dict[bytes, bytes]:
    facts = {"v": "2", **{f"step:{place}": text for place, text in steps.items()}, **more}
    return {name.encode(): text.encode() for name, text in facts.items()}


def kept(steps: Steps, step: str) -> set[str]:
    return {name.decode().removeprefix("step:") for name in before_step("t", fields_of(steps), step)}


THREE = {"1": done("reserve", 10), "2": slept(50), "3": failed("charge", 60), "4": done("refund", 70)}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("reserve", set()),
        ("1", set()),
        ("pause", {"1"}),
        ("charge", {"1", "2"}),
        ("3", {"1", "2"}),
        ("refund", {"1", "2", "3"}),
    ],
)
def test_in_one_branch_the_position_decides(step: str, expected: set[str]) -> None:
    assert kept(THREE, step) == expected


def test_a_position_counts_before_the_name_of_another_step() -> None:
    named = {"1": done("0", 10), "2": done("1", 20), "3": done("2", 30)}

    assert [kept(named, step) for step in ("1", "2", "0")] == [set(), {"1"}, set()]


def test_positions_are_numbers() -> None:
    steps = {str(number): done(f"step {number}", number) for number in range(1, 13)}

    assert kept(steps, "11") == {str(number) for number in range(1, 11)}


def test_side_by_side_in_one_branch_the_position_decides_too() -> None:
    steps = {"1": done("a", 50, 40), "2": done("b", 20), "3": done("c", 60, 50)}

    assert kept(steps, "b") == {"1"}


BRANCHES = {
    "1": done("open", 10),
    "1.1": done("left", 20),
    "2.1": done("right", 30, 15),
    "@late.1": done("late", 80),
    "2": done("charge", 50),
    "3": failed("ship", 70),
}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("charge", {"1", "1.1", "2.1"}),
        ("ship", {"1", "1.1", "2.1", "2"}),
        ("open", set()),
        ("late", {"1", "1.1", "2.1", "2", "3"}),
    ],
)
def test_what_had_ended_in_other_branches_when_the_step_began_stands_before_it(step: str, expected: set[str]) -> None:
    assert kept(BRANCHES, step) == expected


@pytest.mark.parametrize(
    ("steps", "step"),
    [
        (BRANCHES, "left"),
        (BRANCHES, "2.1"),
        ({"1": done("a", 20), "1.1": done("b", 30, 20)}, "a"),
        # The other entry began in the millisecond in which the step began: nobody knows which was first.
        ({"1": done("a", 20, 5), "1.1": done("b", 16, 1)}, "a"),
        # A later step of its branch had begun before it ended: what is beside that one may depend on it.
        ({"1": done("a", 50, 20), "2": done("c", 20, 10), "1.1": done("b", 30, 5), "2.1": done("d", 20, 15)}, "a"),
    ],
)
def test_a_run_is_not_cut_where_another_branch_was_at_work(steps: Steps, step: str) -> None:
    with pytest.raises(RunNotRestartableError, match=r"of another branch was under way when it began.*there are: "):
        kept(steps, step)


def test_what_ended_just_before_the_step_began_stands_before_it() -> None:
    """A step behind asyncio.gather() begins in the millisecond in which the last branch has ended."""
    assert kept({"1.1": done("b", 15, 3), "1": done("a", 20, 5)}, "a") == {"1.1"}
    assert kept({"1.1": done("b", 15, 3), "1": done("a", 16, 1)}, "a") == {"1.1"}
    assert kept({"1.1": done("b", 15, 0), "1": done("a", 16, 0)}, "a") == {"1.1"}
    assert kept({"1.1": done("b", 15, 0), "1": done("a", 20, 5)}, "a") == {"1.1"}, "it cannot have had the result of a"
    # The other branch may have been given the result of the step.
    with pytest.raises(RunNotRestartableError, match=r"'b' \(1.1\) of another branch ended in the same millisecond;"):
        kept({"1.1": done("b", 15, 0), "1": done("a", 15, 0)}, "a")


def test_what_has_not_ended_and_failures_that_no_code_has_met_run_again() -> None:
    begun = {"": [3, 1], "1.": [1, 0]}
    steps = {
        "1": failed("a", 10, begun={"": [2, 0]}),
        "2": started_entry("b", 1, 5),
        "3": done("c", 40),
        "1.1": failed("d", 20, begun=begun),
        "2.1": open_entry("e", "retrying", 1, error={}),
    }

    assert kept(steps, "c") == {"1", "1.1"}, "step 1 was followed by step 3, and the failed branch by step 3, too"
    assert kept({"1": failed("a", 10, begun={"": [2, 0]}), "2": started_entry("b", 1, 5)}, "b") == set()


@pytest.mark.parametrize(
    ("steps", "step", "said"),
    [
        (THREE, "5", "from '5': it has recorded no such step; there are: 'reserve' (1), 'pause' (2), 'charge' (3), "),
        ({}, "charge", "it has recorded no such step; there are: none"),
        (THREE, 3, "from 3: a step is named by a text; there are: 'reserve' (1)"),
        (
            {"1": done("charge", 1), "2": done("ship", 2), "3": done("charge", 3)},
            "charge",
            "several steps are called that: name one by its position; there are: 'charge' (1), 'charge' (3)",
        ),
        ({str(n): done("a", n) for n in range(1, 31)}, "b", "'a' (20), and 10 more"),
    ],
)
def test_a_step_that_is_not_known_is_refused_and_the_others_are_named(steps: Steps, step: Any, said: str) -> None:
    with pytest.raises(RunNotRestartableError) as refused:
        kept(steps, step)

    assert said in str(refused.value)
    assert str(refused.value).startswith("task t cannot be restarted from ")


def test_branches_of_version_0_1_0_are_not_cut() -> None:
    fields = fields_of({"1.1": done("a", 1), "1": done("b", 9)}, v="1")

    with pytest.raises(RunNotRestartableError, match=r"celery-durable 0\.1\.0 has numbered its branches"):
        before_step("t", fields, "b")
    assert before_step("t", fields_of({"1": done("b", 9)}, v="1"), "b") == {}


@pytest.mark.parametrize("entry", ["rubbish", "{}", "[]"])
def test_a_damaged_entry_is_named(entry: str) -> None:
    with pytest.raises(JournalUnreadableError, match="entry step:1 is damaged"):
        before_step("t", fields_of({"1": entry, "2": done("b", 1)}), "b")


def test_what_was_drawn_is_taken_over_until_the_step() -> None:
    drawn = {"uuid:1": "a", "time:1.2": "5", "now:1": "b"}
    fields = fields_of(THREE, **drawn, **{"arguments:0": "[]", "progress": "1"})

    taken = before_step("t", fields, "charge")

    assert taken[b"arguments:0"] == b"[]"
    assert b"progress" not in taken
    assert json.loads(taken[b"former"]) == {"until": "3", "drawn": drawn}
    again = before_step("t", {**taken, b"v": b"2", b"step:1": b"x", b"time:1": b"6"} | fields_of(THREE), "pause")
    assert json.loads(again[b"former"])["drawn"] == {**drawn, "time:1": "6"}
