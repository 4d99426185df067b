"""``celery durable ...``: a plugin of the ``celery`` command."""

from __future__ import annotations

from typing import Any

import click

from .exceptions import DurableError
from .worker import control  # noqa: F401  `celery control durable_cancel` is to know it


@click.group(name="durable", help="Runs of durable tasks.")
def durable() -> None:
    """The group that the ``celery`` command finds."""


@durable.command()
@click.pass_context
def recover(ctx: Any) -> None:
    """Send the runs again that nobody carries on, once; workers do so by themselves, every second."""
    from .worker.recovery import recover as send_again  # every ``celery`` command loads its plugins

    app = ctx.obj.app
    app.loader.import_default_modules()
    app.finalize()
    try:
        sent, unsent = send_again(app)
    except DurableError as error:
        raise click.ClickException(f"{error} (celery -A <your app> durable recover)") from error
    click.echo(f"{sent} runs sent again")
    if unsent:
        raise click.ClickException(f"{unsent} runs could not be sent; the log says why, and they are tried again")
