"""``celery durable recover``."""

from __future__ import annotations

import json
from typing import Any

import click

from celery_durable.records import number_of_runs

from .group import loaded_app, refusals
from .options import as_json


@click.command()
@as_json
@click.pass_context
def recover(ctx: Any, /, *, as_json: bool) -> None:
    """Send all runs again that no worker goes on with. Workers do this by themselves, every second."""
    from celery_durable.worker.recovery import recover as send_again

    with refusals():
        sent, unsent = send_again(loaded_app(ctx))
    click.echo(json.dumps({"sent": sent, "unsent": unsent}) if as_json else f"{number_of_runs(sent)} sent again")
    if unsent:
        said = f"{number_of_runs(unsent)} could not be sent: the log says why, and workers try it again"
        raise click.ClickException(said)
