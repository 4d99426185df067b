"""All that is known of one run when its round is over, and what follows from it."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tests.chaos.effects import Line
from tests.chaos.history import Write
from tests.chaos.oracle import Expected, expected
from tests.chaos.programs import Program, operations

ENDED = ("succeeded", "failed")
SETTLED = ("done", "failed", "cancelled", "sleeping")
TOLD = ("SUCCESS", "FAILURE")
MARK = re.compile(r'"(\d+):([0-9a-f]{12})"')


@dataclass(frozen=True)
class Struck:
    """A fault that happened: to these processes, or to all, from one time of the monotonic clock to another."""

    kind: str
    began: float
    ended: float
    pids: frozenset[int] = frozenset()
    cuts: bool = False
    """Whether it may cut an attempt short."""
    silences: bool = False
    """Whether the journal did not answer meanwhile."""

    def __str__(self) -> str:
        return f"{self.began:.3f}..{self.ended:.3f} {self.kind} {sorted(self.pids) or ''}"


@dataclass
class Attempt:
    """One attempt, as the history of the journal and the lines of its process show it."""

    number: int
    opened: Write
    ended: Write | None = None
    lines: list[Line] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return int(self.opened.fields["owner"].rpartition(":")[2])

    @property
    def pids(self) -> set[int]:
        """Its process, and the worker that this belongs to."""
        return {self.pid, *(line.parent for line in self.lines[:1])}

    @property
    def cut_short(self) -> bool:
        """Whether the journal was never told how the attempt ended: it died, or lost its lease or its journal."""
        return self.ended is None

    @property
    def unfinished_step(self) -> str | None:
        """The step that was asked for, and of which nothing was seen."""
        asked = [line.step for line in self.lines if line.event == "asks"]
        seen = {line.step for line in self.lines if line.event == "sees"}
        return asked[-1] if asked and asked[-1] not in seen else None


@dataclass
class Run:
    """One run: its program, what it left in the world and in Redis, and what was done to it."""

    id: str
    task: str
    program: Program
    lines: list[Line] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    """The changes of its journal."""
    results: list[Write] = field(default_factory=list)
    """The changes of its entry in the result backend."""
    faults: list[Struck] = field(default_factory=list)
    """All that happened in its round."""
    lapses: list[str] = field(default_factory=list)
    """Where the journal still keeps it at the end: among the leases, or among the runs that are due."""
    headings: list[str] = field(default_factory=list)
    """Where it is in the index at the end."""
    children: dict[str, "Run"] = field(default_factory=dict)
    """The runs that it sent, by the place of the sending."""

    # -- in the journal

    @cached_property
    def journal(self) -> dict[str, str]:
        """The journal as it stands at the end."""
        fields: dict[str, str] = {}
        for write in self.writes:
            fields |= write.fields
            for name in write.gone:
                fields.pop(name, None)
        return fields

    @cached_property
    def attempts(self) -> list[Attempt]:
        found: list[Attempt] = []
        for write in self.writes:
            if "attempt" in write.fields:
                found.append(Attempt(int(write.fields["attempt"]), write))
            elif "status" in write.fields and found and found[-1].ended is None:
                found[-1].ended = write
        by_number = {attempt.number: attempt for attempt in found}
        for line in self.lines:
            if line.attempt in by_number:
                by_number[line.attempt].lines.append(line)
        return found

    @cached_property
    def settled(self) -> dict[str, tuple[Write, dict[str, Any]]]:
        """Where each step got its final entry first, by its name, as that of each sleep."""
        found: dict[str, tuple[Write, dict[str, Any]]] = {}
        for write, _, entry in self.entries():
            if entry["state"] in SETTLED:
                found.setdefault(entry["name"], (write, entry))
        return found

    def entries(self) -> Iterator[tuple[Write, str, dict[str, Any]]]:
        """Yield everything that was ever written of a step: the write, the field and the entry."""
        for write in self.writes:
            for name, text in write.fields.items():
                if name.startswith("step:"):
                    yield write, name, json.loads(text)

    @cached_property
    def path(self) -> list[str]:
        """The names of the recorded steps, by their positions."""
        positions = sorted(int(name[5:]) for name in self.journal if name.startswith("step:"))
        return [json.loads(self.journal[f"step:{position}"])["name"] for position in positions]

    def lost_its_journal(self, number: int) -> bool:
        """Tell whether the journal was away when this attempt was cut short."""
        attempt = next(attempt for attempt in self.attempts if attempt.number == number)
        began, until = attempt.lines[0].at, attempt.lines[-1].at
        silences = (fault for fault in self.faults if fault.silences)
        return attempt.cut_short and any(fault.began <= until + 1 and fault.ended >= began for fault in silences)

    # -- in the world

    def of(self, event: str) -> list[Line]:
        return [line for line in self.lines if line.event == event]

    @cached_property
    def executions(self) -> dict[str, list[Line]]:
        """The beginnings of each step's action."""
        found: dict[str, list[Line]] = defaultdict(list)
        for line in self.of("begins"):
            found[line.step].append(line)
        return found

    @cached_property
    def hits(self) -> Counter[str]:
        """How many executions of each step were cut short, or lost, with their attempts."""
        hits: Counter[str] = Counter()
        for attempt in self.attempts:
            step = attempt.unfinished_step
            if attempt.cut_short and step:
                executions = sum(line.event == "begins" and line.step == step for line in attempt.lines)
                # What is retried inside an attempt is counted by entries that nobody waits for.
                hits[step] += max(1, executions) if self.lost_its_journal(attempt.number) else 1
        return hits

    # -- what it came to

    @cached_property
    def expected(self) -> Expected:
        """What the oracle says, once it is told which steps the faults left without executions."""
        return expected(self.id, self.program, self.unlucky, self.new)

    @cached_property
    def paths(self) -> dict[str, set[str]]:
        """Where old code and new code differ: what was ever recorded there, "old" or "new"."""
        ways: dict[str, set[str]] = {
            operation["at"]: set() for operation in operations(self.program) if operation["do"] in ("deploy", "patch")
        }
        for _, _, entry in self.entries():
            at, _, way = entry["name"].rpartition(".")
            if at in ways:
                ways[at].add(way)
        return ways

    @cached_property
    def new(self) -> set[str]:
        """Where the run took the path of new code."""
        return {at for at, ways in self.paths.items() if "new" in ways}

    @cached_property
    def abandoned(self) -> set[str]:
        """The steps that began on a path that was not taken: their process died before any of it was recorded."""
        other = {f"{at}.{'old' if at in self.new else 'new'}" for at in self.paths}
        return other & self.executions.keys()

    @cached_property
    def unlucky(self) -> set[str]:
        """The steps that gave up, and were hit."""
        return {
            name
            for name, (_, entry) in self.settled.items()
            if entry["state"] == "failed" and entry["error"]["type"] == "RetriesExhausted" and self.hits[name]
        }

    @cached_property
    def outcomes(self) -> list[dict[str, Any]]:
        """What the result backend held, one after the other."""
        return [json.loads(write.fields[""]) for write in self.results if "" in write.fields]

    def dump(self) -> str:
        """Return all of it as text, for who has to find out what happened."""
        since, until = (self.lines[0].at, self.lines[-1].at) if self.lines else (0.0, float("inf"))
        meanwhile = [fault for fault in self.faults if fault.ended >= since - 1 and fault.began <= until + 1]
        return "\n".join(
            [
                f"task {self.id} of chaos.{self.task}",
                f"program: {json.dumps(self.program)}",
                f"expected: {self.expected}",
                "-- history of the journal",
                *map(str, self.writes),
                "-- effects",
                *map(str, self.lines),
                "-- result backend",
                *(f"#{write.number} {text}" for write, text in zip(self.results, self.outcomes, strict=True)),
                "-- still in the journal's sets",
                *self.lapses,
                "-- faults meanwhile",
                *map(str, meanwhile),
            ]
        )
