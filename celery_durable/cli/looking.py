"""``celery durable list``, ``show`` and ``watch``."""

from __future__ import annotations

from typing import Any

import click

from celery_durable.operate.states import LIVE

from .group import refusals, runs_of
from .options import as_json, filtered, one_id
from .printable import one_line

_ENDED_BY_CTRL_C = 130


@click.command(name="list")
@filtered
@click.option("--limit", type=int, default=50, show_default=True, help="How many runs, at most.")
@click.option("--cursor", help="Go on behind the last run of another list.")
@as_json
@click.pass_context
def list_(ctx: Any, /, *, as_json: bool, **wanted: Any) -> None:
    """List durable runs, the newest first."""
    from .output import print_json
    from .runs import print_runs

    with refusals():
        runs = runs_of(ctx)
        page = runs.list(**wanted)
        if as_json:
            print_json(page)
            if page.cursor:  # beside the documents
                click.echo(one_line(f"more: --cursor {page.cursor}"), err=True)
        else:
            print_runs(page, runs.counts())


@click.command()
@one_id()
@as_json
@click.pass_context
def show(ctx: Any, /, *, task_id: str, as_json: bool) -> None:
    """Show a run: its attempts, its steps, what it waits for, why it has failed."""
    from .output import print_json
    from .runs import print_run

    with refusals():
        run = runs_of(ctx).get(task_id)
        print_json([run]) if as_json else print_run(run)


@click.command()
@one_id(*LIVE)
@as_json
@click.pass_context
def watch(ctx: Any, /, *, task_id: str, as_json: bool) -> None:
    """Follow a run until it has ended. Ctrl-C leaves it."""
    from .live import print_changes
    from .output import print_json

    try:
        with refusals():
            changes = runs_of(ctx).follow(task_id)
            print_json(changes) if as_json else print_changes(changes)
    except KeyboardInterrupt:
        ctx.exit(_ENDED_BY_CTRL_C)
