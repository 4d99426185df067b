"""Runs as tables: a list of them, and all that is known of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from textwrap import fill

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from celery_durable.delivery.backend import STALLED
from celery_durable.operate.runs import Page
from celery_durable.records import AttemptRecord, Run, StepRecord, arguments_of, cut

from .output import coloured, console, local_time, shown, table, time_cell

_WIDE = 120
"""On narrower terminals, the last columns of a table stand below the first ones."""
_WIDTH_OF_TIME = 19
_BESIDE_ID, _BESIDE_STEP = 33, 59
"""So many columns the rest of a narrow table needs."""
_LINES_BESIDE_STEPS = 20
_LINES_OF_NARROW_STEP = 4
_FEW = 3
"""So many attempts, and so many steps at least, are shown of a run that must fit its terminal."""
_LENGTH_OF_ID = 36
_LONGEST_TEXT = 200


def print_runs(page: Page, counts: Mapping[str, int]) -> None:
    """A table of runs, and how many there are in each state."""
    out = console()
    if page:
        out.print(_table_of(page) if out.width >= _WIDE else _narrow_table_of(page, out.width))
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


def _narrow_table_of(page: Page, width: int) -> Table:
    made = table("id", "state", "created")
    made.columns[0].no_wrap = _have_usual_ids(page)
    for run in page:
        said = f"{run.task}: {what}" if (what := what_of(run)) else run.task
        made.add_row(
            _over(run.id, said, max(_LENGTH_OF_ID, width - _BESIDE_ID)), coloured(run.state), time_cell(run.created)
        )
    return made


def _over(text: str, more: str, width: int) -> Text:
    """A text, and more below it, in a column so wide."""
    below = fill(more, max(1, width), max_lines=3, placeholder="...")
    return shown(f"{text}\n").append_text(shown(below, "dim")) if below else shown(text)


def _have_usual_ids(page: Page) -> bool:
    return all(len(run.id) <= _LENGTH_OF_ID for run in page)


def print_run(run: Run) -> None:
    """All that is known of a run."""
    out = console()
    out.print(view_of(run, out.width))


def view_of(run: Run, width: int, height: int | None = None) -> Group:
    """All that is known of a run, in so many columns. With a *height*, the last attempts and steps that fit in it."""
    is_wide, attempts, steps = width >= _WIDE, run.attempts, run.steps
    if height is not None:
        room = (height - _LINES_BESIDE_STEPS) // (1 if is_wide else _LINES_OF_NARROW_STEP)
        attempts, steps = attempts[-_FEW:], steps[-max(_FEW, room) :]
    tables: list[RenderableType] = [_facts(run)]
    if attempts:
        tables += ["", _attempts(attempts) if is_wide else _narrow_attempts(attempts)]
    if steps:
        tables += ["", _steps(steps) if is_wide else _narrow_steps(steps, width)]
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
        "sent again at" if run.state == STALLED else "until": local_time(run.until),
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


def _narrow_attempts(attempts: Iterable[AttemptRecord]) -> Table:
    made = table("attempt", "began", "ended", "how", "executed", "replayed")
    for one in attempts:
        made.add_row(
            str(one.number), _over(time_cell(one.began), one.worker, _WIDTH_OF_TIME),
            _over(time_cell(one.ended), one.build, _WIDTH_OF_TIME), coloured(one.how), _number(one.executed),
            _number(one.replayed),
        )  # fmt: skip
    return made


def _steps(steps: Iterable[StepRecord]) -> Table:
    made = table("place", "step", "state", "executions", "at", "ms", "what")
    for step in steps:
        made.add_row(
            shown(step.place), shown(_title(step)), coloured(step.state), str(step.executions), time_cell(step.at),
            _number(step.ms), shown(step.error or step.preview),
        )  # fmt: skip
    return made


def _narrow_steps(steps: Iterable[StepRecord], width: int) -> Table:
    made = table("place", "step", "state", "executions", "at", "ms")
    for step in steps:
        made.add_row(
            shown(step.place), _over(_title(step), step.error or step.preview, width - _BESIDE_STEP),
            coloured(step.state), str(step.executions), time_cell(step.at), _number(step.ms),
        )  # fmt: skip
    return made


def _title(step: StepRecord) -> str:
    return step.name if step.kind == "step" else f"{step.kind} {step.name}"


def _number(number: int | None) -> str:
    return "" if number is None else str(number)


def what_of(run: Run) -> str:
    """What there is to say of a run in one line: what it waits for, why it has failed, or its arguments."""
    if run.until is not None:
        return f"{run.waits_for} ({'sent again at' if run.state == STALLED else 'until'} {local_time(run.until)})"
    return cut(run.error or arguments_of(run), _LONGEST_TEXT)
