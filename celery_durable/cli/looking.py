"""``celery durable list`` and ``celery durable show``."""

from __future__ import annotations

from typing import Any

import click

from .filters import as_json, filtered
from .group import loaded_app, refusals


@click.command(name="list")
@filtered
@click.option("--text", help="Only runs whose id, task or arguments have this in them.")
@click.option("--limit", type=int, default=50, show_default=True, help="How many runs, at most.")
@click.option("--cursor", help="Go on behind the last run of another list.")
@as_json
@click.pass_context
def list_(ctx: Any, /, *, as_json: bool, **wanted: Any) -> None:
    """List durable runs, the newest first."""
    from celery_durable.operate.runs import Runs

    from .output import print_json, print_runs

    with refusals("list"):
        runs = Runs(loaded_app(ctx))
        page = runs.list(**wanted)
        if as_json:
            print_json(page)
        else:
            print_runs(page, runs.counts())


@click.command()
@click.argument("task_id", metavar="ID")
@as_json
@click.pass_context
def show(ctx: Any, /, *, task_id: str, as_json: bool) -> None:
    """Show a run: its attempts, its steps, what it waits for, why it has failed."""
    from celery_durable.operate.runs import Runs

    from .output import print_json, print_run

    with refusals("show"):
        run = Runs(loaded_app(ctx)).get(task_id)
        print_json([run]) if as_json else print_run(run)
