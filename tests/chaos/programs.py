"""Random programs as plain data: what a durable task is to do, and the values that its steps return.

    step   {"fails": 2, "then": "value" | "terminal", "by": "task" | "step", "attempts": 3 | null, "interval": 0.1,
            "seconds": 0.2, "async": false}
           fails so often, then returns its value or fails terminally; `by` says whose policy retries it
    draw   {"kind": "uuid" | "random" | "time" | "now"}
    sleep  {"seconds": 1.2}                                     of the run, which needs no worker meanwhile
    think  {"seconds": 0.2}                                     of the body, outside of any step
    send   {"task": "sync" | "async", "program": [...]}       a task of its own, which nobody waits for
    try    {"body": [...], "rescue": [...]}                   rescue is what follows a TerminalError of the body
    saga   {"parts": [{"step": ..., "undo": ...}, ...]}       a TerminalError undoes what was done, in reverse
    deploy {"old": ..., "new": ...}                           a step whose name new code has changed
    patch  {"old": ..., "new": ...}                           the same, brought into new code by ctx.patched
    die    {}                                                 a step that kills its process, whenever it runs
    stray  {"step": ..., "then": ...}                         a step that has another name once it is recorded
    pause  {"then": "retry" | "cancel", "seconds": 0.2}
           a step that fails until somebody mends what it needs; its task is paused, and then retried, or cancelled
    crowd  {"steps": [{"attempts": 2, "hangs": 1, "seconds": 0.1}, ...]}
           side by side in an async task, more of them than it has threads; an action that hangs outlasts its timeout

Each operation has its `do` and, as `at`, its place in the program, which is also the name of its step.
"""

import hashlib
import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

Operation = dict[str, Any]
Program = list[Operation]

MOST_OPERATIONS = 20
DEEPEST = 3

KINDS = {"step": 10, "draw": 4, "sleep": 2, "think": 2, "send": 1, "try": 3, "saga": 2}
NESTING = {"send", "try", "saga"}
KINDS_OF_A_DEPLOY = {**KINDS, "deploy": 1, "patch": 2}
"""Where workers with old and with new code stand side by side."""

TIMEOUT_OF_A_CROWD = 0.4
"""Seconds that an execution of a step may take there."""

MAX_RECOVERIES_OF_A_POISON = 2
"""How many attempts of a poisoned program may die in a row and be followed by another."""


def random_program(rng: random.Random, kinds: dict[str, int] = KINDS) -> Program:
    """Return a program of 3 to 20 operations."""
    program = _Author(rng, kinds, rng.randint(3, MOST_OPERATIONS)).block(depth=1)
    number(program)
    return program


def poisoned_program(rng: random.Random) -> Program:
    """Return a program that does a little, and then kills every process that it gets into."""
    program = [_Author(rng, {"step": 1}, 1).sound_step(), {"do": "die"}]
    number(program)
    return program


def straying_program(rng: random.Random) -> Program:
    """Return a program whose next attempt takes another path than the one before, which had to be tried again."""
    author = _Author(rng, {"step": 1}, 1)
    recorded, tried_again = {**author.sound_step(), "fails": 0}, {**author.sound_step(), "fails": 1}
    program = [author.sound_step(), {"do": "stray", "step": recorded, "then": tried_again}]
    number(program)
    return program


def pausing_program(rng: random.Random) -> Program:
    """Return a program whose task is paused once; its other steps are not for its policy to retry."""
    author = _Author(rng, {"step": 1}, 1)
    before, rescue, after = ({**author.sound_step(), "by": "step"} for _ in range(3))
    pause = {"do": "pause", "then": rng.choice(["retry", "cancel"]), "seconds": rng.choice([0, 0.05, 0.3])}
    program: Program = [before, {"do": "try", "body": [pause], "rescue": [rescue]}, after]
    number(program)
    return program


def crowded_program(rng: random.Random) -> Program:
    """Return a program whose steps need more threads than there are, some of them for longer than they may."""

    def member() -> Operation:
        attempts = rng.choice([1, 2, 2, 3])
        hangs = rng.choices([0, 1, attempts], [6, 2, 1])[0]
        return {"do": "step", "attempts": attempts, "hangs": hangs, "seconds": rng.choice([0, 0.05, 0.2])}

    program: Program = [{"do": "crowd", "steps": [member() for _ in range(rng.randint(3, 12))]}]
    number(program)
    return program


def number(program: Program, prefix: str = "") -> None:
    """Give each operation its place."""
    for place, operation in enumerate(program, 1):
        at = operation["at"] = f"{prefix}{place}"
        if operation["do"] == "stray":
            operation["step"]["at"], operation["then"]["at"] = at, f"{at}.then"
        if operation["do"] in ("deploy", "patch"):
            operation["old"]["at"], operation["new"]["at"] = f"{at}.old", f"{at}.new"
        number(operation.get("body", []), f"{at}.")
        number(operation.get("rescue", []), f"{at}.rescue.")
        number(operation.get("program", []))
        number(operation.get("steps", []), f"{at}.")
        for part, pair in enumerate(operation.get("parts", []), 1):
            pair["step"]["at"] = f"{at}.{part}"
            pair["undo"]["at"] = f"{at}.{part}.undo"


def operations(program: Program) -> Iterator[Operation]:
    """Yield all operations of a task's own program, at every depth."""
    for operation in program:
        yield operation
        yield from operations(operation.get("body", []))
        yield from operations(operation.get("rescue", []))
        yield from operations(operation.get("steps", []))
        for pair in operation.get("parts", []):
            yield from (pair["step"], pair["undo"])
        if operation["do"] == "stray":
            yield operation["then"]
        if operation["do"] in ("deploy", "patch"):
            yield from (operation["old"], operation["new"])


class _Author:
    """Writes one program, until the budget of operations is spent."""

    def __init__(self, rng: random.Random, kinds: dict[str, int], budget: int) -> None:
        self._rng = rng
        self._kinds = kinds
        self._budget = budget

    def block(self, depth: int, most: int = MOST_OPERATIONS) -> Program:
        written: Program = []
        while self._budget > 0 and len(written) < most:
            written.append(self._operation(depth))
        return written

    def _operation(self, depth: int) -> Operation:
        self._budget -= 1
        possible = {kind: weight for kind, weight in self._kinds.items() if depth < DEEPEST or kind not in NESTING}
        if self._budget < 2:
            possible = {kind: weight for kind, weight in possible.items() if kind not in NESTING}
        [kind] = self._rng.choices(list(possible), list(possible.values()))
        return {"do": kind, **getattr(self, f"_{kind}")(depth)}

    def _step(self, depth: int) -> Operation:
        rng = self._rng
        fails = rng.choices([0, 1, 2, 3], [6, 2, 1, 1])[0]
        # What ends the whole program early is rare; what a block around it catches is not.
        terminal = rng.random() < (0.03 if depth == 1 else 0.15)
        by = rng.choice(["task", "step", "step"])
        attempts = rng.choice([None, fails + rng.randint(1, 3)]) if by == "step" else None
        if by == "step" and rng.random() < (0.03 if depth == 1 else 0.15):
            fails = attempts = rng.randint(1, 3)
        return {
            "fails": fails,
            "then": "terminal" if terminal else "value",
            "by": by,
            "attempts": attempts,
            "interval": rng.choice([0.01, 0.05, 0.2]),
            "seconds": rng.choice([0, 0, 0, 0.05, 0.3, 0.6]),
            "async": rng.random() < 0.3,
        }

    def sound_step(self) -> Operation:
        """Return a step that succeeds in the end, whatever happens to its processes."""
        return {"do": "step", **self._step(1), "then": "value", "by": "task", "attempts": None}

    def _deploy(self, _depth: int) -> Operation:
        return {"old": self.sound_step(), "new": self.sound_step()}

    _patch = _deploy

    def _draw(self, _depth: int) -> Operation:
        return {"kind": self._rng.choice(["uuid", "random", "time", "now"])}

    def _sleep(self, _depth: int) -> Operation:
        return {"seconds": round(self._rng.uniform(0.1, 1.5), 2)}

    def _think(self, _depth: int) -> Operation:
        return {"seconds": self._rng.choice([0.05, 0.2, 0.4])}

    def _send(self, depth: int) -> Operation:
        # A step that is done again sends the task again, which reopens one that has failed. This one never fails.
        body = self.block(depth + 1, most=4)
        return {"task": self._rng.choice(["sync", "async"]), "program": [{"do": "try", "body": body, "rescue": []}]}

    def _try(self, depth: int) -> Operation:
        body = self.block(depth + 1, most=5)
        # What rescues does not fail itself: nothing of it is lost to an error that nobody expects.
        return {"body": body, "rescue": [self.sound_step() for _ in range(self._rng.randint(0, 2))]}

    def _saga(self, _depth: int) -> Operation:
        parts = []
        while self._budget > 0 and len(parts) < 4:
            self._budget -= 1
            parts.append({"step": {"do": "step", **self._step(DEEPEST)}, "undo": self.sound_step()})
        return {"parts": parts}


# -- values ------------------------------------------------------------------------------------------------------------


def value_of(run: str, at: str) -> Any:
    """Return what the step at this place returns in this run: one of all the types that a journal keeps."""
    digest = hashlib.sha256(f"{run} {at}".encode()).digest()
    number = int.from_bytes(digest[:6], "big")
    values = [
        digest.hex(),
        'straße ☃ \n\x00 "quoted" \\ \'',
        number,
        -number / 7,
        number % 2 == 0,
        None,
        "",
        [number, [digest.hex(), None], {}],
        {"number": number, "nested": {"of": [1.5, "x"]}},
        datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=number),
        Decimal(number) / 1000,
        digest,
        {number, 7},
        UUID(bytes=digest[:16], version=4),
        "long " * 2000,
    ]
    return values[digest[-1] % len(values)]


def told(value: Any) -> str:
    """Return a value as text that tells what differs, be it only the type."""
    return repr(sorted(value)) + " as a set" if isinstance(value, set) else repr(value)
