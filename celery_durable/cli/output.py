"""What the commands print: tables for people, JSON for programs. Colours only where a terminal is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime, tzinfo
from typing import Any, Literal

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from celery_durable.operate.record_json import record_json

from .printable import printable

_COLOURS = {
    "SUCCESS": "green", "done": "green", "FAILURE": "red", "failed": "red", "DIED": "red", "REVOKED": "red",
    "cancelled": "red", "RETRY": "yellow", "RELEASED": "yellow", "retrying": "yellow", "STALLED": "yellow",
    "SUSPENDED": "cyan", "PAUSED": "magenta", "sleeping": "cyan", "STARTED": "blue", "started": "blue",
    "ok": "green", "note": "yellow", "problem": "red",
}  # fmt: skip
_WIDTH_WITHOUT_TERMINAL = 160
_UNBROKEN = frozenset({"state", "created", "began", "ended", "at", "how", "oldest", "level"})
"""The columns whose cells stay on one line."""


def print_json(records: Iterable[Any]) -> None:
    """One document per line. Times are in ISO 8601; what JSON does not know is written as text."""
    for record in records:
        click.echo(record_json(record))


def console() -> Console:
    """Where tables are printed: the terminal with its width; without one, lines of 160 columns without colours."""
    is_plain = click.get_current_context().obj.no_color or bool(os.environ.get("NO_COLOR"))
    system: Literal["auto"] | None = None if is_plain else "auto"  # None: bold and dim letters are off, too
    made = Console(highlight=False, color_system=system)
    return made if made.is_terminal else Console(highlight=False, color_system=system, width=_WIDTH_WITHOUT_TERMINAL)


def table(*columns: str) -> Table:
    """A table with these columns and no rows. A column of times says in its head of which time zone they are."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    zone = datetime.now(_zone()).tzname()
    for column in columns:
        is_time = column in ("created", "began", "ended", "at", "oldest")
        made.add_column(f"{column} ({zone})" if is_time else column, no_wrap=column in _UNBROKEN, overflow="fold")
    return made


def shown(text: str, style: str = "") -> Text:
    """A text of a user in a table."""
    return Text(printable(text), style)


def coloured(word: str) -> Text:
    """A state, in its colour."""
    return shown(word, _COLOURS.get(word, ""))


def time_cell(when: datetime | None) -> str:
    """A local time in a column whose head names the time zone."""
    return "" if when is None else f"{when.astimezone(_zone()):%Y-%m-%d %H:%M:%S}"


def _zone() -> tzinfo | None:
    """That of now. A time in the other half of the year is shown in it, too: the head of a column names one zone."""
    return datetime.now().astimezone().tzinfo


def local_time(when: datetime | None) -> str:
    """A local time with its offset."""
    return "" if when is None else when.astimezone().isoformat(sep=" ", timespec="seconds")
