"""``celery durable recover``."""

from __future__ import annotations

from typing import Any

import click

from .group import loaded_app, refusals


@click.command()
@click.pass_context
def recover(ctx: Any) -> None:
    """Send all runs again that no worker goes on with. Workers do this by themselves, every second."""
    from celery_durable.worker.recovery import recover as send_again

    with refusals("recover"):
        sent, unsent = send_again(loaded_app(ctx))
    click.echo(f"{sent} runs sent again")
    if unsent:
        raise click.ClickException(f"{unsent} runs could not be sent; the log says why, and they are tried again")
