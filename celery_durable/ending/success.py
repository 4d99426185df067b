"""The end of an attempt that succeeds: its result becomes text, and is recorded with the outcome."""

from __future__ import annotations

from typing import Any

from celery_durable.delivery import backend, outcome
from celery_durable.exceptions import EntryNotRecordableError
from celery_durable.invocation import eager_journals
from celery_durable.invocation.ends import Succeeded
from celery_durable.invocation.invocation import Invocation
from celery_durable.journal.layout import Status
from celery_durable.journal.port import NO_RESULT
from celery_durable.seams.celery import ignores_result
from celery_durable.steps.attempt import Attempt

from .redelivery import ReturnValue


def record_success(invocation: Invocation, end: Succeeded) -> ReturnValue:
    """Write the outcome of a success, and its result together with it if possible."""
    session, request = invocation.session, invocation.request
    assert session is not None and session.attempt is not None  # noqa: S101, PT018
    result = None
    if session.store is not None and session.outcome.may_be_written_with_outcome:
        result = session.store.result_of(invocation.task, request, end.value)
    text = encode_result(invocation, session.attempt, end.value)
    if session.finish(Status.SUCCEEDED, text, result) and result is not NO_RESULT:
        backend.suppressed_run.set(request.id)
    eager_journals.forget(invocation)
    return ReturnValue(end.value)


def encode_result(invocation: Invocation, attempt: Attempt, value: Any) -> str:
    """The result as text. If nobody gets the result and it cannot be written, it is recorded as None.

    Raises:
        Interrupt: Celery's result serializer cannot write it, and the run has failed.
    """
    serializer = invocation.task.durable_result_serializer
    try:
        return outcome.encode_value(value, serializer)
    except Exception as error:
        request = invocation.request
        wanted = request.callbacks or request.chain or request.chord
        if ignores_result(invocation.task, request) and not wanted:
            return outcome.encode_value(None, "json")
        raise attempt.pulse.end_run(
            EntryNotRecordableError(
                f"task {attempt.info.task_id} returned a {type(value).__name__}, which Celery's result serializer "
                f"{serializer!r} does not take: {error}"
            )
        ) from error
