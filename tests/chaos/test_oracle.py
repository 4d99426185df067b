"""The oracle says what a reader of the program would say."""

import random

import pytest

from tests.chaos.oracle import UNKNOWN, expected
from tests.chaos.programs import (
    DEEPEST,
    MOST_OPERATIONS,
    Operation,
    Program,
    number,
    operations,
    random_program,
    told,
    value_of,
)

RUN = "run"


def step(**facts: object) -> Operation:
    sound = {"fails": 0, "then": "value", "by": "step", "attempts": None, "interval": 0.1, "seconds": 0, "async": False}
    return {"do": "step", **sound, **facts}


def numbered(*program: Operation) -> Program:
    number(list(program))
    return list(program)


def value(at: str) -> str:
    return told(value_of(RUN, at))


def test_steps_are_seen_in_their_order_and_drawn_values_are_anybodys_guess() -> None:
    says = expected(RUN, numbered(step(), {"do": "draw", "kind": "uuid"}, step(fails=2), {"do": "sleep", "seconds": 1}))

    assert says.seen == [("1", value("1")), ("2", UNKNOWN), ("3", value("3")), ("4", "None")]
    assert [(each.at, each.executions, each.state) for each in says.steps] == [
        ("1", 1, "done"),
        ("3", 3, "done"),
        ("4", 0, "sleeping"),
    ]
    assert not says.error


@pytest.mark.parametrize(
    ("failing", "executions", "error"),
    [
        ({"then": "terminal"}, 1, "TerminalError at 1"),
        ({"fails": 2, "then": "terminal"}, 3, "TerminalError at 1"),
        ({"fails": 3, "attempts": 3}, 3, "RetriesExhausted at 1"),
        ({"fails": 3, "attempts": 3, "then": "terminal"}, 3, "RetriesExhausted at 1"),
    ],
)
def test_a_terminal_error_ends_the_run(failing: Operation, executions: int, error: str) -> None:
    says = expected(RUN, numbered(step(**failing), step()))

    assert [(each.at, each.executions, each.state) for each in says.steps] == [("1", executions, "failed")]
    assert says.seen == [("1", error)]
    assert says.error == error


def test_a_caught_error_leads_to_the_rescue_and_goes_no_further() -> None:
    block = {"do": "try", "body": [step(then="terminal"), step()], "rescue": [step()]}

    says = expected(RUN, numbered(block, step()))

    assert [each.at for each in says.steps] == ["1.1", "1.rescue.1", "2"]
    assert not says.error


def test_a_saga_undoes_in_reverse_what_was_done_and_fails() -> None:
    parts = [{"step": step(), "undo": step()}, {"step": step(), "undo": step()}]
    broken = {"step": step(then="terminal"), "undo": step()}
    never = {"step": step(), "undo": step()}

    says = expected(RUN, numbered({"do": "saga", "parts": [*parts, broken, never]}))

    assert [each.at for each in says.steps] == ["1.1", "1.2", "1.3", "1.2.undo", "1.1.undo"]
    assert says.error == "TerminalError at 1.3"


def test_a_saga_that_succeeds_undoes_nothing() -> None:
    says = expected(RUN, numbered({"do": "saga", "parts": [{"step": step(), "undo": step()}]}))

    assert [each.at for each in says.steps] == ["1.1"]


@pytest.mark.parametrize(
    ("then", "executions", "seen", "path"),
    [("retry", 2, value("1.1"), ["1.1", "2"]), ("cancel", 1, "TaskCancelled at 1.1", ["1.1", "1.rescue.1", "2"])],
)
def test_a_paused_task_is_retried_or_cancelled(then: str, executions: int, seen: str, path: list[str]) -> None:
    block = {"do": "try", "body": [{"do": "pause", "then": then, "seconds": 0}], "rescue": [step()]}

    says = expected(RUN, numbered(block, step()))

    assert [each.at for each in says.steps] == path
    assert (says.steps[0].executions, says.seen[0]) == (executions, ("1.1", seen))
    assert not says.error


def test_a_limited_step_that_lost_its_executions_to_faults_is_exhausted() -> None:
    program = numbered(step(attempts=3))

    assert not expected(RUN, program).error
    assert expected(RUN, program, unlucky={"1"}).error == "RetriesExhausted at 1"


def test_a_program_comes_again_with_its_seed() -> None:
    assert random_program(random.Random(7)) == random_program(random.Random(7)) != random_program(random.Random(8))


@pytest.mark.parametrize("seed", range(200))
def test_a_random_program_is_as_large_and_as_deep_as_it_may_be(seed: int) -> None:
    program = random_program(random.Random(seed))

    places = [operation["at"] for operation in operations(program)]
    assert len(set(places)) == len(places)
    assert _size(program) <= MOST_OPERATIONS
    assert _depth(program) <= DEEPEST


def _size(program: Program) -> int:
    """Count what the budget counts: what undoes and what rescues comes with what it is for."""
    inner = [
        [*op.get("body", []), *op.get("program", []), *(part["step"] for part in op.get("parts", []))] for op in program
    ]
    return sum(1 + _size(each) for each in inner) - sum(op["do"] == "send" for op in program)


def _depth(program: Program) -> int:
    inner = [_depth([*op.get("body", []), *(op["program"][0]["body"] if "program" in op else [])]) for op in program]
    return 1 + max(inner, default=0) if program else 0
