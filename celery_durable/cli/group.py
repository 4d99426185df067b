"""The group of commands, and what all of them do: find the app, and say why a command was refused.

Every ``celery`` command loads these modules, even ``celery --help``. So each imports what it needs only when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

import click

from celery_durable.exceptions import ConfigurationError, DurableError

_PATIENCE = 2.0
"""Seconds for which a command tries to reach Redis: a person waits for it."""


@click.group(name="durable", help="Runs of durable tasks.")
def durable() -> None:
    """The ``celery`` command finds this group by its entry point."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal may not know every letter of a name or a value.
        sys.stdout.reconfigure(errors="backslashreplace")


def loaded_app(ctx: Any) -> Any:
    """The app of ``celery -A``, with its tasks.

    Raises:
        ClickException: its modules of tasks cannot be imported, or no app is named.
        ConfigurationError: a ``durable_*`` setting is wrong, or no Redis is configured.
    """
    from celery_durable.app.store import be_patient

    app = ctx.obj.app
    try:
        app.loader.import_default_modules()
        app.finalize()
    except Exception as error:
        said = f"the tasks of the app {app.main!r} cannot be imported: {type(error).__name__}: {error}"
        raise click.ClickException(said) from error
    try:
        be_patient(app, _PATIENCE)
    except ConfigurationError as error:
        if ctx.find_root().params.get("app", app) is None:
            raise click.UsageError(f"no app is named: celery -A <your app> durable ...; without it: {error}") from error
        raise
    return app


def runs_of(ctx: Any) -> Any:
    """The runs of that app."""
    from celery_durable.operate.runs import Runs

    return Runs(loaded_app(ctx))


@contextmanager
def refusals() -> Iterator[None]:
    """Say in one sentence why a command was refused: exit code 1, or 2 if an option of it is wrong."""
    try:
        yield
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    except UnicodeEncodeError as error:
        raise click.UsageError(f"an argument is no text in UTF-8, got {error.object!r}") from error
    except DurableError as error:
        raise click.ClickException(str(error)) from error
