"""The work after Celery has finished a task: the journal learns whether the outcome was delivered."""

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
from .success import encode_result

logger = logging.getLogger("celery_durable")


def finish(invocation: Invocation, state: str | None, result: Any, *, delivered: bool) -> None:
    """Close the session of this invocation.

    Args:
        invocation: the invocation that Celery has finished.
        state: the state that Celery gives it; None: it let an exception propagate.
        result: the value or the exception that Celery has.
        delivered: whether Celery could store the result and send callbacks: no exception of its own stopped it.
    """
    session = invocation.session
    if session is None:
        return
    try:
        _adopt_celerys_end(invocation, session, state, result)
    except Interrupt as error:
        logger.error("task %s: its end could not be recorded: %s", invocation.request.id, error)
    finally:
        _mark_delivery(session, state, result, delivered=delivered)
        session.close()
        # The request and the invocation refer to each other. Else the garbage collector would have to free them.
        forget_opened(invocation.request)
        # There is no state if Celery lets the exception propagate (``task_eager_propagates``).
        if not (state == states.RETRY or isinstance(sys.exc_info()[1], Retry)):
            eager_journals.forget(invocation)


def _adopt_celerys_end(invocation: Invocation, session: RunSession, state: str | None, result: Any) -> None:
    """Tell the journal how Celery has ended the task, if that is another end than ours."""
    if state == states.FAILURE:
        # If Celery's autoretry has given up, the journal does not know this yet.
        carry_out(invocation, over(result, is_direct=invocation.direct, is_eager=invocation.eager))
    elif state == states.SUCCESS:
        if session.attempt is not None and _knows_no_success(session):
            # A ``__call__`` of the user has caught the exception of the body, and has returned a result.
            session.follow_with(Status.SUCCEEDED, encode_result(invocation, session.attempt, result))
    elif isinstance(result, Announcement):
        result.call_hooks(invocation.task, invocation.request)


def _knows_no_success(session: RunSession) -> bool:
    """Whether the journal does not know yet that the run is a success, or says that it has failed."""
    return not session.has_ended or session.outcome.status == Status.FAILED


def _mark_delivery(session: RunSession, state: str | None, result: Any, *, delivered: bool) -> None:
    # If the state is RETRY and there is an outcome, a time limit was raised in between: Celery has stored no outcome.
    if not delivered or state in (None, states.RETRY):
        session.outcome.mark_failed()
    elif session.outcome.contradicts(state):
        if isinstance(result, message.BROKER_ERRORS):
            session.outcome.mark_failed()
        else:
            session.outcome.mark_impossible()
