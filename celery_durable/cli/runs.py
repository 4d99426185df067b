"""Runs as tables: a list of them, and all that is known of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from textwrap import fill

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from celery_durable.operate.runs import Page
from celery_durable.records import AttemptRecord, Run, StepRecord, arguments_of, cut

from .output import coloured, console, local_time, shown, table, time_cell

_WIDE = 120
"""On narrower terminals, what there is to say of a run stands below its id."""
_LENGTH_OF_ID = 36
_LONGEST_TEXT = 200


def print_runs(page: Page, counts: Mapping[str, int]) -> None:
    """A table of runs, and how many there are in each state."""
    out = console()
    if page:
        out.print(_table_of(page) if out.width >= _WIDE else _narrow_table_of(page))
    else:
        out.print("no run matches")
    by_state = ", ".join(f"{state} {number}" for state, number in counts.items())
    out.print(f"all runs: {by_state}" if by_state else "there are no runs")
    if page.cursor is not None:
        out.print(shown(f"more: --cursor {page.cursor}"), soft_wrap=True)


def _table_of(page: Page) -> Table:
    made = table("id", "task", "state", "created", "what")
    made.columns[0].no_wrap = _have_usual_ids(page)
    for run in page:
        created = time_cell(run.created)
        made.add_row(shown(run.id), shown(run.task), coloured(run.state), created, shown(what_of(run)))
    return made


def _narrow_table_of(page: Page) -> Table:
    made = table("id", "task", "state", "created")
    made.columns[0].no_wrap = _have_usual_ids(page)
    for run in page:
        below = fill(what_of(run), _LENGTH_OF_ID, max_lines=3, placeholder="...")
        id_and_more = shown(f"{run.id}\n").append_text(shown(below, "dim"))
        made.add_row(id_and_more, shown(run.task), coloured(run.state), time_cell(run.created))
    return made


def _have_usual_ids(page: Page) -> bool:
    return all(len(run.id) <= _LENGTH_OF_ID for run in page)


def print_run(run: Run) -> None:
    """All that is known of a run."""
    console().print(view_of(run))


def view_of(run: Run, most_steps: int | None = None) -> Group:
    """All that is known of a run; of its steps, so many of the last ones."""
    tables: list[RenderableType] = [_facts(run), "", _attempts(run.attempts)]
    if run.steps:
        tables += ["", _steps(run.steps if most_steps is None else run.steps[-most_steps:])]
    if run.actions:
        actions = table("what", "by", "at")
        for action in run.actions:
            what = f"{action.what} as {action.run}" if action.run else action.what
            actions.add_row(shown(what), shown(action.by), time_cell(action.at))
        tables += ["", actions]
    return Group(*tables)


def _facts(run: Run) -> Table:
    facts: dict[str, str | Text] = {
        "id": run.id,
        "task": run.task,
        "state": coloured(run.state),
        "arguments": cut(arguments_of(run), _LONGEST_TEXT),
        "attributes": ", ".join(f"{name}={value}" for name, value in run.attributes.items()),
        "created": local_time(run.created),
        "ended": local_time(run.ended),
        "worker": run.worker,
        "lease until": local_time(run.lease),
        "waits for": run.waits_for,
        "until": local_time(run.until),
        "build": run.build,
        "error": run.error,
        "restarted from": run.restarted_from,
    }
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, fact in facts.items():
        if fact:
            made.add_row(name, shown(fact) if isinstance(fact, str) else fact)
    return made


def _attempts(attempts: Iterable[AttemptRecord]) -> Table:
    made = table("attempt", "began", "ended", "how", "executed", "replayed", "worker", "build")
    for one in attempts:
        made.add_row(
            str(one.number), time_cell(one.began), time_cell(one.ended), coloured(one.how), _number(one.executed),
            _number(one.replayed), shown(one.worker), shown(one.build),
        )  # fmt: skip
    return made


def _steps(steps: Iterable[StepRecord]) -> Table:
    made = table("place", "step", "state", "executions", "at", "ms", "what")
    for step in steps:
        name = step.name if step.kind == "step" else f"{step.kind} {step.name}"
        made.add_row(
            shown(step.place), shown(name), coloured(step.state), str(step.executions), time_cell(step.at),
            _number(step.ms), shown(step.error or step.preview),
        )  # fmt: skip
    return made


def _number(number: int | None) -> str:
    return "" if number is None else str(number)


def what_of(run: Run) -> str:
    """What there is to say of a run in one line: what it waits for, why it has failed, or its arguments."""
    if run.until is not None:
        return f"{run.waits_for} (until {local_time(run.until)})"
    return cut(run.error or arguments_of(run), _LONGEST_TEXT)
