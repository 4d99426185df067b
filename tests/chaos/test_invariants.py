"""Invariants hold for what a run without faults leaves, and each is broken by what it is there to find."""

import json
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.effects import Line
from tests.chaos.evidence import Run, Struck
from tests.chaos.flawless import PARENT, PID, flawless
from tests.chaos.history import Write
from tests.chaos.invariants import INVARIANTS, violations
from tests.chaos.programs import (
    KINDS_OF_A_DEPLOY,
    Program,
    number,
    pausing_program,
    poisoned_program,
    random_program,
    straying_program,
)
from tests.chaos.test_oracle import step

Spoil = Callable[[Run], None]


def saga_program() -> Program:
    """One of everything: 1 flaky, 2 drawn, 3 slept, 4 sent, 5 a saga that fails at 5.3, within a try."""
    saga = {"do": "saga", "parts": [{"step": step(), "undo": step()} for _ in range(2)]}
    saga["parts"].append({"step": step(then="terminal"), "undo": step()})
    program = [
        step(fails=2),
        {"do": "draw", "kind": "uuid"},
        {"do": "sleep", "seconds": 1.0},
        {"do": "send", "task": "sync", "program": []},
        {"do": "try", "body": [saga], "rescue": [step(attempts=4)]},
    ]
    number(program)
    return program


def spoilt(*invariants: str) -> Callable[[Spoil], Spoil]:
    """Register a way to spoil the evidence, with the invariants that have to notice."""

    def register(spoil: Spoil) -> Spoil:
        SPOILT.append(pytest.param(spoil, set(invariants), id=spoil.__name__))
        return spoil

    return register


SPOILT: list[object] = []


def broken(run: Run) -> set[str]:
    return {violation.invariant for violation in violations(run)}


# -- what is sound -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(100))
def test_what_a_run_without_faults_leaves_is_sound(seed: int) -> None:
    assert not violations(flawless(random_program(random.Random(seed))))


@pytest.mark.parametrize("seed", range(50))
def test_what_a_run_of_a_deploy_leaves_is_sound(seed: int) -> None:
    assert not violations(flawless(random_program(random.Random(seed), KINDS_OF_A_DEPLOY)))


@pytest.mark.parametrize("seed", range(10))
def test_what_a_paused_run_leaves_is_sound(seed: int) -> None:
    assert not violations(flawless(pausing_program(random.Random(seed))))


def test_the_program_that_is_spoilt_below_is_sound_by_itself() -> None:
    assert not violations(flawless(saga_program()))


# -- what is not -------------------------------------------------------------------------------------------------------


def line_at(run: Run, event: str, at: str) -> int:
    return next(place for place, line in enumerate(run.lines) if (line.event, line.step) == (event, at))


def change_line(run: Run, event: str, at: str, /, **facts: object) -> None:
    place = line_at(run, event, at)
    run.lines[place] = replace(run.lines[place], **facts)


def drop_step(run: Run, at: str) -> None:
    """Let a step be as if it had never been: in the world, in the journal and in the result."""
    run.lines[:] = [line for line in run.lines if line.step != at]
    for write in run.writes:
        for name in [name for name, text in write.fields.items() if name.startswith("step:") and f'"{at}"' in text]:
            del write.fields[name]


def entry_of(run: Run, at: str) -> tuple[Write, str]:
    """Return the last entry of a step: the write and the field."""
    found = [(write, name) for write, name, entry in run.entries() if entry["name"] == at]
    return found[-1]


def change_entry(run: Run, at: str, **facts: object) -> None:
    write, name = entry_of(run, at)
    write.fields[name] = json.dumps({**json.loads(write.fields[name]), **facts})


def repeat(run: Run, at: str, before: str) -> None:
    """Execute a step once more, before the last look at another one."""
    begins, ends = (run.lines[line_at(run, event, at)] for event in ("begins", "ends"))
    place = max(place for place, line in enumerate(run.lines) if (line.event, line.step) == ("asks", before))
    late = replace(begins, attempt=run.lines[place].attempt, at=run.lines[place].at)
    run.lines[place:place] = [late, replace(ends, attempt=late.attempt, at=late.at)]


@spoilt("no_step_runs_after_it_was_recorded", "no_step_runs_more_often_than_faults_explain")
def a_step_that_runs_again_in_a_later_attempt(run: Run) -> None:
    repeat(run, "1", before="4")


@spoilt("no_step_runs_after_it_was_recorded", "no_step_runs_more_often_than_faults_explain")
def a_step_that_runs_again_in_the_same_attempt(run: Run) -> None:
    repeat(run, "5.1.1", before="5.1.2")


@spoilt("no_step_runs_more_often_than_faults_explain", "retries_keep_to_their_limits")
def a_step_that_runs_twice_before_it_is_recorded(run: Run) -> None:
    place = line_at(run, "begins", "5.1.1")
    run.lines[place:place] = [run.lines[place], run.lines[place + 1]]


@spoilt("compensations_run_in_reverse_and_once", "every_step_is_recorded_once_and_in_order")
def a_compensation_that_is_dropped(run: Run) -> None:
    drop_step(run, "5.1.1.undo")


@spoilt("compensations_run_in_reverse_and_once", "every_step_is_recorded_once_and_in_order")
def compensations_in_the_wrong_order(run: Run) -> None:
    swapped = {"5.1.1.undo": "5.1.2.undo", "5.1.2.undo": "5.1.1.undo"}
    run.lines[:] = [replace(line, step=swapped.get(line.step, line.step)) for line in run.lines]


@spoilt("compensations_run_in_reverse_and_once")
def a_compensation_of_what_was_never_done(run: Run) -> None:
    run.lines.append(replace(run.lines[line_at(run, "begins", "5.1.2.undo")], step="5.1.3.undo", mark="another key"))


@spoilt("every_step_is_recorded_once_and_in_order", "the_outcome_is_the_expected_one")
def a_step_that_is_skipped(run: Run) -> None:
    drop_step(run, "5.1.2")


@spoilt("every_attempt_sees_what_the_program_says", "every_attempt_sees_the_same")
def a_value_that_is_another_one_on_replay(run: Run) -> None:
    change_line(run, "sees", "1", text="'another'")


@spoilt("every_attempt_sees_the_same", "what_is_seen_is_what_is_recorded")
def a_value_of_an_execution_that_is_not_the_recorded_one(run: Run) -> None:
    change_line(run, "sees", "1", mark="1:ffffffffffff")


@spoilt("every_attempt_sees_the_same")
def a_draw_that_is_another_one_on_replay(run: Run) -> None:
    change_line(run, "sees", "2", text="another")


@spoilt("draws_are_in_the_journal")
def a_drawn_uuid_that_is_not_recorded(run: Run) -> None:
    for write in run.writes:
        write.fields.pop("uuid:4.id", None)


@spoilt("draws_are_in_the_journal")
def two_uuids_that_are_the_same(run: Run) -> None:
    for write in run.writes:
        if "uuid:2" in write.fields:
            write.fields["uuid:2"] = run.children["4"].id


@spoilt("an_idempotency_key_is_that_of_its_step")
def an_execution_with_another_idempotency_key(run: Run) -> None:
    change_line(run, "begins", "1", mark="another key")


@spoilt("an_idempotency_key_is_that_of_its_step")
def two_steps_with_one_idempotency_key(run: Run) -> None:
    change_line(run, "begins", "5.1.1", mark="key of 5.1.2")


@spoilt("retries_keep_to_their_limits")
def an_execution_that_is_not_counted(run: Run) -> None:
    change_line(run, "begins", "1", execution=2)


@spoilt("retries_keep_to_their_limits")
def a_retry_that_does_not_wait(run: Run) -> None:
    begins = [place for place, line in enumerate(run.lines) if (line.event, line.step) == ("begins", "1")]
    run.lines[begins[1]] = replace(run.lines[begins[1]], at=run.lines[begins[0]].at + 0.01)


@spoilt("only_steps_that_were_hit_give_up_early", "every_step_is_recorded_once_and_in_order")
def a_step_that_gives_up_before_its_last_execution(run: Run) -> None:
    change_entry(run, "5.rescue.1", state="failed", attempts=1, error={"type": "RetriesExhausted"})


@spoilt("a_sleep_lasts")
def a_sleep_that_is_too_short(run: Run) -> None:
    change_line(run, "asks", "3", at=run.lines[line_at(run, "sees", "3")].at - 0.9)


@spoilt("the_outcome_is_written_once")
def a_run_that_goes_on_after_its_end(run: Run) -> None:
    run.writes.append(Write(999, 0, "run", {"status": "suspended"}))


@spoilt("the_outcome_is_written_once")
def two_outcomes(run: Run) -> None:
    run.writes.append(Write(999, 0, "run", {"outcome": "another"}))


@spoilt("the_outcome_is_written_once", "every_run_ends")
def a_result_that_is_taken_back(run: Run) -> None:
    retry = {"status": "RETRY", "result": {"exc_type": "ConnectionError", "exc_message": ["away"]}}
    run.results.append(Write(999, 1, "result", {"": json.dumps(retry)}))


@spoilt("the_outcome_is_the_expected_one")
def a_failure_in_place_of_the_value(run: Run) -> None:
    failure = {"status": "FAILURE", "result": {"exc_type": "ConnectionError", "exc_message": ["away"]}}
    run.results[-1].fields[""] = json.dumps(failure)


@spoilt("a_stale_attempt_writes_nothing")
def a_result_of_an_attempt_that_was_taken_over(run: Run) -> None:
    # What is seen is from the same execution, so that only the fence is in question.
    mark = "1:ffffffffffff"
    change_entry(run, "5.1.1", value=["...", mark])
    run.lines[:] = [replace(line, mark=mark) if line.step == "5.1.1" and line.mark else line for line in run.lines]


@spoilt("a_stale_attempt_starts_no_step")
def a_step_that_is_begun_by_an_attempt_that_was_taken_over(run: Run) -> None:
    first = [line for line in run.lines if line.attempt == 1][-1]
    late = [replace(first, event=event, at=first.at + 60) for event in ("asks", "begins")]
    run.lines[len(run.lines) :] = late


@spoilt("the_journal_only_grows")
def a_recorded_step_that_is_changed(run: Run) -> None:
    write, name = entry_of(run, "5.1.1")
    run.writes.append(Write(999, 0, "run", {name: write.fields[name].replace("...", "other")}))


@spoilt("the_journal_only_grows")
def a_recorded_step_that_a_later_attempt_starts_again(run: Run) -> None:
    _, name = entry_of(run, "1")
    run.writes.append(Write(999, 0, "run", {name: json.dumps({"name": "1", "state": "started", "attempts": 1})}))


@spoilt("the_journal_only_grows")
def a_recorded_step_that_is_removed(run: Run) -> None:
    run.writes.append(Write(999, 0, "run", gone={entry_of(run, "5.1.1")[1]}))


@spoilt("nothing_leaves_before_it_is_recorded")
def a_child_that_begins_before_the_steps_of_its_parent_are_recorded(run: Run) -> None:
    run.children["4"].writes[0] = Write(2, 0, "child", {"attempt": "1"})


@spoilt("nothing_leaves_before_it_is_recorded")
def a_result_that_is_told_before_it_is_recorded(run: Run) -> None:
    run.results[0].act = 1


@spoilt("every_attempt_that_is_cut_short_has_a_cause")
def an_attempt_that_ends_without_a_word(run: Run) -> None:
    end = next(write for write in run.writes if write.fields.get("status") == "suspended")
    run.writes.remove(end)


@spoilt("every_run_ends")
def a_run_that_is_not_delivered(run: Run) -> None:
    run.writes.pop()


@spoilt("every_run_ends")
def a_run_that_keeps_its_lease(run: Run) -> None:
    run.lapses.append("leases")


@spoilt("the_index_says_what_has_become_of_it")
def a_run_that_is_in_two_places(run: Run) -> None:
    run.headings.append("retry")


@spoilt("the_index_says_what_has_become_of_it")
def a_run_that_is_purged_and_found(run: Run) -> None:
    run.writes.append(Write(999, 0, "run", {"purged": "1"}))


@spoilt("a_purged_run_begins_no_more")
def a_run_that_is_purged_and_begins_again(run: Run) -> None:
    run.writes.append(Write(999, 0, "run", {"purged": "1"}))
    run.writes += [replace(write, number=1000 + number) for number, write in enumerate(run.writes[:-1])]


@pytest.mark.parametrize(("spoil", "noticed"), SPOILT)
def test_what_contradicts_an_invariant_is_noticed(spoil: Spoil, noticed: set[str]) -> None:
    run = flawless(saga_program())
    spoil(run)

    assert noticed <= broken(run)


def test_a_poison_that_kills_too_often_is_noticed() -> None:
    program = poisoned_program(random.Random(1))
    killing = [Line("run", attempt, "begins", "2", pid=PID) for attempt in range(1, 6)]

    assert "a_poison_is_parked" not in broken(Run("run", "poisoned", program, killing[:-1]))
    assert "a_poison_is_parked" in broken(Run("run", "poisoned", program, killing))


def test_a_step_that_begins_on_another_path_is_noticed() -> None:
    run = flawless(straying_program(random.Random(1)))
    assert broken(run) == set()

    run.lines.append(replace(run.lines[line_at(run, "begins", "2")], step="2.stray", mark="another key"))
    write, name = entry_of(run, "2")
    run.writes.append(Write(write.number + 1, 0, "run", {name: write.fields[name].replace('"2"', '"2.stray"')}))

    assert "another_path_is_refused" in broken(run)


@pytest.mark.parametrize("seed", range(4))
def test_a_pause_that_nobody_has_ended_is_noticed(seed: int) -> None:
    run = flawless(pausing_program(random.Random(seed)))
    for write in run.writes:
        for name in ("reopened", "cancel"):
            write.fields.pop(name, None)

    assert broken(run) == {"a_pause_lasts"}


def deploy_program() -> Program:
    program = [step(), {"do": "deploy", "old": step(), "new": step()}, {"do": "patch", "old": step(), "new": step()}]
    number(program)
    return program


def test_a_run_that_takes_two_paths_is_noticed() -> None:
    assert broken(flawless(deploy_program())) == set()
    run = flawless(deploy_program())
    write, name = entry_of(run, "2.old")
    other = {name: write.fields[name].replace("2.old", "2.new")}

    run.writes.insert(run.writes.index(write), replace(write, fields=other))

    assert "a_run_keeps_to_one_path" in broken(run)


@pytest.mark.parametrize("hit", [True, False])
def test_a_path_is_left_where_its_process_died_and_nowhere_else(hit: bool) -> None:
    """Nothing of it was recorded; a worker with the other code goes on."""
    run = flawless(deploy_program(), dies_in="2.old")
    died = run.lines[line_at(run, "begins", "2.old")]
    run.faults = [Struck("kill child", died.at, died.at, frozenset([PID]), cuts=True)]
    place = run.lines.index(died)
    run.lines[place - 1 : place + 1] = [replace(line, step="2.new") for line in run.lines[place - 1 : place + 1]]
    if not hit:
        # The attempt had ended well.
        opened = [write for write in run.writes if "attempt" in write.fields][1]
        run.writes.insert(run.writes.index(opened), replace(opened, fields={"status": "suspended"}))

    assert broken(run) == (set() if hit else {"a_run_keeps_to_one_path"})


def test_a_failure_by_code_that_does_not_fit_is_noticed() -> None:
    run = flawless(deploy_program())
    failure = {
        "status": "FAILURE",
        "result": {"exc_type": "JournalMismatchError", "exc_message": ["took another path"]},
    }
    run.results[-1].fields[""] = json.dumps(failure)

    assert "no_run_fails_that_some_worker_can_finish" in broken(run)


def test_every_invariant_is_broken_by_something() -> None:
    found = {name for parameters in SPOILT for name in parameters.values[1]}  # type: ignore[attr-defined]

    found |= {"a_poison_is_parked", "another_path_is_refused", "a_pause_lasts"}
    found |= {"a_run_keeps_to_one_path", "no_run_fails_that_some_worker_can_finish"}
    assert found == {invariant.__name__ for invariant in INVARIANTS}


# -- what faults explain -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pid", [PID, PARENT])
def test_a_death_is_explained_by_that_of_the_process_or_of_its_worker(pid: int) -> None:
    run = flawless(saga_program(), dies_in="5.rescue.1")
    died = run.lines[line_at(run, "begins", "5.rescue.1")].at
    run.faults = [Struck("a death", died, died, frozenset([pid]), cuts=True)]

    assert broken(run) == set()


def test_a_step_that_was_hit_runs_once_more_and_only_a_fault_that_may_cut_it_short_explains_it() -> None:
    run, unexplained = (flawless(saga_program(), dies_in="5.rescue.1") for _ in range(2))
    died = run.lines[line_at(run, "begins", "5.rescue.1")].at
    run.faults = [Struck("kill child", died, died, frozenset([PID]), cuts=True)]
    unexplained.faults = [
        Struck("kill child", died, died, frozenset([PID + 1]), cuts=True),
        Struck("lose message", died, died),
    ]

    assert broken(run) == set()
    assert broken(unexplained) == {"every_attempt_that_is_cut_short_has_a_cause"}


def test_an_attempt_may_send_the_start_of_a_step_again_with_its_result() -> None:
    run = flawless(saga_program())
    write, name = entry_of(run, "5.1.1")
    started = json.dumps({"name": "5.1.1", "state": "started", "attempts": 1})
    place = run.writes.index(write) + 1
    run.writes[place:place] = [replace(write, fields={name: started}), write]

    assert broken(run) == set()


@pytest.mark.parametrize(
    ("fault", "db", "sound"), [("freeze child", 1, True), ("freeze child", 0, False), ("", 1, False)]
)
def test_only_who_was_frozen_may_tell_what_the_run_waits_for_when_it_is_over_and_only_where_no_fence_is(
    fault: str, db: int, sound: bool
) -> None:
    run = flawless(saga_program())
    ended = run.results[-1]
    run.faults = [Struck(fault, 0.0, 1.0, frozenset([PID]))] if fault else []
    run.results += [replace(ended, fields={"": json.dumps({"status": "RETRY", "result": None})}), ended]
    run.results[:] = [replace(result, db=db) for result in run.results]

    assert broken(run) == (set() if sound else {"the_outcome_is_written_once"})


@pytest.mark.parametrize("silences", [True, False])
def test_only_a_journal_that_was_away_may_lose_a_reading_of_the_clock(silences: bool) -> None:
    program = [{"do": "draw", "kind": "now"}, step()]
    number(program)
    run = flawless(program, dies_in="2")
    died = run.lines[line_at(run, "begins", "2")].at
    run.faults = [Struck("kill journal", died, died, cuts=True, silences=silences)]
    change_line(run, "sees", "1", text="another reading")

    assert broken(run) == (set() if silences else {"every_attempt_sees_the_same"})
