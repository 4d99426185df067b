"""What is done when Celery is done with a body: the run's outcome has been delivered, or has not."""

from __future__ import annotations

import logging
import sys
from typing import Any

from celery import states
from celery.exceptions import Retry

from celery_durable.delivery import message
from celery_durable.delivery.announcement import Announcement
from celery_durable.interrupts import Interrupt
from celery_durable.invocation import eager_journals
from celery_durable.invocation.current import forget_opened
from celery_durable.invocation.ends import over
from celery_durable.invocation.invocation import Invocation
from celery_durable.invocation.session import RunSession
from celery_durable.journal.layout import Status

from .completion import carry_out
from .result_text import recordable

logger = logging.getLogger("celery_durable")


def finish(invocation: Invocation, state: str | None, result: Any, *, delivered: bool) -> None:
    """Celery is done with this body: say so in the journal.

    *delivered*: no exception kept Celery from storing the result and sending what hangs on it.
    """
    session = invocation.session
    if session is None:
        return
    try:
        _catch_up(invocation, session, state, result)
    except Interrupt as error:
        logger.error("task %s: its end could not be journaled: %s", invocation.request.id, error)
    finally:
        _note_delivery(session, state, result, delivered=delivered)
        session.close()
        # They hold each other: unless they are parted, all of the run waits for the garbage collector.
        forget_opened(invocation.request)
        # Celery says no state where it lets the exception propagate (``task_eager_propagates``).
        if not (state == states.RETRY or isinstance(sys.exc_info()[1], Retry)):
            eager_journals.forget(invocation)


def _catch_up(invocation: Invocation, session: RunSession, state: str | None, result: Any) -> None:
    """Tell the journal what Celery has made of the body, where that is another end than ours."""
    if state == states.FAILURE:
        # Where Celery's autoretry gave up, the journal does not know yet.
        carry_out(invocation, over(result, is_direct=invocation.direct, is_eager=invocation.eager))
    elif state == states.SUCCESS and session.lacks_success:
        # A ``__call__`` of the user's, which is around the body, has made a result of its exception.
        assert session.attempt is not None  # noqa: S101
        session.finish_after_all(Status.SUCCEEDED, recordable(invocation, session.attempt, result))
    elif isinstance(result, Announcement):
        result.call_hooks(invocation.task, invocation.request)


def _note_delivery(session: RunSession, state: str | None, result: Any, *, delivered: bool) -> None:
    # RETRY after an outcome: a time limit struck in between, and Celery has stored nothing of it.
    if not delivered or state in (None, states.RETRY):
        session.outcome.failed()
    elif session.outcome.contradicts(state):
        if isinstance(result, message.BROKER_ERRORS):
            session.outcome.failed()
        else:
            session.outcome.impossible()
