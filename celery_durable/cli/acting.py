"""``celery durable retry``, ``cancel``, ``wake`` and ``purge``: one run at once, several after a look at how many."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from celery_durable.exceptions import DurableError

from .filters import as_json, filtered
from .group import loaded_app, refusals


def _command(name: str, done: str, help_text: str) -> click.Command:
    """A command that does with runs what the method *name* of ``Runs`` does; *done* says that in the past tense."""

    @click.command(name=name, help=help_text)
    @click.argument("ids", metavar="[ID]...", nargs=-1)
    @filtered
    @click.option("--by", help="Who does it; kept in the journal. Default: the name of the user.")
    @click.option("--yes", is_flag=True, help="Do it with several runs. Without it, they are only counted.")
    @as_json
    @click.pass_context
    def command(ctx: Any, /, *, ids: tuple[str, ...], by: str | None, yes: bool, as_json: bool, **wanted: Any) -> None:
        with refusals(name):
            runs = _runs(ctx)
            ids = _targets(runs, ids, wanted)
            if len(ids) != 1 and not yes:
                click.echo(f"{len(ids)} runs; nothing is done: say --yes, and they are {done}")
                return
            act = _act(runs, name, by)
            all_done = [_do(name, done, task_id, act, as_json=as_json) for task_id in ids]
            if not all(all_done):
                ctx.exit(1)

    return command


def _runs(ctx: Any) -> Any:
    from celery_durable.operate.runs import Runs

    return Runs(loaded_app(ctx))


def _targets(runs: Any, ids: tuple[str, ...], wanted: dict[str, Any]) -> tuple[str, ...]:
    given = {name: value for name, value in wanted.items() if value}
    if bool(ids) == bool(given):
        raise click.UsageError("name runs by their ids, or by a filter (--state, --task, --since, --until)")
    if ids:
        return tuple(dict.fromkeys(ids))
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = runs.list(**given, limit=1_000, cursor=cursor)
        found += [run.id for run in page]
        cursor = page.cursor
        if cursor is None:
            return tuple(found)


def _act(runs: Any, name: str, by: str | None) -> Callable[[str], Any]:
    facts = {} if name == "purge" else {"by": by or getpass.getuser()}  # nothing is left that could keep the name
    return partial(getattr(runs, name), **facts)


def _do(name: str, done: str, task_id: str, act: Callable[[str], Any], *, as_json: bool) -> bool:
    """Act on one run, and say what has come of it. Returns whether it was done."""
    try:
        note = act(task_id)
        said, is_done = f"{done}: {note}" if note else done, True
    except DurableError as error:
        said, is_done = str(error), False
    if as_json:
        click.echo(json.dumps({"id": task_id, "what": name, "done": is_done, "said": said}))
    else:
        click.echo(f"task {task_id}: {said}" if is_done else f"Error: {said}", err=not is_done)
    return is_done


retry = _command("retry", "retried", "Send failed runs again. They go on from their journals.")
cancel = _command("cancel", "cancelled", "Cancel live runs: their code is told, and can compensate.")
wake = _command("wake", "woken", "End the waits of runs now: a sleep, or the time until a retry.")
purge = _command("purge", "purged", "Delete the journals of runs that have ended.")
