"""The group of commands, and what all of them do: find the app, and say why a command was refused.

Every ``celery`` command loads these modules, even ``celery --help``. So each imports what it needs only when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from celery_durable.exceptions import ConfigurationError, DurableError


@click.group(name="durable", help="Runs of durable tasks.")
def durable() -> None:
    """The ``celery`` command finds this group by its entry point."""


def loaded_app(ctx: Any) -> Any:
    """The app of ``celery -A``, with its tasks."""
    app = ctx.obj.app
    app.loader.import_default_modules()
    app.finalize()
    return app


@contextmanager
def refusals(command: str) -> Iterator[None]:
    """Say in one sentence why a command was refused: exit code 1, or 2 if an option of it is wrong."""
    try:
        yield
    except ConfigurationError as error:
        raise click.UsageError(f"{error} (celery -A <your app> durable {command} --help)") from error
    except DurableError as error:
        raise click.ClickException(f"{error} (celery -A <your app> durable {command})") from error
