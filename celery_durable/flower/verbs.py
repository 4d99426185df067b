"""What people do with a run: which buttons its page has, and what the API does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from celery_durable.exceptions import RunNotFound
from celery_durable.journal.run_id import no_journal
from celery_durable.operate.done import done
from celery_durable.operate.runs import Runs
from celery_durable.operate.states import verbs_of
from celery_durable.records import Run

from .asking import Refusal

_FACTS: dict[str, tuple[str, ...]] = {"retry": (), "wake": (), "restart": ("from_step",), "cancel": (), "purge": ()}
"""The methods of :class:`Runs` that the API has → what a request may say besides the run."""


class Button(NamedTuple):
    """A verb, as the page of a run has it."""

    label: str
    style: str


_BUTTONS = {
    "retry": Button("Retry", "btn-primary"),
    "wake": Button("Wake", "btn-primary"),
    "restart": Button("Restart", "btn-outline-secondary"),
    "cancel": Button("Cancel", "btn-danger"),
}


def buttons(run: Run) -> dict[str, Button]:
    """What its state allows, by verb."""
    return {name: _BUTTONS[name] for name in verbs_of(run.state) if name in _BUTTONS}


def carry_out(runs: Runs, name: str, task_id: str, by: str | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Do it, and return what there is to say of it, as a document.

    Raises:
        Refusal: no such verb, or the request says what the verb does not know.
        DurableError: the run does not allow it.
    """
    known = _FACTS.get(name)
    if known is None:
        raise Refusal(404, f"nobody can {name} a run; what there is: {', '.join(_FACTS)}")
    if unknown := sorted(facts.keys() - set(known)):
        raise Refusal(400, f"{name} takes no {', '.join(unknown)}; what it takes: {', '.join(known) or 'nothing'}")
    if not runs.states([task_id]):
        raise RunNotFound(no_journal(task_id))
    return done(name, task_id, getattr(runs, name)(task_id, by=by, **facts))
