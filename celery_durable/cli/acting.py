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
from celery_durable.operate.done import DONE, done, refused
from celery_durable.operate.states import allowing
from celery_durable.records import number_of_runs

from . import completion
from .group import refusals, runs_of
from .options import as_json, by, filtered, one_id
from .printable import one_line


def _command(name: str, help_text: str) -> click.Command:
    """A command that does with runs what the method *name* of ``Runs`` does."""

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
                _say_how_many(name, ids or found, runs.states(ids) if ids else found, as_json=as_json)
                return
            verb = getattr(runs, name)
            all_done = [
                carry_out(name, task_id, partial(verb, task_id, by=by), as_json=as_json) for task_id in ids or found
            ]
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


def _say_how_many(name: str, ids: Collection[str], state_of: Mapping[str, str], *, as_json: bool) -> None:
    """Say how many runs are meant, and with how many of them it can be done as they stand."""
    states = Counter(state_of.values())
    allowed = sum(states[state] for state in allowing(name))
    unknown = [task_id for task_id in ids if task_id not in state_of]
    if as_json:
        counted = {"what": name, "runs": len(ids), "states": states, "unknown": unknown, "allowed": allowed}
        click.echo(json.dumps({**counted, "done": False}))
        return
    if not ids:
        click.echo("no run matches; nothing is done")
        return
    by_state = ", ".join(f"{state} {count}" for state, count in sorted(states.items()))
    said = number_of_runs(len(ids)) + (f" ({by_state})" if states else "")
    if unknown:
        said += f", no journal of {', '.join(unknown)}"
    if allowed < len(ids):
        said += f", {allowed} in a state that allows it"
    click.echo(one_line(f"{said}; nothing is done: say --yes, and they are {DONE[name]}"))


def carry_out(what: str, task_id: str | None, act: Callable[[], Any], *, as_json: bool) -> bool:
    """Do something with one run, and say what has come of it. Returns whether it was done.

    *act* does it. None instead of an id: the run is not known, so *act* refuses.

    Raises:
        JournalUnavailableError: Redis does not answer. Nor could it be done with the next run.
        ClickException: the broker cannot be reached.
    """
    from celery_durable.delivery.message import BROKER_ERRORS

    outage: Exception | None = None
    try:
        document = done(what, task_id or "", act())
    except JournalUnavailableError as error:
        document, outage = refused(what, task_id, str(error)), error
    except DurableError as error:
        document = refused(what, task_id, str(error))
    except BROKER_ERRORS as error:
        why = f"task {one_line(task_id or '')}: nothing was sent, the broker cannot be reached: {error}"
        document, outage = refused(what, task_id, why), click.ClickException(why)
    if as_json:
        click.echo(json.dumps(document))
    elif document["done"]:
        click.echo(one_line(f"task {task_id}: {document['said']}"))
    elif outage is None:
        click.echo(one_line(f"Error: {document['said']}"), err=True)
    if outage is not None:
        raise outage
    return bool(document["done"])


@click.command()
@one_id(*allowing("restart"))
@click.option(
    "--from", "from_step", metavar="STEP", shell_complete=completion.steps,
    help="Run again from this step: its name, or its place.",
)  # fmt: skip
@by
@as_json
@click.pass_context
def restart(ctx: Any, /, *, task_id: str, from_step: str | None, by: str, as_json: bool) -> None:
    """Begin a new run with the call of a run that has ended: from its beginning, or from a step."""
    with refusals():
        begin = partial(runs_of(ctx).restart, task_id, from_step=from_step, by=by)
        is_done = carry_out("restart", task_id, begin, as_json=as_json)
    if not is_done:
        ctx.exit(1)


retry = _command("retry", "Send failed or paused runs again. They go on from their journals.")
cancel = _command("cancel", "Cancel live runs: their code is told, and can compensate.")
wake = _command("wake", "End the waits of runs now: a sleep, or the time until a retry.")
purge = _command("purge", "Delete the journals of runs that have ended.")
