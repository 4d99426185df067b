"""What the actions of programs do to the world, and what tasks see: one line each in a file that outlives everything.

A line is one `write` to a file opened for appending, so that the lines of all processes stand in the order in which
they were written, and a process that is killed has written a line or has not. Times are those of the machine's
monotonic clock, which is one for all processes and which no skewed clock touches.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """What happened in one attempt of a run.

    event: "starts" and "leaves" of the body; "asks" for a step or a sleep and "sees" what comes of it; in between
        "begins" and "ends" of each execution of an action.
    step: the place in the program.
    execution: which execution of the step it is, as the library says.
    text: what is seen; how an action or a body ends.
    mark: which execution a value is from; the idempotency key of one that begins.
    """

    run: str
    attempt: int
    event: str
    step: str = ""
    execution: int = 0
    text: str = ""
    mark: str = ""
    pid: int = field(default_factory=os.getpid)
    parent: int = field(default_factory=os.getppid)
    at: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        facts = [f"{self.at:.3f}", f"pid {self.pid}", f"attempt {self.attempt}", self.event, self.step]
        if self.execution:
            facts.append(f"execution {self.execution}")
        return " ".join([*facts, self.text[:200], self.mark]).rstrip()


def write(path: str, line: Line) -> None:
    os.write(_file(path, os.getpid()), json.dumps(asdict(line)).encode() + b"\n")


def mend(path: str, run: str) -> None:
    """Let the step succeed from now on for which a run is paused."""
    Path(f"{path}.mended.{run}").touch()


def is_mended(path: str, run: str) -> bool:
    return Path(f"{path}.mended.{run}").exists()


@cache
def _file(path: str, _pid: int) -> int:
    """Return the file, opened once per process: that is, not once for all that are forked from it."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


class Reader:
    """Reads the lines that were added since the last look."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""

    def new(self) -> Iterator[Line]:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            yield Line(**json.loads(line))

    def close(self) -> None:
        self._file.close()
