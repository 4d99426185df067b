"""``self.retry()`` of user code: Celery's own, and what the journal has to know of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from celery_durable.delivery.call import fields_of_user_retry
from celery_durable.delivery.message import (
    check_encodable,
    header_of,
    headers_with,
    lasting_header,
    library_retries,
    log_left_to_journal,
    our_headers,
    reject_unsent,
    seconds_until,
    sendable_delay,
    serializer_option,
    step_retries,
)
from celery_durable.ending.retry_plan import Carrier, plan
from celery_durable.ending.suspension import fail_after_all, suspend_as_retried
from celery_durable.interrupts import Fenced, JournalLost
from celery_durable.invocation.invocation import Invocation

logger = logging.getLogger("celery_durable")


def retry(
    task: Any,
    invocation: Invocation | None,
    celerys: Callable[..., Any],
    arguments: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    """Celery's ``retry``, and what the journal has to know of it.

    Args:
        task: the task.
        invocation: that of the body which has opened a run; None where it has not used its context.
        celerys: ``Task.retry`` of Celery.
        arguments: those of ``retry``, by name.
        options: the others, which go into the message.
    """
    request = task.request
    if request.called_directly:
        return celerys(**_given(arguments), **options)
    if invocation is not None and invocation.raised is not None and arguments["exc"] is invocation.raised:
        # Celery's autoretry asks for what is decided already.
        raise invocation.raised
    limit = task.max_retries if arguments["max_retries"] is None else arguments["max_retries"]
    if limit is not None and (ours := _uncounted_retries(task, request)):
        limit = arguments["max_retries"] = limit + ours
    header = _header(request, invocation, changes=not (arguments["args"] is None and arguments["kwargs"] is None))
    changed: Mapping[str, str] = {}
    if invocation is not None:
        invocation.restore_arguments()
        changed = fields_of_user_retry(task, request, arguments["args"], arguments["kwargs"], options, header)
        invocation.retry.changes = changed
    if header:
        options = _with_header(request, options, header)
    if invocation is None:
        return celerys(**_given(arguments), **options)
    return _retry_run(invocation, celerys, arguments, options, limit)


def _retry_run(
    invocation: Invocation,
    celerys: Callable[..., Any],
    arguments: dict[str, Any],
    options: dict[str, Any],
    limit: int | None,
) -> Any:
    """The retry of a run: the journal is told first, and carries the wait itself if it is long."""
    task, request = invocation.task, invocation.request
    # Expiry was honoured until the first attempt began.
    options = {**serializer_option(task, request), "expires": None, **options}
    eta, countdown = arguments["eta"], arguments["countdown"]
    delay = seconds_until(task, eta or (task.default_retry_delay if countdown is None else countdown))
    if (possible := sendable_delay(task.app, delay)) != delay:
        delay = possible
        arguments |= {"eta": None, "countdown": possible}
    if arguments["throw"] is None and _is_kept_by_journal(invocation, delay, limit, arguments["exc"]):
        # Nothing is to be published.
        invocation.retry.raised = Retry(exc=arguments["exc"], when=delay)  # type: ignore[arg-type]
        raise invocation.retry.raised
    send = partial(celerys, **_given(arguments), **options)
    signature = partial(task.signature_from_request, request, arguments["args"], arguments["kwargs"], **options)
    return _send(invocation, send, delay, signature)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    # The retry() of another base may know fewer of them: only those that were given are handed on.
    return {name: value for name, value in arguments.items() if value is not None}


# -- what its message says to us ---------------------------------------------------------------------------------------


def _header(request: Any, invocation: Invocation | None, *, changes: bool) -> dict[str, Any]:
    header = lasting_header(header_of(request))
    if invocation is not None:
        # It says that there is a run.
        header.setdefault("retries", 0)
    # Where no run has begun, other arguments are at odds with nothing.
    if changes and (invocation is not None or header_of(request)):
        changed = invocation.attempt.state.changes if invocation is not None and invocation.attempt is not None else 0
        header["changed"] = max(header.get("changed", 0), changed) + 1
    return header


def _with_header(request: Any, options: dict[str, Any], header: dict[str, Any]) -> dict[str, Any]:
    """The options of a retry and our header; headers that are given replace all others, as in plain Celery."""
    given = "headers" in options
    headers = {**(options["headers"] or {}), **our_headers(request, header)} if given else None
    return {**options, "headers": headers or headers_with(request, header)}


def _uncounted_retries(task: Any, request: Any) -> int:
    """The library's retries, which ``max_retries`` is not about; the policy that it became counts its own."""
    shares_budget = task.auto_retry and not task.retry_rules.resets_on_progress
    return step_retries(request) if shares_budget else library_retries(request)


# -- the journal, then the broker --------------------------------------------------------------------------------------


def _is_kept_by_journal(invocation: Invocation, delay: float, limit: int | None, error: BaseException | None) -> bool:
    """Tell the journal of a retry that is about to be published; whether the journal carries the wait."""
    session, attempt = invocation.session, invocation.attempt
    within = limit is None or invocation.request.retries + 1 <= limit
    if not within or session is None or attempt is None:
        return False
    planned = plan(invocation, delay, "self.retry()")
    try:
        suspend = partial(session.suspend, planned.delay, invocation.retry.changes, slack=planned.slack)
        suspend_as_retried(invocation, error, suspend)
    except Fenced:
        raise Ignore("another attempt has taken over") from None
    except JournalLost as lost:
        # Celery's message carries the retry; the journal will see it when the lease has lapsed.
        logger.error("task %s: self.retry() could not be journaled: %s", invocation.request.id, lost)
        attempt.pulse.interrupt = None
        session.close_attempt()
        return False
    planned.log(invocation.request.id)
    return planned.carrier is Carrier.JOURNAL


def _send(invocation: Invocation, send: Callable[[], Any], delay: float, signature: Callable[[], Any]) -> Any:
    """Let Celery publish, and keep what it raises: that stands, whatever user code makes of it."""
    due = time.monotonic() + delay
    try:
        retry = _sent(send)
    except Retry as said:
        invocation.retry.raised = said
        raise
    except Reject as rejected:
        told = _not_sent(invocation, rejected, delay, signature)
        if told is rejected:
            raise
        raise told from rejected
    except Exception as error:
        invocation.retry.spent = error
        raise
    if not invocation.eager:
        # The body goes on (``throw=False``), and it is not the last attempt, however it ends.
        invocation.retry.due = due
    return retry


def _sent(send: Callable[[], Any]) -> Any:
    try:
        return send()
    except Reject as rejected:
        # A soft time limit strikes once, and what it was to stop has ended.
        if not isinstance(rejected.reason, SoftTimeLimitExceeded):  # type: ignore[attr-defined]
            raise
    return send()


def _not_sent(invocation: Invocation, rejected: Reject, delay: float, signature: Callable[[], Any]) -> BaseException:
    """What to raise where Celery could not publish a retry."""
    task, session = invocation.task, invocation.session
    reason: Any = rejected.reason  # type: ignore[attr-defined]
    try:
        check_encodable(task, signature())
    except Exception:
        fail_after_all(invocation, rejected)
        return rejected
    # Whatever else keeps a message from being sent passes.
    if task.acks_late:
        return reject_unsent(invocation.request, reason)
    if session is not None and session.is_suspended:
        log_left_to_journal(invocation.request, reason)
        invocation.retry.raised = Retry(exc=reason, when=delay)  # type: ignore[arg-type]
        return invocation.retry.raised
    fail_after_all(invocation, rejected)
    return rejected
