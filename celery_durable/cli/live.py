"""A run that is followed: on a terminal its tables, which change; elsewhere a line per change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

import click
from rich.console import Console
from rich.live import Live

from celery_durable.records import Run, StepRecord

from .output import console
from .printable import one_line
from .runs import view_of, what_of


def print_changes(changes: Iterable[Run]) -> None:
    """Show a run, and show it again whenever it has changed."""
    out = console()
    if out.is_interactive:
        _print_tables(out, changes)
        return
    shown = None
    for run in changes:
        for line in lines_between(shown, run):
            click.echo(f"{datetime.now().astimezone():%H:%M:%S} {one_line(line)}")
        shown = run


def _print_tables(out: Console, changes: Iterable[Run]) -> None:
    with Live(console=out, auto_refresh=False) as live:
        for run in changes:
            is_over = run.ended is not None
            live.update(view_of(run, out.width, None if is_over else out.height), refresh=True)


def lines_between(before: Run | None, run: Run) -> Iterator[str]:
    """What has changed in a run, a line for each change. Nothing *before*: how it is."""
    if before is None:
        yield f"{run.task}, steps and waits recorded: {len(run.steps)}"
    else:
        known = {step.place: step for step in before.steps}
        yield from (_line_of(step) for step in run.steps if known.get(step.place) != step)
        yield from (f"{action.what} by {action.by or 'somebody'}" for action in run.actions[len(before.actions) :])
    if before is None or _state_of(before) != _state_of(run):
        yield _state_of(run)


def _line_of(step: StepRecord) -> str:
    took = "" if step.ms is None else f" in {step.ms} ms"
    error = f": {step.error}" if step.error else ""
    execution = f", execution {step.executions}" if step.executions else ""
    return f"{step.kind} {step.name!r} at {step.place}: {step.state}{took}{execution}{error}"


def _state_of(run: Run) -> str:
    attempt = f"{run.state}, attempt {run.attempts[-1].number if run.attempts else 0}"
    return f"{attempt}: {what_of(run)}" if run.until or run.error else attempt
