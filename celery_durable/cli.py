"""``celery durable ...``: a plugin of the ``celery`` command."""

from __future__ import annotations

from typing import Any

import click

from .exceptions import DurableError
from .worker import control  # noqa: F401  so that `celery control` knows durable_cancel


@click.group(name="durable", help="Runs of durable tasks.")
def durable() -> None:
    """The ``celery`` command finds this group by its entry point."""


@durable.command()
@click.pass_context
def recover(ctx: Any) -> None:
    """Send all runs again that no worker goes on with. Workers do this by themselves, every second."""
    from .worker.recovery import recover as send_again  # every ``celery`` command loads this module, and must stay fast

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
