"""``celery durable retry``, ``cancel``, ``wake`` and ``purge``: one run at once, several after a look at how many.

``celery durable restart`` takes one run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import click

from celery_durable.exceptions import DurableError
from celery_durable.operate.states import allowing

from . import completion
from .group import refusals, runs_of
from .options import as_json, by, filtered, one_id


def _command(name: str, done: str, help_text: str) -> click.Command:
    """A command that does with runs what the method *name* of ``Runs`` does; *done* says that in the past tense."""

    @click.command(name=name, help=help_text)
    @click.argument("ids", metavar="[ID]...", nargs=-1, shell_complete=completion.ids(*allowing(name)))
    @filtered
    @by
    @click.option("--yes", is_flag=True, help="Do it with several runs. Without it, they are only counted.")
    @as_json
    @click.pass_context
    def command(ctx: Any, /, *, ids: tuple[str, ...], by: str, yes: bool, as_json: bool, **wanted: Any) -> None:
        ids = tuple(dict.fromkeys(ids))
        given = {option: value for option, value in wanted.items() if value is not None}
        if bool(ids) == bool(given):
            not_both = ", not by both" if ids else ""
            raise click.UsageError(f"name runs by their ids, or by a filter (--state, --task, --text, ...){not_both}")
        with refusals(name):
            runs = runs_of(ctx)
            found = {} if ids else {run.id: run.state for run in _all(runs, given)}
            if not (len(ids) == 1 or (yes and (ids or found))):
                _say_how_many(name, done, len(ids), found, as_json=as_json)
                return
            act = partial(getattr(runs, name), by=by)
            all_done = [_do(name, done, task_id, act, as_json=as_json) for task_id in ids or found]
        if not all(all_done):
            ctx.exit(1)

    return command


def _all(runs: Any, given: dict[str, Any]) -> Iterator[Any]:
    """All runs that a filter finds."""
    cursor = None
    while True:
        page = runs.list(**given, limit=1_000, cursor=cursor)
        yield from page
        cursor = page.cursor
        if cursor is None:
            return


def _say_how_many(name: str, done: str, ids: int, found: dict[str, str], *, as_json: bool) -> None:
    states = Counter(found.values())
    number = ids or len(found)
    if as_json:
        click.echo(json.dumps({"what": name, "runs": number, "states": states, "done": False}))
    elif number:
        by_state = ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
        runs = f"{number} run{'s' if number > 1 else ''}" + (f" ({by_state})" if states else "")
        click.echo(f"{runs}; nothing is done: say --yes, and they are {done}")
    else:
        click.echo("no run matches; nothing is done")


def _do(name: str, done: str, task_id: str, act: Callable[[str], Any], *, as_json: bool) -> bool:
    """Act on one run, and say what has come of it. Returns whether it was done."""
    from celery_durable.delivery.message import BROKER_ERRORS

    try:
        note = act(task_id)
        said, is_done = f"{done}: {note}" if note else done, True
    except DurableError as error:
        said, is_done = str(error), False
    except BROKER_ERRORS as error:
        said, is_done = f"task {task_id}: nothing was sent, the broker cannot be reached: {error}", False
    if is_done:
        say_done(task_id, name, said, as_json=as_json)
    elif as_json:
        click.echo(json.dumps({"id": task_id, "what": name, "done": False, "said": said}))
    else:
        click.echo(f"Error: {said}", err=True)
    return is_done


def say_done(task_id: str, what: str, said: str, *, as_json: bool, **facts: str) -> None:
    """Say what was done with a run; *facts* are more of the JSON document."""
    done = {"id": task_id, "what": what, "done": True, "said": said, **facts}
    click.echo(json.dumps(done) if as_json else f"task {task_id}: {said}")


@click.command()
@one_id(*allowing("restart"))
@click.option("--from", "from_step", metavar="STEP", help="Run anew from this step: its name, or its place.")
@by
@as_json
@click.pass_context
def restart(ctx: Any, /, *, task_id: str, from_step: str | None, by: str, as_json: bool) -> None:
    """Begin a new run with the call of a run that has ended: from its beginning, or from a step."""
    with refusals("restart"):
        new = runs_of(ctx).restart(task_id, from_step=from_step, by=by)
    say_done(task_id, "restart", f"restarted as {new}", as_json=as_json, new_id=new)


retry = _command("retry", "retried", "Send failed or paused runs again. They go on from their journals.")
cancel = _command("cancel", "cancelled", "Cancel live runs: their code is told, and can compensate.")
wake = _command("wake", "woken", "End the waits of runs now: a sleep, or the time until a retry.")
purge = _command("purge", "purged", "Delete the journals of runs that have ended.")
