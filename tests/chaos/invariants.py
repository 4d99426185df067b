"""What must hold for every run, whatever broke while it was under way. Each function yields what contradicts it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from tests.chaos.effects import Line
from tests.chaos.evidence import ENDED, MARK, SETTLED, TOLD, Attempt, Run
from tests.chaos.history import Write
from tests.chaos.oracle import UNKNOWN
from tests.chaos.programs import MAX_RECOVERIES_OF_A_POISON, TIMEOUT_OF_A_CROWD, operations, told, value_of

Invariant = Callable[[Run], Iterator[str]]

PRECISION = 0.005
"""Seconds by which two readings of clocks may differ: Redis counts in milliseconds."""
MOST_THREADS = 3
"""Of a process, for the sync steps of its async tasks."""
SLACK = 0.5
"""Seconds around a fault in which its consequences are its own."""


@dataclass(frozen=True)
class Violation:
    """A run that contradicts an invariant."""

    run: Run
    invariant: str
    what: str

    def __str__(self) -> str:
        return f"task {self.run.id}: {self.invariant}: {self.what}"


def violations(run: Run) -> list[Violation]:
    """Hold a run against all invariants."""
    held = INVARIANTS_OF_A_CROWD if run.task == "crowd" else INVARIANTS
    if any(a_purged_run_begins_no_more(run)):
        held = (a_purged_run_begins_no_more,)  # the others would take two runs for one
    return [Violation(run, invariant.__name__, what) for invariant in held for what in invariant(run)]


# -- steps -------------------------------------------------------------------------------------------------------------


def no_step_runs_after_it_was_recorded(run: Run) -> Iterator[str]:
    """I1. By the order of the journal between attempts, by that of the lines within one."""
    opened = {attempt.number: attempt.opened.number for attempt in run.attempts}
    for step, begins in run.executions.items():
        if step not in run.settled:
            continue
        recorded = run.settled[step][0].number
        for line in begins:
            if opened[line.attempt] > recorded:
                yield f"{step} was recorded by write #{recorded}, and began again: {line}"
    for attempt in run.attempts:
        seen: set[str] = set()
        for line in attempt.lines:
            if line.event == "begins" and line.step in seen:
                yield f"{line.step} was seen, and began again: {line}"
            if line.event == "sees":
                seen.add(line.step)


def no_step_runs_more_often_than_faults_explain(run: Run) -> Iterator[str]:
    """I2. As often as declared, and once more for each attempt that was cut short in it, at most."""
    for step in run.expected.steps:
        ran = len(run.executions[step.at])
        # Nobody declared that the broker would be away when a step sends.
        failed = sum(line.step == step.at and line.text == "errs" for line in run.of("ends"))
        declared, hits = step.executions + failed, run.hits[step.at]
        if ran > declared + hits:
            yield f"{step.at} ran {ran} times; declared: {declared}, attempts cut short in it: {hits}"
        if not hits and step.at in run.settled and ran != declared:
            yield f"{step.at} ran {ran} times, and was to run {declared} times: nothing hit it"
        if step.limit == 1 and ran > 1:
            yield f"{step.at} ran {ran} times, and was never to start twice"


def every_step_is_recorded_once_and_in_order(run: Run) -> Iterator[str]:
    """I3. The journal holds the path that the program takes, no less and no more."""
    planned = [(step.at, step.state) for step in run.expected.steps if step.state in SETTLED]
    recorded = [(name, run.settled[name][1]["state"]) for name in run.path if name in run.settled]
    if run.task != "poisoned" and recorded != planned:
        yield f"the path of the program is {planned}, recorded is {recorded}"
    begun = [step for step in dict.fromkeys(line.step for line in run.of("begins")) if step not in run.abandoned]
    order = [step.at for step in run.expected.steps if step.at in begun]
    if run.task != "poisoned" and begun != order:
        yield f"steps began in the order {begun}, and not in {order}"


def every_attempt_sees_what_the_program_says(run: Run) -> Iterator[str]:
    """I3. Each attempt goes down the same path, as far as it comes."""
    for attempt in run.attempts:
        seen = [(line.step, line.text) for line in attempt.lines if line.event == "sees"]
        for got, wanted in zip_longest(seen, run.expected.seen[: len(seen)]):
            if wanted is None or got[0] != wanted[0] or wanted[1] not in (UNKNOWN, got[1]):
                yield f"attempt {attempt.number} saw {got}, the program says {wanted}"
                break


def every_attempt_sees_the_same(run: Run) -> Iterator[str]:
    """I4, I5, I9. Values, errors and draws, down to their types and to the execution that they are from."""
    first: dict[str, tuple[str, str]] = {}
    clocks = {operation["at"] for operation in operations(run.program) if operation.get("kind") in ("time", "now")}
    for line in run.of("sees"):
        seen = (line.text, line.mark)
        if line.step in clocks and (run.lost_its_journal(line.attempt) or not _starts_a_step_after(run, line)):
            continue  # a reading of the clock is sent before the next action starts, and not waited for
        if first.setdefault(line.step, seen) != seen:
            yield f"{line.step} was {first[line.step]} before, and now: {line}"


def _starts_a_step_after(run: Run, line: Line) -> bool:
    begins = (begin for execution in run.executions.values() for begin in execution)
    return any(begin.attempt == line.attempt and begin.at >= line.at for begin in begins)


def what_is_seen_is_what_is_recorded(run: Run) -> Iterator[str]:
    """I4. The value is from the execution whose result the journal holds."""
    for line in run.of("sees"):
        if line.step in run.settled:
            recorded = _mark(json.dumps(run.settled[line.step][1]))
            if recorded and recorded not in line.mark:
                yield f"recorded is the value of execution {recorded}, seen was: {line}"


def draws_are_in_the_journal(run: Run) -> Iterator[str]:
    """I9. A uuid stands there as it was seen, and no two are the same."""
    uuids = [value for name, value in run.journal.items() if name.startswith("uuid:")]
    if len(set(uuids)) != len(uuids):
        yield f"the same uuid twice: {uuids}"
    for line in run.of("sees"):
        if line.step.endswith(".id") and line.text not in uuids:
            yield f"not in the journal: {line}"


def an_idempotency_key_is_that_of_its_step(run: Run) -> Iterator[str]:
    # It belongs to the place of a step, which two paths share.
    keys = {(line.step, line.mark) for line in run.of("begins") if line.step not in run.abandoned}
    steps = {step for step, _ in keys}
    if not len(keys) == len(steps) == len({key for _, key in keys}):
        yield f"each step has a key of its own, the same for all its executions, but they were {sorted(keys)}"


# -- retries and waits -------------------------------------------------------------------------------------------------


def retries_keep_to_their_limits(run: Run) -> Iterator[str]:
    """I10. Executions are counted on, also over deaths, and each retry waits for as long as it was told."""
    steps = {operation["at"]: operation for operation in operations(run.program) if operation["do"] == "step"}
    for at, begins in run.executions.items():
        counts = [line.execution for line in begins]
        if not run.hits[at] and at in steps and counts != list(range(1, len(counts) + 1)):
            yield f"{at} was not hit, and counted its executions as {counts}"
        step = steps.get(at)
        if step is None or step["by"] != "step" or run.hits[at]:
            continue
        ends = [line for line in run.of("ends") if line.step == at]
        for failure, (end, begin) in enumerate(zip(ends, begins[1:], strict=False)):
            least = min(0.5, step["interval"] * 2**failure)
            if begin.at - end.at < least - PRECISION:
                yield f"{at} was to wait {least} s after its failure, and waited {begin.at - end.at:.3f}: {begin}"


def only_steps_that_were_hit_give_up_early(run: Run) -> Iterator[str]:
    """I10. An exhausted step has had its executions; those that died with their processes count."""
    for name, (_, entry) in run.settled.items():
        step = next((step for step in run.expected.steps if step.at == name), None)
        if step is None or entry["state"] != "failed" or entry["error"]["type"] != "RetriesExhausted":
            continue
        if entry["attempts"] != step.limit:
            yield f"{name} gave up after {entry['attempts']} executions of {step.limit}"


def a_sleep_lasts(run: Run) -> Iterator[str]:
    """I11. As long as it was to, over all attempts."""
    for sleep in operations(run.program):
        if sleep["do"] != "sleep":
            continue
        asked = [line.at for line in run.of("asks") if line.step == sleep["at"]]
        woke = [line.at for line in run.of("sees") if line.step == sleep["at"]]
        if woke and woke[0] - asked[0] < sleep["seconds"] - PRECISION:
            yield f"{sleep['at']} was to sleep {sleep['seconds']} s, and slept {woke[0] - asked[0]:.3f} s"


def a_pause_lasts(run: Run) -> Iterator[str]:
    """I18. Until somebody has retried or cancelled the run."""
    paused: Write | None = None
    for write in run.writes:
        if "attempt" in write.fields and paused:
            yield f"it was paused, and nobody had decided how it goes on: {paused}, {write}"
        if write.fields.get("waits") == "pause":
            paused = write
        elif write.fields.keys() & {"reopened", "cancel"}:
            paused = None


# -- other paths -------------------------------------------------------------------------------------------------------


def another_path_is_refused(run: Run) -> Iterator[str]:
    """I13. A step under another name does not begin, and the journal stays as it was."""
    for stray in operations(run.program):
        if stray["do"] != "stray":
            continue
        for line in run.of("begins"):
            if line.step.endswith(".stray"):
                yield f"a step that is not the recorded one began: {line}"
        recorded = run.settled.get(stray["at"])
        if recorded:
            written = [
                name
                for write, name, entry in run.entries()
                if write.number > recorded[0].number and entry["name"] not in (stray["at"], stray["then"]["at"])
            ]
            if written:
                yield f"after {stray['at']} was recorded {written} were written"


# -- old code beside new code ------------------------------------------------------------------------------------------


def a_run_keeps_to_one_path(run: Run) -> Iterator[str]:
    """Where old and new code differ it goes on as it has begun; what began on another path died with its process."""
    for at, ways in run.paths.items():
        if len(ways) > 1:
            yield f"at {at} the journal had what old code does, and what new code does"
    for step in run.abandoned:
        if not run.hits[step]:
            yield f"{step} began, nothing hit it, and the run went on by another path"


def no_run_fails_that_some_worker_can_finish(run: Run) -> Iterator[str]:
    """A worker whose code does not fit leaves the run to others."""
    strays = any(operation["do"] == "stray" for operation in operations(run.program))
    mismatches = [each for each in run.outcomes if "JournalMismatchError" in json.dumps(each["result"])]
    if mismatches and not strays and any(each["status"] in TOLD for each in mismatches):
        yield f"it failed where its code did not fit: {mismatches}"


# -- sagas -------------------------------------------------------------------------------------------------------------


def compensations_run_in_reverse_and_once(run: Run) -> Iterator[str]:
    """I12. Of each saga that failed, the steps that were recorded are undone, and no others."""
    for saga in operations(run.program):
        if saga["do"] != "saga":
            continue
        states = {part["step"]["at"]: run.settled.get(part["step"]["at"]) for part in saga["parts"]}
        done = [at for at, settled in states.items() if settled and settled[1]["state"] == "done"]
        failed = any(settled and settled[1]["state"] == "failed" for settled in states.values())
        due = [f"{at}.undo" for at in reversed(done)] if failed else []
        of_this_saga = {part["undo"]["at"] for part in saga["parts"]}
        begun = list(dict.fromkeys(line.step for line in run.of("begins") if line.step in of_this_saga))
        recorded = [name for name in run.path if name in of_this_saga]
        if begun != due or recorded != due:
            yield f"saga {saga['at']} was to undo {due}; begun: {begun}, recorded: {recorded}"


def a_purged_run_begins_no_more(run: Run) -> Iterator[str]:
    """I18. A copy of its message is thrown away."""
    purged = next((place for place, write in enumerate(run.writes) if "purged" in write.fields), len(run.writes))
    if later := run.writes[purged + 1 :]:
        yield f"it was purged, and was written {len(later)} times since: {later[0]}"


# -- one writer --------------------------------------------------------------------------------------------------------


def the_outcome_is_written_once(run: Run) -> Iterator[str]:
    """I6. In the journal and in the result backend; nothing comes after it, and both say the same."""
    statuses = [write.fields["status"] for write in run.writes if "status" in write.fields]
    ended = next((place for place, status in enumerate(statuses) if status in ENDED), len(statuses))
    if set(statuses[ended:]) - set(statuses[ended : ended + 1]):
        yield f"the run ended, and went on: {statuses[ended:]}"
    outcomes = {write.fields["outcome"] for write in run.writes if "outcome" in write.fields}
    if len(outcomes) > 1:
        yield f"outcomes: {outcomes}"
    told = [(outcome["status"], json.dumps(outcome["result"])) for outcome in run.outcomes]
    final = [place for place, (state, _) in enumerate(told) if state in TOLD]
    if final and len(set(told[final[0] :])) > 1 and not _is_set_back(run, told[final[0] :]):
        yield f"the result backend was told {told[final[0] :]}"


def _is_set_back(run: Run, told: list[tuple[str, str]]) -> bool:
    """Whether what was told after the outcome was not an outcome, and the outcome was told again.

    Where results are not beside the journals, no fence guards them: a process that was frozen in the very moment
    between its last look at the lease and the writing of RETRY, say, writes it when it is thawed, and looks again.
    """
    guarded = all(result.db == run.writes[0].db for result in run.results)
    frozen = any(fault.kind.startswith("freeze") for fault in run.faults)
    no_other_outcome = all(each == told[0] or each[0] not in TOLD for each in told)
    return frozen and not guarded and told[-1] == told[0] and no_other_outcome


def the_outcome_is_the_expected_one(run: Run) -> Iterator[str]:
    """I6. What the caller gets is what the program comes to."""
    if not run.outcomes or run.outcomes[-1]["status"] not in TOLD:
        return
    outcome = run.outcomes[-1]
    if outcome["status"] == "SUCCESS":
        if run.expected.error:
            yield f"it succeeded, and was to fail with {run.expected.error}"
        seen = [[line.step, line.text] for line in run.attempts[-1].lines if line.event == "sees"]
        if outcome["result"] != seen or len(seen) != len(run.expected.seen):
            yield f"it returned {outcome['result']}, having seen {seen}"
    elif _failure(outcome["result"], run.id) != run.expected.error:
        yield f"it ended with {outcome['status']} {outcome['result']}, expected was {run.expected.error or 'SUCCESS'}"


def a_stale_attempt_writes_nothing(run: Run) -> Iterator[str]:
    """I7. What an attempt executed is recorded while it is the newest one."""
    newest = 0
    for write in run.writes:
        newest = int(write.fields.get("attempt", newest))
        for name, text in write.fields.items():
            mark = _mark(text) if name.startswith("step:") else ""
            if mark and int(mark.split(":")[0]) < newest:
                yield f"attempt {newest} had begun when a result of execution {mark} was written: {write}"


def a_stale_attempt_starts_no_step(run: Run) -> Iterator[str]:
    """I7. Unless it was frozen in the very moment between its last look at the lease and the action."""
    for attempt, successor in pairwise(run.attempts):
        taken_over = successor.lines[0].at if successor.lines else float("inf")
        for before, line in pairwise(attempt.lines):
            if line.event == "begins" and before.at > taken_over:
                yield f"attempt {successor.number} had begun at {taken_over:.3f}: {line}"


def the_journal_only_grows(run: Run) -> Iterator[str]:
    """I8. What is recorded does not change; what changes are counts and states of what is under way.

    An attempt whose replies were lost sends all of it again, in its order: the start of a step after its result, too.
    """
    known: dict[str, tuple[int, str]] = {}
    newest = 0
    for write in run.writes:
        newest = int(write.fields.get("attempt", newest))
        for name in write.gone & known.keys():
            yield f"{name} is gone: {write}"
        for name, value in write.fields.items():
            by, recorded = known.get(name, (newest, value))
            if recorded != value and (by != newest or _is_final(name, value)):
                yield f"{name} was {recorded}, and is changed: {write}"
            elif _is_final(name, value):
                known[name] = newest, value


def nothing_leaves_before_it_is_recorded(run: Run) -> Iterator[str]:
    """I16. A task that is sent, and an outcome that is told, find everything before them in the journal."""
    path = [step.at for step in run.expected.steps]
    for at, child in run.children.items():
        if not child.writes:
            continue
        earlier = [run.settled[step][0].number for step in path[: path.index(at)] if step in run.settled]
        if max(earlier, default=0) > child.writes[0].number:
            yield f"the task sent at {at} began before all was recorded: {child.writes[0]}"
    ends = [write.act for write in run.writes if write.fields.get("status") in ENDED]
    told = [write.act for write, outcome in zip(run.results, run.outcomes, strict=True) if outcome["status"] in TOLD]
    if told and (not ends or told[0] < ends[0]):
        yield f"the result backend was told by write #{told[0]}, the journal by {ends[:1]}"


# -- ends --------------------------------------------------------------------------------------------------------------


def every_attempt_that_is_cut_short_has_a_cause(run: Run) -> Iterator[str]:
    """A process dies because it was killed; a lease is lost because its keeper was frozen, or Redis away."""
    for attempt, successor in zip_longest(run.attempts, run.attempts[1:]):
        if not attempt.cut_short or run.task == "poisoned":
            continue
        since = attempt.lines[0].at if attempt.lines else _before(run, attempt)
        until = successor.lines[0].at if successor and successor.lines else float("inf")
        if not any(
            fault.cuts
            and fault.began <= until + SLACK
            and fault.ended >= since - SLACK
            and (not fault.pids or fault.pids & attempt.pids)
            for fault in run.faults
        ):
            yield f"attempt {attempt.number} of process {attempt.pid} was cut short between {since:.3f} and {until:.3f}"


def a_poison_is_parked(run: Run) -> Iterator[str]:
    """I14. It kills as many processes as it may, and then no more. The first may die amid progress, and is free."""
    for die in operations(run.program):
        if die["do"] == "die" and len(run.executions[die["at"]]) > 1 + MAX_RECOVERIES_OF_A_POISON + 1:
            yield f"{die['at']} killed {len(run.executions[die['at']])} processes"


def every_run_ends(run: Run) -> Iterator[str]:
    """I15. Told to the caller and to the journal, and nothing is left to be done."""
    if not run.outcomes or run.outcomes[-1]["status"] not in TOLD:
        yield f"the result backend was last told {run.outcomes[-1:]}"
    if run.journal.get("status") not in ENDED or "delivered" not in run.journal:
        yield f"the journal says {run.journal.get('status')}, delivered: {run.journal.get('delivered')}"
    if run.lapses:
        yield f"the run has ended, and is still among the {run.lapses}"


def the_index_says_what_has_become_of_it(run: Run) -> Iterator[str]:
    """I17. It is under one heading, whoever has moved it, and in which order; under none when it is purged."""
    headings = [] if "purged" in run.journal else [run.journal.get("status")]
    if run.writes and run.headings != headings:
        yield f"the journal says {run.journal.get('status')}, and it is in the index under {run.headings}"


# -- crowds ------------------------------------------------------------------------------------------------------------


def no_member_of_a_crowd_starts_after_its_verdict(run: Run) -> Iterator[str]:
    """Neither after it was recorded, nor after the code has seen what came of it: as any other step."""
    yield from no_step_runs_after_it_was_recorded(run)


def limits_of_a_crowd_are_exact(run: Run) -> Iterator[str]:
    """Each execution that begins was counted before; one that gives up has had all of them."""
    lost = sum(run.lost_its_journal(attempt.number) for attempt in run.attempts if attempt.lines)
    for step in operations(run.program):
        begins = run.executions[step["at"]] if step["do"] == "step" else []
        # What is said of the first of them is waited for; of others it may be lost with the journal.
        most = step["attempts"] + (lost if step["attempts"] > 1 else 0) if begins else 0
        if len(begins) > most:
            yield f"{step['at']} began {len(begins)} times, and was to begin {most} times at most: {begins}"
        if step["at"] in run.settled:
            entry = run.settled[step["at"]][1]
            if entry["state"] == "failed" and entry["attempts"] != step["attempts"]:
                yield f"{step['at']} gave up after {entry['attempts']} of {step['attempts']} executions"


def a_stale_crowd_starts_nothing(run: Run) -> Iterator[str]:
    """But what was frozen in the very moment between its last look and the action: one in each thread."""
    for attempt, successor in pairwise(run.attempts):
        taken_over = successor.lines[0].at if successor.lines else float("inf")
        late = [line for line in attempt.lines if line.event == "begins" and line.at > taken_over]
        for line in late[MOST_THREADS:]:
            yield f"attempt {successor.number} had begun at {taken_over:.3f}: {line}"


def a_crowd_comes_to_its_end(run: Run) -> Iterator[str]:
    """Every member has a value, or has spent its executions; none that was to succeed did so without being hit."""
    steps = {step["at"]: step for step in operations(run.program) if step["do"] == "step"}
    if not run.outcomes or run.outcomes[-1]["status"] != "SUCCESS":
        yield f"it was to succeed: {run.outcomes[-1:]}"
        return
    seen = dict(run.outcomes[-1]["result"])
    cut_short = any(attempt.cut_short for attempt in run.attempts)
    for at, step in steps.items():
        exhausted = seen.get(at) == f"RetriesExhausted at {at}"
        if not exhausted and seen.get(at) != told(value_of(run.id, at)):
            yield f"{at} came to {seen.get(at)}"
        # On a machine that is slow an action may outlast its timeout though it was not to hang: by its error it did.
        if exhausted and not cut_short and step["hangs"] < step["attempts"] and not _overran(run, at):
            yield f"{at} gave up, and nothing had hit it"


def _overran(run: Run, at: str) -> bool:
    """Tell whether an execution took longer than it may, by the clock."""
    begins = {(line.attempt, line.execution): line.at for line in run.executions[at]}
    ends = {(line.attempt, line.execution): line.at for line in run.of("ends") if line.step == at}
    durations = (ends.get(which, float("inf")) - began for which, began in begins.items())
    return sum(duration > TIMEOUT_OF_A_CROWD - PRECISION for duration in durations) >= run.settled[at][1]["attempts"]


INVARIANTS_OF_A_CROWD: tuple[Invariant, ...] = (
    no_member_of_a_crowd_starts_after_its_verdict,
    limits_of_a_crowd_are_exact,
    a_stale_crowd_starts_nothing,
    a_crowd_comes_to_its_end,
    an_idempotency_key_is_that_of_its_step,
    a_stale_attempt_writes_nothing,
    the_journal_only_grows,
    the_outcome_is_written_once,
    every_attempt_that_is_cut_short_has_a_cause,
    every_run_ends,
    a_purged_run_begins_no_more,
    the_index_says_what_has_become_of_it,
)

INVARIANTS: tuple[Invariant, ...] = (
    no_step_runs_after_it_was_recorded,
    no_step_runs_more_often_than_faults_explain,
    every_step_is_recorded_once_and_in_order,
    every_attempt_sees_what_the_program_says,
    every_attempt_sees_the_same,
    what_is_seen_is_what_is_recorded,
    draws_are_in_the_journal,
    an_idempotency_key_is_that_of_its_step,
    retries_keep_to_their_limits,
    only_steps_that_were_hit_give_up_early,
    a_sleep_lasts,
    a_pause_lasts,
    another_path_is_refused,
    a_run_keeps_to_one_path,
    no_run_fails_that_some_worker_can_finish,
    compensations_run_in_reverse_and_once,
    the_outcome_is_written_once,
    the_outcome_is_the_expected_one,
    a_stale_attempt_writes_nothing,
    a_stale_attempt_starts_no_step,
    the_journal_only_grows,
    nothing_leaves_before_it_is_recorded,
    every_attempt_that_is_cut_short_has_a_cause,
    a_poison_is_parked,
    every_run_ends,
    a_purged_run_begins_no_more,
    the_index_says_what_has_become_of_it,
)


def _is_final(name: str, value: str) -> bool:
    if name.startswith("step:"):
        return json.loads(value)["state"] in SETTLED
    return name.startswith(("uuid:", "time:", "now:")) or name in ("seed", "task", "fingerprint", "created")


def _mark(entry: str) -> str:
    """Return what an entry says of the execution that it is from."""
    found = MARK.findall(entry)
    return ":".join(found[-1]) if found else ""


def _failure(result: dict[str, object], run: str) -> str:
    """Return a failure in the result backend in the words of the oracle."""
    kind, message = str(result["exc_type"]), str(result["exc_message"][0])  # type: ignore[index]
    if kind == "TerminalError":
        return f"{kind} at {message.removesuffix(f' of {run}')}"
    if kind == "RetriesExhausted":
        return f"{kind} at {message.split(chr(39))[1]}"
    return kind


def _before(run: Run, attempt: Attempt) -> float:
    """Return a time before an attempt that left no line."""
    earlier = [line.at for line in run.lines if line.attempt < attempt.number]
    return earlier[-1] if earlier else 0.0
