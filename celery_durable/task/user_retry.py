"""``self.retry()`` in user code: Celery sends the retry, and the journal is told before."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from celery_durable.delivery import backend
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
from celery_durable.ending.suspension import fail_unsendable_retry, suspend_and_show_retry
from celery_durable.interrupts import Fenced, JournalLost
from celery_durable.invocation.invocation import Invocation
from celery_durable.journal.port import JournalGone

logger = logging.getLogger("celery_durable")


def retry(
    task: Any,
    invocation: Invocation | None,
    celery_retry: Callable[..., Any],
    arguments: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    """Tell the journal of the retry, and let Celery send it.

    Args:
        task: the task.
        invocation: the invocation, if its body has opened a run; else None.
        celery_retry: Celery's ``Task.retry``.
        arguments: the named arguments of ``retry``; None: not given.
        options: the other arguments, which go into the message.
    """
    request = task.request
    if request.called_directly:
        return celery_retry(**_without_none(arguments), **options)
    if invocation is not None and invocation.raised is not None and arguments["exc"] is invocation.raised:
        # Celery's autoretry wants to retry this exception, but the end of the attempt is decided already.
        raise invocation.raised
    limit = task.max_retries if arguments["max_retries"] is None else arguments["max_retries"]
    if limit is not None and (ours := _uncounted_retries(task, request)):
        limit = arguments["max_retries"] = limit + ours
    header = _header(request, invocation, changes=not (arguments["args"] is None and arguments["kwargs"] is None))
    if invocation is not None:
        invocation.restore_arguments()
        given = arguments["args"], arguments["kwargs"]
        invocation.retry.changes = fields_of_user_retry(task, request, *given, options, header)
    if header:
        options = _with_header(request, options, header)
    if invocation is None:
        return celery_retry(**_without_none(arguments), **options)
    return _retry_run(invocation, celery_retry, arguments, options, limit)


def _retry_run(
    invocation: Invocation,
    celery_retry: Callable[..., Any],
    arguments: dict[str, Any],
    options: dict[str, Any],
    limit: int | None,
) -> Any:
    """Retry a run: the journal is told first, and keeps the wait itself if it is long."""
    task, request = invocation.task, invocation.request
    # ``expires`` holds until the first attempt begins, and that has begun.
    options = {**serializer_option(task, request), "expires": None, **options}
    eta, countdown = arguments["eta"], arguments["countdown"]
    delay = seconds_until(task, eta or (task.default_retry_delay if countdown is None else countdown))
    if (possible := sendable_delay(task.app, delay)) != delay:
        delay = possible
        arguments |= {"eta": None, "countdown": possible}
    if arguments["throw"] is None and _suspend_first(invocation, delay, limit, arguments["exc"]):
        # The journal keeps the wait, so no message is sent.
        invocation.retry.raised = Retry(exc=arguments["exc"], when=delay)  # type: ignore[arg-type]
        raise invocation.retry.raised
    send = partial(celery_retry, **_without_none(arguments), **options)
    signature = partial(task.signature_from_request, request, arguments["args"], arguments["kwargs"], **options)
    return _send(invocation, send, delay, signature)


def _without_none(arguments: dict[str, Any]) -> dict[str, Any]:
    # Another base class may have a retry() with fewer parameters. So only the arguments that were given are passed.
    return {name: value for name, value in arguments.items() if value is not None}


# -- our header on its message -----------------------------------------------------------------------------------------


def _header(request: Any, invocation: Invocation | None, *, changes: bool) -> dict[str, Any]:
    header = lasting_header(header_of(request))
    if invocation is not None:
        # This entry says that there is a run.
        header.setdefault("retries", 0)
    # If no run has begun, new arguments cannot contradict recorded ones.
    if changes and (invocation is not None or header_of(request)):
        changed = invocation.attempt.state.changes if invocation is not None and invocation.attempt is not None else 0
        header["changed"] = max(header.get("changed", 0), changed) + 1
    return header


def _with_header(request: Any, options: dict[str, Any], header: dict[str, Any]) -> dict[str, Any]:
    """*options* with our header. As in plain Celery, headers that are given replace all others."""
    given = "headers" in options
    headers = {**(options["headers"] or {}), **our_headers(request, header)} if given else None
    return {**options, "headers": headers or headers_with(request, header)}


def _uncounted_retries(task: Any, request: Any) -> int:
    """How many retries of the library do not count for ``max_retries``.

    If ``max_retries`` has become part of the task retry policy, the retries by this policy count.
    """
    shares_budget = task.auto_retry and not task.retry_rules.resets_on_progress
    return step_retries(request) if shares_budget else library_retries(request)


# -- the journal, then the broker --------------------------------------------------------------------------------------


def _suspend_first(invocation: Invocation, delay: float, limit: int | None, error: BaseException | None) -> bool:
    """Suspend the run in the journal before the retry is sent. Returns whether the journal keeps the wait."""
    session, attempt = invocation.session, invocation.attempt
    within = limit is None or invocation.request.retries + 1 <= limit
    if not within or session is None or attempt is None:
        return False
    planned = plan(invocation, delay, "self.retry()")
    try:
        suspend = partial(session.suspend, planned.delay, invocation.retry.changes, slack=planned.slack)
        suspend_and_show_retry(invocation, error, suspend)
    except Fenced:
        raise Ignore("another attempt has taken over") from None
    except JournalLost as lost:
        # Celery's message brings the run back. The journal accepts it when the lease has lapsed.
        logger.error("task %s: self.retry() could not be recorded: %s", invocation.request.id, lost)
        _show_without_journal(invocation, lost, error)
        # That retry is how the attempt ends now, whatever else its code has met before.
        attempt.pulse.interrupt = None
        session.close_attempt()
        return False
    planned.log(invocation.request.id)
    return planned.carrier is Carrier.JOURNAL


def _show_without_journal(invocation: Invocation, lost: JournalLost, error: BaseException | None) -> None:
    # Celery would store RETRY after it has sent the message, and then the next attempt may have ended the run.
    interim = backend.Interim.of_retry(error)
    if isinstance(lost.error, JournalGone):
        backend.store_interim(invocation.task, invocation.request, interim)
    else:
        # The run may be suspended: only the reply is lost. Then the state was stored, and another attempt may have it.
        backend.mark_stored(invocation.request, interim)


def _send(invocation: Invocation, send: Callable[[], Any], delay: float, signature: Callable[[], Any]) -> Any:
    """Let Celery send the retry. What it raises is kept, because it holds even if user code swallows it."""
    due = time.monotonic() + delay
    try:
        retry = _sent(send)
    except Retry as said:
        invocation.retry.raised = said
        raise
    except Reject as rejected:
        told = _after_failed_send(invocation, rejected, delay, signature)
        if told is rejected:
            raise
        raise told from rejected
    except Exception as error:
        invocation.retry.exhausted = error
        raise
    if not invocation.eager:
        # The body goes on (``throw=False``). The run has another attempt, however this one ends.
        invocation.retry.due = due
    return retry


def _sent(send: Callable[[], Any]) -> Any:
    try:
        return send()
    except Reject as rejected:
        # A soft time limit is raised once, and the body, which it was to stop, has ended.
        if not isinstance(rejected.reason, SoftTimeLimitExceeded):  # type: ignore[attr-defined]
            raise
    return send()


def _after_failed_send(
    invocation: Invocation, rejected: Reject, delay: float, signature: Callable[[], Any]
) -> BaseException:
    """The exception to raise if Celery could not publish a retry."""
    task, session = invocation.task, invocation.session
    reason: Any = rejected.reason  # type: ignore[attr-defined]
    try:
        check_encodable(task, signature())
    except Exception:
        fail_unsendable_retry(invocation, rejected)
        return rejected
    # The message can be encoded, so the error passes by itself (the broker is away, for example).
    if task.acks_late:
        return reject_unsent(invocation.request, reason)
    if session is not None and session.is_suspended:
        log_left_to_journal(invocation.request, reason)
        invocation.retry.raised = Retry(exc=reason, when=delay)  # type: ignore[arg-type]
        return invocation.retry.raised
    fail_unsendable_retry(invocation, rejected)
    return rejected
