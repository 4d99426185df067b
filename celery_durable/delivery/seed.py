"""The seed of a run, drawn where its task is sent, so that a run whose journal was lost keeps its keys."""

from __future__ import annotations

from typing import Any

from celery import signals

from celery_durable.journal.layout import new_seed

from .message import HEADER, SEED, seed_header, seed_in

_durable: set[str] = set()


def draw_for(name: str) -> None:
    """From now on one is drawn for each task of this name that this process sends."""
    _durable.add(name)


# By a signal, so that it does not matter in which of Celery's many ways a task is sent.
@signals.before_task_publish.connect(weak=False, dispatch_uid="celery_durable")
def _draw(sender: Any = None, headers: Any = None, body: Any = None, **_: Any) -> None:
    if sender not in _durable:
        return
    facts = headers if "id" in headers else body  # of protocol 2, or 1
    task_id, nesting = facts["id"], facts.get("replaced_task_nesting")
    if SEED in headers and not seed_in(headers, task_id, nesting):
        # A task has sent another one with its own headers: what they say to us is about itself.
        del headers[SEED]
        headers.pop(HEADER, None)
    if HEADER not in headers:
        # Nothing has begun yet.
        headers.update(seed_header(task_id, nesting, new_seed()))
