"""What people do with a run: which buttons its page has, and what the API does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from celery_durable.operate.runs import Runs
from celery_durable.records import Run

from .asking import Refusal


class Verb(NamedTuple):
    """A method of :class:`Runs`, as people see it."""

    label: str
    done: str
    """What the page says afterwards."""
    style: str
    facts: tuple[str, ...] = ()
    """What a request may say besides."""


VERBS = {
    "retry": Verb("Retry", "It was sent again", "btn-primary"),
    "wake": Verb("Wake", "Its wait is over", "btn-primary"),
    "restart": Verb("Restart", "It was sent again as", "btn-outline-secondary", ("from_step",)),
    "cancel": Verb("Cancel", "It was told to end", "btn-danger"),
    "purge": Verb("Purge", "Its journal is deleted", "btn-danger"),
}


def buttons(run: Run) -> dict[str, Verb]:
    """What its state allows."""
    if run.ended is not None:
        names = ["retry", "restart"] if run.state == "FAILURE" else ["restart"]
    elif run.state == "PAUSED":
        names = ["retry", "cancel"]
    else:
        names = ["wake", "cancel"] if run.until is not None else ["cancel"]
    return {name: VERBS[name] for name in names}


def carry_out(runs: Runs, name: str, task_id: str, by: str | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Do it, and return what there is to say of it, as a document.

    Raises:
        Refusal: no such verb, or the request says what the verb does not know.
        DurableError: the run does not allow it.
    """
    verb = VERBS.get(name)
    if verb is None:
        raise Refusal(404, f"nobody can {name} a run; what there is: {', '.join(VERBS)}")
    if unknown := sorted(facts.keys() - set(verb.facts)):
        raise Refusal(400, f"{name} takes no {', '.join(unknown)}; what it takes: {', '.join(verb.facts) or 'nothing'}")
    runs.get(task_id)  # an unknown id is told as such
    answer = getattr(runs, name)(task_id, by=by, **facts)
    said = f"{verb.done}: {answer}" if answer and name == "retry" else verb.done
    return {"id": task_id, "what": name, "said": said} | ({"new_id": answer} if name == "restart" else {})
