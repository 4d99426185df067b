"""The messages of a run: what the library's own header says, and how a retry is sent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery.utils.log import get_logger
from kombu import serialization
from kombu.exceptions import OperationalError
from kombu.utils import json as kombu_json

from celery_durable.seams.celery import X_DEATH_HEADERS, uses_quorum_queues

logger = get_logger("celery_durable")

BROKER_ERRORS = (OperationalError, OSError)
"""What publishing raises if the broker cannot be reached: a later try may succeed."""

HEADER = "celery_durable"
"""Our header on messages that the library sends, a dict:

- ``"retries"``: how many retries of the run the library has sent;
- ``"by_policy"``: how many of these the task retry policy asked for;
- ``"hint"``: the message is a wake-up: a worker has sent it in place of another one;
- ``"changed"``: how often ``self.retry(args=...)`` has changed the arguments;
- ``"reopen"``: the name of a request to reopen a failed run;
- ``"restarted"``: the newest restart of that run when this was asked, an id; empty: none. If there is another one when
  the message arrives, it reopens nothing: that one does its work;
- ``"failed"``: the number of the attempt after which the run had failed when this was asked. If another one has failed
  since, the message reopens nothing: another request has been carried out meanwhile;
- ``"asked"``: the message repeats one that found no Redis and may have been sent to reopen a run. The value is the time
  at which that one arrived, by the clock of Redis (s).
"""

RECEIVED = "durable_received"
"""The key in ``request.properties`` of the time when the message arrived, by the machine's monotonic clock (s)."""

ARGUMENTS = "durable_arguments"
"""The key in ``request.properties`` of the arguments as they were sent: the body may change its own in place."""

SEED = "celery_durable_seed"
"""The header on all messages of a run that brings its seed, ``<seed>:<nesting>:<task id>``. It names the run, because
headers are copied into other messages. It is also the key in ``request.properties`` of the seed: there, a task does not
see it by accident."""

_OF_ONE_MESSAGE = frozenset({"hint", "reopen", "restarted", "failed", "asked"})
"""Facts of our header that hold for one message only."""

SERIALIZER = "durable_serializer"
"""The key in ``request.properties`` of the name of the serializer that the message was sent with."""


def header_of(request: Any) -> dict[str, Any]:
    """Our header of the message; empty if it has none."""
    return (request.headers or {}).get(HEADER) or {}


def default_serializer(task: Any) -> str:
    """The name of the serializer for a message of the task if the sender names none."""
    name: str = task.serializer or task.app.conf.task_serializer
    return name


def serializer_option(task: Any, request: Any) -> dict[str, Any]:
    """The option ``serializer`` to send the arguments of this message again; empty if that is the task's default."""
    default = default_serializer(task)
    serializer = (request.properties or {}).get(SERIALIZER) or default
    return {} if serializer == default else {"serializer": serializer}


def library_retries(request: Any) -> int:
    """How many of ``request.retries`` the library has sent."""
    return int(header_of(request).get("retries", 0))


def step_retries(request: Any) -> int:
    """How many of ``request.retries`` the retry options of steps have asked for."""
    return library_retries(request) - int(header_of(request).get("by_policy", 0))


def own_retries(request: Any) -> int:
    """How many of ``request.retries`` user code has asked for, by ``self.retry()``."""
    return int(request.retries or 0) - library_retries(request)


# -- the seed ----------------------------------------------------------------------------------------------------------


def seed_header(task_id: str, nesting: int | None, seed: str) -> dict[str, str]:
    """The header that brings *seed* to a run. *nesting* is how often its task was replaced (``Task.replace``)."""
    return {SEED: f"{seed}:{nesting or 0}:{task_id}"}


def seed_from_headers(headers: dict[str, Any], task_id: str, nesting: int | None) -> str:
    """The seed that *headers* bring to this run; empty if they bring none."""
    seed, _, run = str(headers.get(SEED, "")).partition(":")
    return seed if run == f"{nesting or 0}:{task_id}" else ""


def seed_of(request: Any) -> str:
    """The seed that the message has brought to its run; empty if it has brought none."""
    return str((request.properties or {}).get(SEED, ""))


def set_seed(request: Any, seed: str) -> None:
    """Put the seed of the run into *request*: the messages that are made from it bring it to later attempts."""
    request.properties = {**(request.properties or {}), SEED: seed}


# -- reopening a run ---------------------------------------------------------------------------------------------------


def is_redelivered(request: Any) -> bool:
    """Whether the broker says that it has delivered this message before."""
    return bool((request.delivery_info or {}).get("redelivered"))


def received_at(request: Any) -> float:
    """When the message arrived, by the monotonic clock (s)."""
    return float((request.properties or {}).get(RECEIVED) or time.monotonic())


def sending_id(request: Any, seed: str) -> str:
    """A name for one sending of a first message: all copies of the message have the same. Empty if it is not known.

    It is the *seed* that the message has brought. It tells copies from new messages where the broker does not mark
    copies (SQS). RabbitMQ keeps a rejected message in a dead letter queue. If somebody moves it back from there, it
    counts as a new message, and not as a copy.
    """
    deaths = (request.headers or {}).get("x-death")
    if deaths and any(death.get("reason") == "rejected" for death in deaths):
        return ""
    return seed


def header_of_repeat(request: Any, *, fresh: bool, by_redis: Callable[[float], float | None]) -> dict[str, Any]:
    """What our header must say on the next message, which repeats this one because it found no Redis.

    This message may have been sent to begin a run, or to reopen a failed one. Only the journal knows which. So its
    copy keeps the facts by which the journal decides.

    Args:
        request: Celery's request of this message.
        fresh: whether this message is no copy of an earlier one.
        by_redis: turns a monotonic time into the clock of Redis (s); None if that clock is not known. Two machines
            never have exactly the same clock.
    """
    header = header_of(request)
    said = {name: fact for name, fact in header.items() if name in _OF_ONE_MESSAGE}
    if said or not fresh:
        return said
    asked = by_redis(received_at(request))
    if asked is None and not seed_of(request):
        asked = time.time() - (time.monotonic() - received_at(request))
    # If it is None, the time at which the next message is read counts. The seed tells that it is no copy.
    return {"asked": asked}


# -- sending again -----------------------------------------------------------------------------------------------------


def retry_signature(
    task: Any, request: Any, delay: float, *, by_policy: bool = False, repeated: dict[str, Any] | None = None
) -> Any:
    """The message of a retry that the library asks for, as a signature.

    Args:
        task: the task.
        request: Celery's request of the attempt that ends.
        delay: seconds until the retry.
        by_policy: whether the task retry policy asks for it, and not a step.
        repeated: what :func:`header_of_repeat` gives, if no attempt has begun.
    """
    header = {**_next_header(request, by_policy), **(repeated or {})}
    # ``expires`` holds until the first attempt begins, and with "asked" none has begun.
    expires = request.expires if "asked" in header else None
    return task.signature_from_request(
        request,
        countdown=delay,
        retries=request.retries + 1,
        expires=expires,
        headers=headers_with(request, header),
        **serializer_option(task, request),
    )


def check_encodable(task: Any, signature: Any) -> None:
    """Encode a message as it will be sent, to learn whether it can be sent at all.

    Raises:
        Exception: the message can never be sent.
    """
    options = signature.options
    embedded = {name: options.get(name) for name in ("link", "link_error", "chain", "chord")}
    serializer = options.get("serializer") or default_serializer(task)
    serialization.dumps([signature.args, signature.kwargs, embedded], serializer)
    kombu_json.dumps([options.get("headers"), [options.get(name) for name in options.get("stamped_headers") or ()]])


def publish(task: Any, request: Any, signature: Any, *, is_in_journal: bool) -> None:
    """Send a retry. It can be encoded, so any error here passes by itself (the broker is away, for example).

    With ``acks_late``, an error gives the present message back to the broker. Without it, the journal sends the retry
    if it knows when it is due; else this function tries again until it succeeds.

    *is_in_journal*: whether the journal knows when the retry is due.

    Raises:
        Reject: the present message goes back to the broker.
    """
    pause = 1.0
    while True:
        try:
            signature.apply_async()
        except SoftTimeLimitExceeded:
            # It is raised once, and the body, which it was to stop, has ended.
            pass
        except Exception as error:
            if task.acks_late:
                raise reject_unsent(request, error) from error
            # The message was acknowledged before the task began.
            if is_in_journal:
                log_left_to_journal(request, error)
                return
            logger.error("task %s: its retry cannot be published, next try in %g s: %r", request.id, pause, error)
            time.sleep(pause)
            pause = min(pause * 2, 30.0)
        else:
            return


# -- what the next message of a suspended run must say -----------------------------------------------------------------


def resume_of_retry(request: Any, *, by_policy: bool = False) -> dict[str, str]:
    """The field ``resume`` of the journal: the next message is a retry that the library asks for."""
    return _resume(request.retries + 1, _next_header(request, by_policy))


def resume_of_user_retry(request: Any, header: dict[str, Any]) -> dict[str, str]:
    """The field ``resume`` of the journal: the next message is the one of ``self.retry()``, with this header."""
    return _resume(request.retries + 1, header)


def resume_as_is(request: Any) -> dict[str, str]:
    """The field ``resume`` of the journal: the run goes on after a wait that is no retry."""
    return _resume(request.retries, lasting_header(header_of(request)))


def resume_afresh() -> dict[str, str]:
    """The field ``resume`` of the journal: the next message is like the first one, and no retry before it counts."""
    return _resume(0, {})


def apply_newest(request: Any, resume: bytes) -> None:
    """Give *request* the retry count and the header of the newest message: this one may be an older copy."""
    newest = json.loads(resume)
    if newest.get("retries", 0) > request.retries:
        request.retries = newest["retries"]
        request.headers = {**(request.headers or {}), HEADER: newest["header"]}


def _resume(retries: int, header: dict[str, Any]) -> dict[str, str]:
    return {"resume": json.dumps({"retries": retries, "header": header})}


def lasting_header(header: dict[str, Any]) -> dict[str, Any]:
    """Our header without the facts that hold for one message only."""
    return {name: fact for name, fact in header.items() if name not in _OF_ONE_MESSAGE}


def _next_header(request: Any, by_policy: bool) -> dict[str, Any]:
    header = header_of(request)
    kept = {"changed": header["changed"]} if "changed" in header else {}
    return {**kept, "retries": library_retries(request) + 1, "by_policy": int(header.get("by_policy", 0)) + by_policy}


def headers_with(request: Any, header: dict[str, Any]) -> dict[str, Any]:
    """The headers of the next message, with our own header.

    The headers in which RabbitMQ notes where a message has waited are left out. With them, RabbitMQ would drop the
    next message if it waits in the same queue again.
    """
    headers = {name: value for name, value in (request.headers or {}).items() if name not in X_DEATH_HEADERS}
    return {**headers, **our_headers(request, header)}


def our_headers(request: Any, header: dict[str, Any]) -> dict[str, Any]:
    """Both headers of the library for the next message: our own, and the seed."""
    seed = seed_of(request)
    return {HEADER: header, **(seed_header(request.id, request.replaced_task_nesting, seed) if seed else {})}


def seconds_until(task: Any, when: Any) -> float:
    """Seconds from now until *when*: a time (``eta``) or a number of seconds (``countdown``), as Celery has it."""
    if isinstance(when, datetime):
        now = task.app.now()
        return float(max(0.0, (when - (now if when.tzinfo else now.replace(tzinfo=None))).total_seconds()))
    return float(when or 0)


def reject_unsent(request: Any, error: Exception) -> Reject:
    """Log that a retry could not be published. Returns the error to raise: the broker delivers the message again."""
    logger.error(
        "task %s: its retry could not be published; the message goes back to the broker: %r", request.id, error
    )
    return Reject(error, requeue=True)


def log_left_to_journal(request: Any, error: Exception) -> None:
    """Log that a retry could not be published: a worker sends it from the journal when it is due."""
    logger.error(
        "task %s: its retry could not be published; a worker sends it from the journal when it is due: %r",
        request.id,
        error,
    )


def sendable_delay(app: Any, delay: float) -> float:
    """*delay* (s); with RabbitMQ's quorum queues at least 1 s: Celery loses a task with a shorter countdown there."""
    return 1.0 if 0 < delay < 1 and uses_quorum_queues(app) else delay
