"""``celery durable retry``, ``cancel``, ``wake`` and ``purge``: one run at once, several after a look at how many.

``celery durable restart`` takes one run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import click

from celery_durable.exceptions import DurableError, JournalUnavailableError
from celery_durable.operate.states import allowing
from celery_durable.records import number_of_runs

from . import completion
from .group import refusals, runs_of
from .options import as_json, by, filtered, one_id
from .printable import one_line


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
        with refusals():
            runs = runs_of(ctx)
            found = {} if ids else {run.id: run.state for run in _all(runs, given)}
            if not (len(ids) == 1 or (yes and (ids or found))):
                _say_how_many(name, done, ids or found, runs.states(ids) if ids else found, as_json=as_json)
                return

            def act(task_id: str) -> tuple[str, dict[str, str]]:
                note = getattr(runs, name)(task_id, by=by)
                return f"{done}: {note}" if note else done, {}

            all_done = [carry_out(name, task_id, partial(act, task_id), as_json=as_json) for task_id in ids or found]
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


def _say_how_many(name: str, done: str, ids: Collection[str], state_of: Mapping[str, str], *, as_json: bool) -> None:
    """Say how many runs are meant, and with how many of them it can be done as they stand."""
    states = Counter(state_of.values())
    allowed = sum(states[state] for state in allowing(name))
    if as_json:
        counted = {"what": name, "runs": len(ids), "states": states, "allowed": allowed, "done": False}
        click.echo(json.dumps(counted))
    elif ids:
        by_state = ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
        found = number_of_runs(len(ids)) + (f" ({by_state})" if states else "")
        some = "" if allowed == len(ids) else f", {allowed} of them in a state that allows it"
        click.echo(f"{found}{some}; nothing is done: say --yes, and they are {done}")
    else:
        click.echo("no run matches; nothing is done")


def carry_out(what: str, task_id: str, act: Callable[[], tuple[str, dict[str, str]]], *, as_json: bool) -> bool:
    """Do something with one run, and say what has come of it. Returns whether it was done.

    *act* does it. It returns how that is said, and further facts of the JSON document.

    Raises:
        JournalUnavailableError: Redis does not answer.
        ClickException: the broker cannot be reached.
    """
    from celery_durable.delivery.message import BROKER_ERRORS

    facts: dict[str, str] = {}
    try:
        (said, facts), is_done = act(), True
    except JournalUnavailableError:
        raise  # nor could it be done with the next run
    except DurableError as error:
        said, is_done = str(error), False
    except BROKER_ERRORS as error:
        said = f"task {one_line(task_id)}: nothing was sent, the broker cannot be reached: {error}"
        raise click.ClickException(said) from error
    if as_json:
        click.echo(json.dumps({"id": task_id, "what": what, "done": is_done, "said": said, **facts}))
    elif is_done:
        click.echo(one_line(f"task {task_id}: {said}"))
    else:
        click.echo(one_line(f"Error: {said}"), err=True)
    return is_done


@click.command()
@one_id(*allowing("restart"))
@click.option("--from", "from_step", metavar="STEP", help="Run again from this step: its name, or its place.")
@by
@as_json
@click.pass_context
def restart(ctx: Any, /, *, task_id: str, from_step: str | None, by: str, as_json: bool) -> None:
    """Begin a new run with the call of a run that has ended: from its beginning, or from a step."""
    with refusals():
        runs = runs_of(ctx)

        def act() -> tuple[str, dict[str, str]]:
            new = runs.restart(task_id, from_step=from_step, by=by)
            return f"restarted as {new}", {"new_id": new}

        is_done = carry_out("restart", task_id, act, as_json=as_json)
    if not is_done:
        ctx.exit(1)


retry = _command("retry", "retried", "Send failed or paused runs again. They go on from their journals.")
cancel = _command("cancel", "told to end", "Cancel live runs: their code is told, and can compensate.")
wake = _command("wake", "woken", "End the waits of runs now: a sleep, or the time until a retry.")
purge = _command("purge", "purged", "Delete the journals of runs that have ended.")
