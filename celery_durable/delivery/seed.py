"""What the sender puts into the message of a durable task: the seed of its run, and the trace that the run belongs to.

The seed is drawn by the sender, so that a run keeps its idempotency keys if its journal is lost.
"""

from __future__ import annotations

from typing import Any

from celery import signals

from celery_durable import tracing
from celery_durable.journal.layout import new_seed

from .message import HEADER, SEED, seed_from_headers, seed_header

_names: set[str] = set()


def draw_for(name: str) -> None:
    """From now on, draw a seed for each task of this name that this process sends."""
    _names.add(name)


# Celery has many ways to send a task. This signal covers all of them.
@signals.before_task_publish.connect(weak=False, dispatch_uid="celery_durable")
def _draw(sender: Any = None, headers: Any = None, body: Any = None, **_: Any) -> None:
    if sender not in _names:
        return
    facts = headers if "id" in headers else body  # of protocol 2, or 1
    task_id, nesting = facts["id"], facts.get("replaced_task_nesting")
    if SEED in headers and not seed_from_headers(headers, task_id, nesting):
        # A task has sent another one with its own headers. Both headers of ours are about the sending task.
        del headers[SEED]
        headers.pop(HEADER, None)
    if HEADER not in headers:
        # Without our header it is a first message: no run has begun.
        headers.update(seed_header(task_id, nesting, new_seed()))
    headers.update(tracing.trace_headers(headers))
