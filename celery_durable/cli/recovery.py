"""``celery durable recover``."""

from __future__ import annotations

import json
from typing import Any

import click

from .group import loaded_app, refusals
from .options import as_json


@click.command()
@as_json
@click.pass_context
def recover(ctx: Any, /, *, as_json: bool) -> None:
    """Send all runs again that no worker goes on with. Workers do this by themselves, every second."""
    from celery_durable.worker.recovery import recover as send_again

    with refusals("recover"):
        sent, unsent = send_again(loaded_app(ctx))
    click.echo(json.dumps({"sent": sent, "unsent": unsent}) if as_json else f"{sent} runs sent again")
    if unsent:
        raise click.ClickException(f"{unsent} runs could not be sent; the log says why, and they are tried again")
