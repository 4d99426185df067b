"""What the commands print: tables for people, JSON for programs. Colours only where a terminal is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from celery_durable.operate.runs import Page
from celery_durable.records import AttemptRecord, Run, StepRecord

_COLOURS = {
    "SUCCESS": "green", "done": "green", "FAILURE": "red", "failed": "red", "DIED": "red", "REVOKED": "red",
    "cancelled": "red", "RETRY": "yellow", "retrying": "yellow", "STALLED": "yellow", "SUSPENDED": "cyan",
    "sleeping": "cyan", "STARTED": "blue", "started": "blue",
}  # fmt: skip
_WIDTH_WITHOUT_TERMINAL = 160


def print_json(records: Iterable[Run]) -> None:
    """One document per line. Times are in ISO 8601; what JSON does not know is written as text."""
    for record in records:
        click.echo(json.dumps(asdict(record), default=_plain))


def print_runs(page: Page, counts: Mapping[str, int]) -> None:
    """A table of runs, and how many there are in each state."""
    console = _console()
    if page:
        table = _table("id", "task", "state", "created", "what")
        for run in page:
            table.add_row(run.id, escape(run.task), _coloured(run.state), _time(run.created), escape(_what(run)))
        console.print(table)
    else:
        console.print("no runs match")
    console.print(", ".join(f"{state} {number}" for state, number in counts.items()) or "there are no runs")
    if page.cursor is not None:
        console.print(f"more: --cursor {page.cursor}")


def print_run(run: Run) -> None:
    """All that is known of a run."""
    console = _console()
    facts = {
        "id": run.id,
        "task": run.task,
        "state": _coloured(run.state),
        "arguments": _arguments(run),
        "created": _time(run.created),
        "ended": _time(run.ended),
        "worker": run.worker,
        "lease until": _time(run.lease),
        "waits for": run.waits_for,
        "until": _time(run.until),
        "build": run.build,
        "error": run.error,
    }
    head = Table(box=None, show_header=False, pad_edge=False)
    for name, fact in facts.items():
        if fact:
            head.add_row(name, fact if name == "state" else escape(fact))
    console.print(head)
    console.print(_attempts(run.attempts))
    if run.steps:
        console.print(_steps(run.steps))
    if run.actions:
        table = _table("what", "by", "at")
        for action in run.actions:
            table.add_row(action.what, escape(action.by), _time(action.at))
        console.print(table)


def _attempts(attempts: Iterable[AttemptRecord]) -> Table:
    table = _table("attempt", "began", "ended", "how", "worker", "build")
    for one in attempts:
        table.add_row(
            str(one.number), _time(one.began), _time(one.ended), _coloured(one.how), escape(one.worker),
            escape(one.build),
        )  # fmt: skip
    return table


def _steps(steps: Iterable[StepRecord]) -> Table:
    table = _table("place", "step", "state", "executions", "at", "ms", "what")
    for step in steps:
        name = step.name if step.kind == "step" else f"{step.kind} {step.name}"
        table.add_row(
            escape(step.place), escape(name), _coloured(step.state), str(step.executions), _time(step.at),
            "" if step.ms is None else str(step.ms), escape(step.error or step.preview),
        )  # fmt: skip
    return table


def _what(run: Run) -> str:
    if run.until is not None:
        return f"{run.waits_for} (until {_time(run.until)})"
    return run.error or _arguments(run)


def _arguments(run: Run) -> str:
    if run.args is None:
        return "(of a serializer that is not accepted here)"
    shown = [repr(argument) for argument in run.args]
    shown += [f"{name}={value!r}" for name, value in run.kwargs.items()]
    text = ", ".join(shown)
    return text if len(text) <= 200 else text[:197] + "..."


def _coloured(word: str) -> str:
    colour = _COLOURS.get(word)
    return f"[{colour}]{escape(word)}[/]" if colour else escape(word)


def _time(when: datetime | None) -> str:
    return "" if when is None else when.astimezone().isoformat(sep=" ", timespec="seconds")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == "id", overflow="fold")
    return table


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_WITHOUT_TERMINAL)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
