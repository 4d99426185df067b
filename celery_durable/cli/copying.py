"""``celery durable export`` and ``import``: a run as a document."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import click

from celery_durable.exceptions import RunNotImportableError

from .acting import carry_out
from .group import refusals, runs_of
from .options import as_json, by, one_id


@click.command()
@one_id()
@by
@as_json
@click.pass_context
def export(ctx: Any, /, *, task_id: str, by: str, as_json: bool) -> None:
    """Print all that the journal of a run holds. It is not redacted."""
    with refusals():
        document = runs_of(ctx).export(task_id, by=by)
    click.echo(json.dumps(document, indent=None if as_json else 2))


@click.command(name="import")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@by
@as_json
@click.pass_context
def import_(ctx: Any, /, *, file: Any, by: str, as_json: bool) -> None:
    """Bring a run back from a document of `export`; FILE is "-" for the standard input."""
    with refusals():
        runs = runs_of(ctx)
        try:
            document = json.load(file)
        except (ValueError, RecursionError) as error:
            raise RunNotImportableError(f"{file.name} cannot be read as JSON: {error}") from error
        task_id = document.get("id") if isinstance(document, dict) else None
        is_done = carry_out("import", task_id, partial(runs.import_, document, by=by), as_json=as_json)
    if not is_done:
        ctx.exit(1)
