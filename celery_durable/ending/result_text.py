"""The result of a task, as text for its journal."""

from __future__ import annotations

from typing import Any

from celery_durable.delivery import outcome
from celery_durable.exceptions import EntryNotRecordableError
from celery_durable.invocation.invocation import Invocation
from celery_durable.seams.celery import ignores_result
from celery_durable.steps.attempt import Attempt


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
