"""Invariants of a crowd hold for what a run without faults leaves, and each is broken by what it is there to find."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.evidence import Run
from tests.chaos.flawless import flawless
from tests.chaos.history import Write
from tests.chaos.invariants import INVARIANTS_OF_A_CROWD, MOST_THREADS, violations
from tests.chaos.oracle import expected
from tests.chaos.programs import Program, number


def crowd(*members: dict[str, Any]) -> Program:
    program: Program = [
        {"do": "crowd", "steps": [{"do": "step", "hangs": 0, "seconds": 0, **each} for each in members]}
    ]
    number(program)
    return program


def run_of(*members: dict[str, Any]) -> Run:
    run = flawless(crowd(*members))
    run.task = "crowd"
    return run


def taken_over(run: Run, *steps: str) -> None:
    """Let another attempt begin and end the run, after which the first one still starts these steps."""
    [last] = [write for write in run.writes if "outcome" in write.fields]
    taken = Write(last.number, 0, "run", {"attempt": "2", "status": "running", "owner": "host:200"})
    run.writes.insert(run.writes.index(last), taken)
    begin = run.lines[0]
    run.lines.append(replace(begin, attempt=2, event="starts", pid=200, at=begin.at + 100))
    first = next(line for line in run.lines if line.event == "begins")
    run.lines += [replace(first, step=step, mark=f"key of {step}", at=begin.at + 101) for step in steps]


def test_what_is_sound() -> None:
    assert not violations(run_of(*[{"attempts": 2}] * 5))


def test_who_hangs_too_often_has_spent_its_executions() -> None:
    seen = expected("run", crowd({"attempts": 2, "hangs": 2}, {"attempts": 2, "hangs": 1})).seen
    assert [text == f"RetriesExhausted at {at}" for at, text in seen] == [True, False]


def starts_after_its_verdict(run: Run) -> None:
    place = next(place for place, line in enumerate(run.lines) if line.event == "sees")
    begins = next(line for line in run.lines if line.event == "begins")
    run.lines.insert(place + 1, begins)


def begins_too_often(run: Run) -> None:
    place = next(place for place, line in enumerate(run.lines) if line.event == "begins")
    run.lines[place:place] = [run.lines[place]] * 2


def begins_in_a_stale_attempt(run: Run) -> None:
    taken_over(run, *[f"1.{n}" for n in range(1, MOST_THREADS + 2)])


def has_another_value(run: Run) -> None:
    run.results[-1].fields[""] = run.results[-1].fields[""].replace('"1.1"', '"1.7"', 1)


@pytest.mark.parametrize(
    ("spoil", "invariant"),
    [
        (starts_after_its_verdict, "no_member_of_a_crowd_starts_after_its_verdict"),
        (begins_too_often, "limits_of_a_crowd_are_exact"),
        (begins_in_a_stale_attempt, "a_stale_crowd_starts_nothing"),
        (has_another_value, "a_crowd_comes_to_its_end"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_is_not(spoil: Callable[[Run], None], invariant: str) -> None:
    run = run_of(*[{"attempts": 2}] * 5)
    spoil(run)
    assert invariant in {violation.invariant for violation in violations(run)}
    assert invariant in {each.__name__ for each in INVARIANTS_OF_A_CROWD}
