"""One round: programs in flight on a stage where faults strike, the wait for all of them to end, and the verdict."""

import random
import shutil
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from tests.chaos import history
from tests.chaos.effects import Line
from tests.chaos.evidence import Run, Struck
from tests.chaos.faults import Injector
from tests.chaos.history import Write
from tests.chaos.invariants import Violation, violations
from tests.chaos.programs import (
    KINDS,
    KINDS_OF_A_DEPLOY,
    Operation,
    crowded_program,
    operations,
    pausing_program,
    poisoned_program,
    random_program,
    straying_program,
)
from tests.chaos.stage import RESULT, UNREACHABLE, Stage, Terms

IN_FLIGHT = 30
PROPORTIONS = (80, 3, 3, 10, 4)
"""Of programs that are random, that stray from their path, that are poisoned, that are crowded, and that are paused."""
_AUTHORS = (random_program, straying_program, poisoned_program, crowded_program, pausing_program)
_TASKS = {poisoned_program: "poisoned", crowded_program: "crowd", pausing_program: "pausing"}
"""The tasks for programs that need one of their own."""
LONGEST_END = 90
"""Seconds after the last fault is healed, within which every run ends: leases lapse, retries and sleeps come due."""
LONGEST_END_OF_A_DEPLOY = 400
"""The same where a run may meet workers, one after the other, whose code does not fit: each time twice as late."""
DELAYING = {
    "kill journal",
    "kill both",
    "kill broker",
    "kill worker",
    "freeze worker",
    "skew clock",
    "shut down worker",
}
"""What delays a takeover: a server is away, or there is no other worker."""
UNDELIVERED = 5
"""Seconds after which a message that began nothing is sent again."""


@dataclass
class Report:
    """What came of one round, or of several."""

    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    takeovers: list[float] = field(default_factory=list)
    """Seconds from the SIGKILL of a worker to the next attempt of a run that it was executing."""
    violations: list[Violation] = field(default_factory=list)
    attempts: int = 0
    cut_short: int = 0
    dump: Path | None = None
    """All that is known of the runs that contradict an invariant, beside the logs of the workers."""

    def add(self, other: "Report") -> None:
        self.runs += other.runs
        self.faults += other.faults
        self.takeovers += other.takeovers
        self.violations += other.violations
        self.attempts += other.attempts
        self.cut_short += other.cut_short

    def summary(self) -> str:
        return f"{self.runs} programs, {self.faults.total()} faults, {len(self.violations)} violations"

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {kind}" for kind, count in self.faults.most_common())
        lines = [
            f"programs: {self.runs}, in {self.attempts} attempts, of which {self.cut_short} were cut short",
            f"faults: {self.faults.total()} ({faults})",
            f"violations: {len(self.violations)}",
        ]
        if times := sorted(self.takeovers):
            spread = f"{times[0]:.1f} / {statistics.median(times):.1f} / {times[-1]:.1f} s"
            lines.append(f"takeovers after SIGKILL of a worker: {len(times)}, min / median / max {spread}")
        return "\n".join(lines)


class Round:
    """One round; the same seed gives the same programs, settings and order of faults."""

    def __init__(self, seed: int, programs: int, seconds: float) -> None:
        self.seed = seed
        self.terms = Terms.drawn(self._random("terms"))
        self._programs = programs
        self._seconds = seconds
        self._pending: set[str] = set()
        self._runs: dict[str, Run] = {}
        self._children: dict[tuple[str, str], str] = {}
        self._sent_at: dict[str, float] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="chaos-"))

    def play(self) -> Report:
        """Play it to its end, and hold every run against the invariants.

        Programs are sent, and faults strike, until there are enough of them or the time is over.
        """
        with Stage(self.terms, self._random("stage"), self._folder) as stage:
            injector = Injector(stage, self._random("faults"))
            self._send_and_strike(stage, injector)
            injector.heal_all()
            self._await_ends(stage, injector)
            report = self._report(stage, injector)
        if report.violations:
            report.dump = self._folder / "violations"
            report.dump.write_text(_dump(report.violations))
        else:
            shutil.rmtree(self._folder)
        return report

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {purpose}")

    # -- while it is played

    def _send_and_strike(self, stage: Stage, injector: Injector) -> None:
        programs = self._written()
        give_up_at = time.monotonic() + self._seconds
        while time.monotonic() < give_up_at and not (self._all_sent and len(self._pending) < IN_FLIGHT / 3):
            with suppress(*UNREACHABLE):
                self._look(stage)
            while stage.broker.running and len(self._pending) < IN_FLIGHT and not self._all_sent:
                self._send(stage, next(programs))
            injector.tick()
            injector.rest()

    def _written(self) -> Iterator[Run]:
        rng = self._random("programs")
        while True:
            run = str(UUID(int=rng.getrandbits(128), version=4))
            write = rng.choices(_AUTHORS, PROPORTIONS)[0]
            task = _TASKS.get(write) or rng.choice(["sync", "async"])
            kinds = KINDS_OF_A_DEPLOY if self._is_deploy else KINDS
            yield Run(run, task, random_program(rng, kinds) if write is random_program else write(rng))

    @property
    def _is_deploy(self) -> bool:
        return len(set(self.terms.builds)) > 1

    @property
    def _all_sent(self) -> bool:
        return len(self._runs) >= self._programs

    def _send(self, stage: Stage, run: Run) -> None:
        self._await(run)
        stage.send(run)

    def _await(self, run: Run) -> None:
        self._runs[run.id] = run
        self._pending.add(run.id)
        self._sent_at[run.id] = time.monotonic()

    def _look(self, stage: Stage) -> None:
        """Learn what has happened."""
        for line in stage.reader.new():
            self._runs[line.run].lines.append(line)
            self._meet_child(line)
            if line.event == "leaves":
                stage.executing.discard(line.pid)
            else:
                stage.executing.add(line.pid)
        self._pending -= stage.ended(self._pending)
        if pausing := [self._runs[run] for run in self._pending if self._runs[run].task == "pausing"]:
            stage.end_pauses(pausing)
        self._send_again_what_began_nothing(stage)

    def _meet_child(self, line: Line) -> None:
        """A run that another run sends is known by its id first, and then by its sending."""
        if line.event == "sees" and line.step.endswith(".id"):
            self._children[line.run, line.step.removesuffix(".id")] = line.text
        if line.event == "begins" and (child := self._children.get((line.run, line.step))):
            parent = self._runs[line.run]
            if child not in self._runs:
                sending = _operation(parent, line.step)
                self._await(Run(child, sending["task"], sending["program"]))
            parent.children[line.step] = self._runs[child]

    def _send_again_what_began_nothing(self, stage: Stage) -> None:
        """Do for the broker what it does not do, or an hour later: a worker that dies takes messages with it.

        Runs that have not begun are not durable yet; no message of any other one is sent again here.
        """
        late = time.monotonic() - UNDELIVERED
        unborn = [self._runs[run] for run in self._pending if not self._runs[run].lines and self._sent_at[run] < late]
        if unborn:
            waiting = {message["headers"]["id"] for message in stage.waiting()}
            for run in unborn:
                self._sent_at[run.id] = time.monotonic()
                if run.id not in waiting and not stage.has_begun(run.id):
                    stage.send_again(run)

    # -- when all is healed

    def _await_ends(self, stage: Stage, injector: Injector) -> None:
        give_up_at = time.monotonic() + (LONGEST_END_OF_A_DEPLOY if self._is_deploy else LONGEST_END)
        while time.monotonic() < give_up_at and not self._is_quiet(stage):
            injector.rest()
        self._look(stage)

    def _is_quiet(self, stage: Stage) -> bool:
        """Tell whether all runs have ended, and nothing is left that could wake one."""
        self._look(stage)
        return not self._pending and not stage.waiting() and not stage.kept()

    # -- the verdict

    def _report(self, stage: Stage, injector: Injector) -> Report:
        self._complete(stage, injector.struck)
        runs = list(self._runs.values())
        return Report(
            runs=len(runs),
            faults=Counter(struck.kind for struck in injector.struck),
            takeovers=[seconds for run in runs for seconds in _takeovers(run)],
            violations=[violation for run in runs for violation in violations(run)],
            attempts=sum(len(run.attempts) for run in runs),
            cut_short=sum(attempt.cut_short for run in runs for attempt in run.attempts),
        )

    def _complete(self, stage: Stage, struck: list[Struck]) -> None:
        """Give each run what the servers and the faults know of it."""
        kept, headings = stage.kept(), stage.headings()
        writes: dict[str, list[Write]] = defaultdict(list)
        results: dict[str, list[Write]] = defaultdict(list)
        for write in history.read(stage.journal.directory):
            if write.key.startswith(RESULT):
                results[write.key.removeprefix(RESULT)].append(write)
            kind, _, run = write.key.rpartition(":")
            if kind.endswith(":run"):
                writes[run].append(write)
        for run in self._runs.values():
            run.writes, run.results = writes[run.id], results[run.id]
            run.faults = struck
            run.lapses = kept.get(run.id, [])
            run.headings = headings.get(run.id, [])


def _dump(found: list[Violation]) -> str:
    runs = {violation.run.id: violation.run for violation in found}
    by_run = [[run.dump(), *(f"!! {each}" for each in found if each.run is run)] for run in runs.values()]
    return "\n\n".join("\n".join(lines) for lines in by_run)


def _operation(run: Run, at: str) -> Operation:
    return next(operation for operation in operations(run.program) if operation["at"] == at)


def _takeovers(run: Run) -> Iterator[float]:
    """Yield how long a SIGKILL of a worker kept a run from its next attempt, where nothing else delayed it."""
    for death in run.faults:
        for attempt, successor in pairwise(run.attempts):
            if death.kind != "kill worker" or death.pids.isdisjoint({attempt.pid}) or not successor.lines:
                continue
            begun, goes_on = attempt.lines[0].at if attempt.lines else death.began, successor.lines[0].at
            others = (fault for fault in run.faults if fault is not death and fault.kind in DELAYING)
            calm = not any(fault.began <= goes_on and fault.ended >= death.began for fault in others)
            if attempt.cut_short and begun < death.began < goes_on and calm:
                yield goes_on - death.began
