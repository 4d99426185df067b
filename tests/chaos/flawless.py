"""The evidence that a run leaves in a world without faults, or with one death: what invariants are tried on."""

import json
from typing import Any
from uuid import UUID, uuid5

from tests.chaos.effects import Line
from tests.chaos.evidence import Run
from tests.chaos.history import Write
from tests.chaos.oracle import PlannedStep, expected
from tests.chaos.programs import Program, operations

PID, PARENT = 100, 99
NAMESPACE = UUID(int=0)


def flawless(program: Program, dies_in: str = "") -> Run:
    """Return what a run of this program leaves; each failure and each sleep ends an attempt.

    Its process dies once, if it is to, in the first execution of a step.
    """
    return _Author(program, dies_in).write()


class _Author:
    def __init__(self, program: Program, dies_in: str) -> None:
        self._run = Run("run", "sync", program)
        self._says = expected("run", program)
        self._dies_in = dies_in
        self._operations = {operation["at"]: operation for operation in operations(program)}
        self._attempt = 0
        self._clock = 1000.0
        self._numbers = 0
        self._unsent: dict[str, str] = {}
        self._position = 0

    def write(self) -> Run:
        steps = {step.at: step for step in self._says.steps}
        self._begin()
        for at, text in self._says.seen:
            if at in steps:
                self._position += 1
                self._take(steps[at], str(text))
            else:
                self._draw(at)
        for step in self._says.steps[len([at for at, _ in self._says.seen if at in steps]) :]:
            self._position += 1
            self._take(step, "")
        self._end()
        return self._run

    # -- attempts

    def _begin(self) -> None:
        self._attempt += 1
        seen = list(dict.fromkeys((line.step, line.text, line.mark) for line in self._run.of("sees")))
        self._record(attempt=str(self._attempt), status="running", owner=f"host:{PID}")
        self._tell("starts")
        for at, text, mark in seen:
            if mark or text == "None":
                self._tell("asks", at)
            self._tell("sees", at, text=text, mark=mark)

    def _suspend(self, seconds: float, **fields: str) -> None:
        self._record(status="suspended", **fields)
        self._clock += seconds
        self._begin()

    def _end(self) -> None:
        self._tell("leaves")
        error = self._says.error
        self._record(status="failed" if error else "succeeded", outcome="...")
        seen = [[line.step, line.text] for line in self._run.of("sees") if line.attempt == self._attempt]
        result = {"status": "FAILURE", "result": _failure(error, self._run.id)}
        self._result(result if error else {"status": "SUCCESS", "result": seen})
        self._record(delivered="1")
        self._run.headings = ["failed" if error else "succeeded"]

    # -- operations

    def _draw(self, at: str) -> None:
        drawn = str(uuid5(NAMESPACE, at))
        self._unsent[f"uuid:{at}"] = drawn
        self._tell("sees", at, text=drawn)
        if at.endswith(".id"):
            sending = self._operations[at.removesuffix(".id")]
            self._run.children[sending["at"]] = Run(drawn, sending["task"], sending["program"])

    def _take(self, step: PlannedStep, text: str) -> None:
        operation = self._operations[step.at]
        self._tell("asks", step.at)
        if step.state == "sleeping":
            self._suspend(operation["seconds"], **self._entry(step, 0))
            self._tell("asks", step.at)
            self._tell("sees", step.at, text=text)
            return
        if operation["do"] == "pause":
            self._pause(step, operation["then"])
        if step.state == "cancelled":
            self._record(**self._entry(step, 1))
            self._tell("sees", step.at, text=text)
            return
        if step.at == self._dies_in:
            self._tell("begins", step.at, 1, mark=f"key of {step.at}")
            self._begin()
            self._tell("asks", step.at)
        for execution in range(1, step.executions) if "fails" in operation else ():
            self._execute(step, execution, "fails")
            wait = operation["interval"] * 2 ** (execution - 1)
            self._suspend(wait, **self._entry(step, execution, state="retrying"))
            self._tell("asks", step.at)
        if step.state == "retrying":
            self._execute(step, 1, "fails")
            self._suspend(operation["interval"], **self._entry(step, 1))
            return
        mark = self._execute(step, step.executions, "value" if step.state == "done" else "fails")
        self._record(**self._entry(step, step.executions, text=text, mark=mark))
        self._tell("sees", step.at, text=text, mark=mark)
        if step.at in self._run.children:
            child = self._run.children[step.at]
            child.writes.append(self._next("child", attempt="1"))

    def _pause(self, step: PlannedStep, then: str) -> None:
        """A paused task is retried, which takes its step back, or cancelled."""
        self._execute(step, 1, "fails")
        self._record(status="suspended", waits="pause", **self._entry(step, 1, state="retrying"))
        self._record(waits="retry", **{"retry": {"reopened": "..."}, "cancel": {"cancel": "requested"}}[then])
        self._begin()
        self._tell("asks", step.at)

    def _execute(self, step: PlannedStep, execution: int, how: str) -> str:
        self._tell("begins", step.at, execution, mark=f"key of {step.at}")
        mark = f"{self._attempt}:{self._numbers:012x}"
        self._tell("ends", step.at, execution, how, mark)
        return mark

    def _entry(
        self, step: PlannedStep, attempts: int, state: str = "", text: str = "", mark: str = ""
    ) -> dict[str, str]:
        facts: dict[str, Any] = {"name": step.at, "state": state or step.state, "attempts": attempts}
        if facts["state"] == "failed":
            facts["error"] = {"type": text.partition(" ")[0], "metadata": {"by": mark}}
        elif facts["state"] == "done":
            facts["value"] = ["...", mark]
        return {f"step:{self._position}": json.dumps(facts)}

    # -- what is left

    def _tell(self, event: str, at: str = "", execution: int = 0, text: str = "", mark: str = "") -> None:
        self._clock += 0.001
        line = Line(self._run.id, self._attempt, event, at, execution, text, mark, PID, PARENT, self._clock)
        self._run.lines.append(line)

    def _record(self, **fields: str) -> None:
        self._run.writes.append(self._next("run", **self._unsent, **fields))
        self._unsent = {}

    def _result(self, outcome: dict[str, Any]) -> None:
        self._run.results.append(self._next("result", **{"": json.dumps(outcome)}))

    def _next(self, key: str, **fields: str) -> Write:
        self._numbers += 1
        return Write(self._numbers, 0, key, fields)


def _failure(error: str, run: str) -> dict[str, Any]:
    kind, _, at = error.partition(" at ")
    messages = {"TerminalError": f"{at} of {run}", "RetriesExhausted": f"step {at!r} failed"}
    return {"exc_type": kind, "exc_message": [messages.get(kind, "")]}
