"""The action of a step is called here, in a thread that is not Celery's."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import Any

from celery_durable import django

from . import upkeep
from .pulse import Running
from .threads import Thread, WorkItem, done


class Stale(BaseException):
    """The action was not started: it is not certain any more that its attempt may start one."""


def act(step: Running) -> Any:
    """Call the action of a step in a thread that is not Celery's. All such calls are made here.

    Raises:
        Stale: the process stood still, for example, and another attempt may have begun since.
    """
    if not step.pulse.may_start:
        raise Stale
    with upkeep.OfAction(step):
        return step.action(*step.args, **step.kwargs)


def begin_action(step: Running, thread: Thread) -> WorkItem[Any]:
    """Let a thread call the action of a step, in the context of the code that calls this."""
    context = copy_context()
    step.work = item = thread.begin(lambda: context.run(act, step), partial(step.record_late, step.executions))
    return item


def act_in_lent_thread(step: Running) -> Future[Any]:
    """Call the action of a step in the thread that waits for this code. The future has its result."""
    outcome: Future[Any] = Future()

    def run() -> None:
        value, error = done(partial(act, step))
        outcome.set_exception(error) if error is not None else outcome.set_result(value)

    def ended(sent: asyncio.Task[None]) -> None:
        if not outcome.done():
            outcome.set_exception(asyncio.CancelledError() if sent.cancelled() else sent.exception())

    asyncio.ensure_future(django.in_lent_thread(run)).add_done_callback(ended)
    return outcome
