"""The options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from celery_durable.exceptions import ConfigurationError

from . import completion


def _user(_ctx: Any, _param: Any, value: str | None) -> str:
    import getpass

    try:
        return value or getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        return f"uid {os.getuid()}"


by = click.option("--by", callback=_user, help="Who does it; kept in the journal. Default: the name of the user.")
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document per line.")


class _When(click.ParamType):  # type: ignore[type-arg] # older versions take no argument
    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        from celery_durable.operate.search import read_time

        try:
            return read_time(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)


def _in_capitals(_ctx: Any, _param: Any, value: tuple[str, ...]) -> list[str] | None:
    return [word.upper() for word in value] or None


def _or_none(_ctx: Any, _param: Any, value: tuple[str, ...]) -> tuple[str, ...] | None:
    return value or None


def _not_empty(_ctx: Any, param: Any, value: str | None) -> str | None:
    # The variable of a script that is not set must not mean all runs.
    if value == "":
        raise click.BadParameter("it is empty: leave it out, or say for what to look", param=param)
    return value


def _pairs(_ctx: Any, param: Any, value: tuple[str, ...]) -> dict[str, str] | None:
    from celery_durable.operate.search import read_pair

    try:
        return dict(map(read_pair, value)) or None
    except ConfigurationError as error:
        raise click.BadParameter(str(error), param=param) from error


_FILTERS = (
    click.option(
        "--state", multiple=True, callback=_in_capitals, shell_complete=completion.states,
        help="Only runs in this state; may be repeated.",
    ),
    click.option(
        "--task", multiple=True, callback=_or_none, shell_complete=completion.tasks,
        help="Only runs of this task; may be repeated.",
    ),
    click.option("--since", type=_When(), help="Only runs that were created at this time or later (ISO 8601)."),
    click.option("--until", type=_When(), help="Only runs that were created at this time or earlier."),
    click.option(
        "--text", callback=_not_empty,
        help="Only runs with this in their id, the name of their task, or their arguments.",
    ),
    click.option(
        "--attribute", "attributes", metavar="NAME=VALUE", multiple=True, callback=_pairs,
        help="Only runs with this attribute; may be repeated.",
    ),
)  # fmt: skip


def filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose runs, named as the arguments of ``Runs.list``."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def one_id(*of_states: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the argument ``task_id``. The shell completes the ids of runs in these states; none: in any."""
    return click.argument("task_id", metavar="ID", shell_complete=completion.ids(*of_states))
