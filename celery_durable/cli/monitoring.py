"""``celery durable flower``."""

from __future__ import annotations

from typing import Any

import click


@click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("options", metavar="[FLOWER'S OPTIONS]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def flower(ctx: Any, /, *, options: tuple[str, ...]) -> None:
    """Start Flower, with the pages of durable runs. It takes the options of `celery flower`."""
    try:
        from flower.command import flower as plain  # type: ignore[import-untyped]

        from celery_durable.flower import install

        install()
    except ImportError as error:
        raise click.ClickException(f"Flower cannot be used: {error}; pip install 'celery-durable[flower]'") from error
    # Flower looks for the options of Celery in the context above its own.
    with plain.make_context("durable flower", list(options), parent=ctx.find_root()) as its_own:
        try:
            plain.invoke(its_own)
        except OSError as error:  # its port is in use, say
            raise click.ClickException(f"Flower cannot start: {error}") from error
