"""What must come of a program, worked out without Celery, Redis or the library."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from tests.chaos.programs import Operation, Program, told, value_of

UNKNOWN = None
"""In place of what the oracle cannot know: a drawn value."""


@dataclass(frozen=True)
class PlannedStep:
    """A step or a sleep that the program reaches: `executions` is how often its action runs when nothing goes wrong."""

    at: str
    executions: int
    state: str
    limit: int | None


@dataclass
class Expected:
    """What one run comes to: the path through its program, and the outcome."""

    steps: list[PlannedStep] = field(default_factory=list)
    """In program order, those that undo others among them."""
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    """What the code is given by its context, place by place."""
    error: str = ""
    """What the run fails with; without one it succeeds and returns what it has seen."""


class Failed(Exception):
    """The program goes on where this is caught."""


def expected(run: str, program: Program, unlucky: Collection[str] = (), new: Collection[str] = ()) -> Expected:
    """Work a program through.

    Args:
        run: The task id, of which all values depend.
        program: What is run.
        unlucky: The steps with limited executions that lost so many of them to faults that none was left.
        new: Where new code was the first to record what differs from the old.
    """
    oracle = _Oracle(run, frozenset(unlucky), frozenset(new))
    try:
        oracle.follow(program)
    except Failed as failed:
        oracle.says.error = failed.args[0]
    return oracle.says


class _Oracle:
    def __init__(self, run: str, unlucky: frozenset[str], new: frozenset[str]) -> None:
        self._run = run
        self._unlucky = unlucky
        self._new = new
        self.says = Expected()

    def follow(self, program: Program) -> None:
        for operation in program:
            getattr(self, f"_{operation['do']}")(operation)

    def _step(self, step: Operation) -> None:
        at, limit = step["at"], step["attempts"]
        if limit is not None and step["fails"] >= limit:
            self._fails(at, limit, limit, f"RetriesExhausted at {at}")
        elif at in self._unlucky:
            self._fails(at, step["fails"] + 1, limit, f"RetriesExhausted at {at}")
        elif step["then"] == "terminal":
            self._fails(at, step["fails"] + 1, limit, f"TerminalError at {at}")
        else:
            self._returns(at, step["fails"] + 1, limit, told(value_of(self._run, at)))

    def _draw(self, draw: Operation) -> None:
        self.says.seen.append((draw["at"], UNKNOWN))

    def _sleep(self, sleep: Operation) -> None:
        self.says.steps.append(PlannedStep(sleep["at"], 0, "sleeping", None))
        self.says.seen.append((sleep["at"], "None"))

    def _think(self, _think: Operation) -> None:
        """Nothing comes of it."""

    def _send(self, send: Operation) -> None:
        self.says.seen.append((f"{send['at']}.id", UNKNOWN))
        self._returns(send["at"], 1, None, told(value_of(self._run, send["at"])))

    def _try(self, block: Operation) -> None:
        try:
            self.follow(block["body"])
        except Failed:
            self.follow(block["rescue"])

    def _saga(self, saga: Operation) -> None:
        done: list[Operation] = []
        try:
            for part in saga["parts"]:
                self._step(part["step"])
                done.insert(0, part["undo"])
        except Failed:
            self.follow(done)
            raise

    def _deploy(self, change: Operation) -> None:
        self._step(change["new" if change["at"] in self._new else "old"])

    _patch = _deploy

    def _die(self, _die: Operation) -> None:
        raise Failed("RecoveryLimitExceeded")

    def _stray(self, stray: Operation) -> None:
        self._step(stray["step"])
        self.says.steps.append(PlannedStep(stray["then"]["at"], 1, "retrying", None))
        raise Failed("JournalMismatchError")

    def _pause(self, pause: Operation) -> None:
        at = pause["at"]
        if pause["then"] == "cancel":
            self._fails(at, 1, None, f"TaskCancelled at {at}", "cancelled")
        self._returns(at, 2, None, told(value_of(self._run, at)))

    def _crowd(self, crowd: Operation) -> None:
        for step in crowd["steps"]:
            with suppress(Failed):  # which its neighbours do not notice
                self._step({**step, "fails": step["hangs"], "then": "value"})

    def _returns(self, at: str, executions: int, limit: int | None, text: str) -> None:
        self.says.steps.append(PlannedStep(at, executions, "done", limit))
        self.says.seen.append((at, text))

    def _fails(self, at: str, executions: int, limit: int | None, error: str, state: str = "failed") -> NoReturn:
        self.says.steps.append(PlannedStep(at, executions, state, limit))
        self.says.seen.append((at, error))
        raise Failed(error)
