"""Celery messages of a run: what the library's own header says, and how a retry is sent."""

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

BROKER_AWAY = (OperationalError, OSError)
"""What publishing raises when it can be tried again later."""

HEADER = "celery_durable"
"""Our header on messages that the library sends: ``{"retries": n}``, how many of the retries were the library's own;
``"by_policy"``: how many of these by the task retry policy; ``"hint"``: sent on behalf of another message;
``"changed"``: how often the arguments were changed; ``"reopen"``: names a request to reopen a failed run;
``"asked"``: when a message arrived that found no Redis, and may have been to reopen one, by Redis' clock."""

RECEIVED = "durable_received"
"""Which of ``request.properties`` says when the message arrived, by the machine's monotonic clock."""

ARGUMENTS = "durable_arguments"
"""Which of ``request.properties`` has the arguments apart from those that the body is given."""

SEED = "celery_durable_seed"
"""The header, on all messages of a run, that brings its seed: ``<seed>:<nesting>:<task id>``; bound to the run, since
headers are copied into other messages. Also which of ``request.properties`` has it: a task that makes no use of it does
not see it."""

SERIALIZER = "durable_serializer"
"""Which of ``request.properties`` names the serializer that the message was sent by."""


def header_of(request: Any) -> dict[str, Any]:
    return (request.headers or {}).get(HEADER) or {}


def serializer_of(task: Any, request: Any) -> str:
    """The serializer that the message came by: its arguments go through it once more as they are."""
    return (request.properties or {}).get(SERIALIZER) or default_serializer(task)


def default_serializer(task: Any) -> str:
    """What a message of the task is sent by if nothing else is asked for."""
    name: str = task.serializer or task.app.conf.task_serializer
    return name


def as_it_came(task: Any, request: Any) -> dict[str, Any]:
    """The option that sends the arguments of a message again as they are; none where the task's own will do."""
    serializer = serializer_of(task, request)
    return {} if serializer == default_serializer(task) else {"serializer": serializer}


def library_retries(request: Any) -> int:
    """How many of ``request.retries`` the library sent."""
    return int(header_of(request).get("retries", 0))


def step_retries(request: Any) -> int:
    """How many of ``request.retries`` the retry options of steps asked for."""
    return library_retries(request) - int(header_of(request).get("by_policy", 0))


def own_retries(request: Any) -> int:
    """How many of ``request.retries`` user code asked for, by ``self.retry()``."""
    return int(request.retries or 0) - library_retries(request)


# -- the seed ----------------------------------------------------------------------------------------------------------


def seed_header(task_id: str, nesting: int | None, seed: str) -> dict[str, str]:
    """The header that brings *seed* to a run; *nesting*: how often its task was replaced."""
    return {SEED: f"{seed}:{nesting or 0}:{task_id}"}


def seed_in(headers: dict[str, Any], task_id: str, nesting: int | None) -> str:
    """What *headers* bring to this run; empty where they bring none."""
    seed, _, run = str(headers.get(SEED, "")).partition(":")
    return seed if run == f"{nesting or 0}:{task_id}" else ""


def seed_of(request: Any) -> str:
    return str((request.properties or {}).get(SEED, ""))


def carry_seed(request: Any, seed: str) -> None:
    """Let the messages that are made of *request* bring the seed of its run."""
    if seed_of(request) != seed:
        request.properties = {**(request.properties or {}), SEED: seed}


# -- to reopen a run ---------------------------------------------------------------------------------------------------


def received(request: Any) -> float:
    """When the message arrived, by the monotonic clock."""
    return float((request.properties or {}).get(RECEIVED) or time.monotonic())


def sent_as(request: Any) -> str:
    """What names the sending of a first message, and is the same for all its copies; empty if it does not tell.

    A broker marks a copy, but not every one does (SQS). A message that was rejected, and was brought back on purpose
    from where RabbitMQ keeps those, is no copy.
    """
    deaths = (request.headers or {}).get("x-death") or ()
    return "" if any(death.get("reason") == "rejected" for death in deaths) else seed_of(request)


def still_asking(request: Any, *, fresh: bool, by_redis: Callable[[float], float | None]) -> dict[str, Any]:
    """What the header of a message is to say that repeats one of which nobody knows what it was to begin.

    *by_redis*: tells a moment by Redis' clock, as far as that is known: of no two machines the clocks are the same.
    """
    header = header_of(request)
    said = {name: fact for name, fact in header.items() if name in ("hint", "reopen", "asked")}
    if said or not fresh:
        return said
    asked = by_redis(received(request))
    if asked is None and not seed_of(request):
        asked = time.time() - (time.monotonic() - received(request))
    # None: it counts from when it is read. That it is no copy of another one is known without.
    return {"asked": asked}


# -- sending again -----------------------------------------------------------------------------------------------------


def retry_signature(
    task: Any, request: Any, delay: float, *, by_policy: bool = False, asking: dict[str, Any] | None = None
) -> Any:
    """A retry of the task, the library's own."""
    header = {**_next_header(request, by_policy), **(asking or {})}
    # Expiry is honoured until the first attempt begins: as long as a message asks for that.
    expires = request.expires if "asked" in header else None
    return task.signature_from_request(
        request,
        countdown=delay,
        retries=request.retries + 1,
        expires=expires,
        headers=headers_with(request, header),
        **as_it_came(task, request),
    )


def check_encodable(task: Any, signature: Any) -> None:
    """Encode a message as it will be sent.

    Raises:
        Exception: it can never be sent.
    """
    options = signature.options
    embedded = {name: options.get(name) for name in ("link", "link_error", "chain", "chord")}
    serializer = options.get("serializer") or default_serializer(task)
    serialization.dumps([signature.args, signature.kwargs, embedded], serializer)
    kombu_json.dumps([options.get("headers"), [options.get(name) for name in options.get("stamped_headers") or ()]])


def publish(task: Any, request: Any, signature: Any, *, journaled: bool) -> None:
    """Send a retry that can be encoded: whatever else keeps it from being sent passes.

    *journaled*: whether the journal knows when it is due.

    Raises:
        Reject: the message that is being handled goes back to the broker.
    """
    pause = 1.0
    while True:
        try:
            signature.apply_async()
        except SoftTimeLimitExceeded:
            # It strikes once, and what it was to stop has ended.
            pass
        except Exception as error:
            if task.acks_late:
                raise unsent(request, error) from error
            # The message was acknowledged before the task began.
            if journaled:
                left_to_journal(request, error)
                return
            logger.error("task %s: its retry cannot be published, next try in %g s: %r", request.id, pause, error)
            time.sleep(pause)
            pause = min(pause * 2, 30.0)
        else:
            return


# -- what a message is to say that brings a suspended run back ---------------------------------------------------------


def resume_of_retry(request: Any, *, by_policy: bool = False) -> dict[str, str]:
    """After a retry of the library's own."""
    return _resume(request.retries + 1, _next_header(request, by_policy))


def resume_of_user_retry(request: Any, header: dict[str, Any]) -> dict[str, str]:
    """After ``self.retry()``, whose message has this header."""
    return _resume(request.retries + 1, header)


def resume_as_is(request: Any) -> dict[str, str]:
    """After a wait that is no retry."""
    return _resume(request.retries, lasting(header_of(request)))


def catch_up(request: Any, resume: bytes | None) -> None:
    """Let the *request* say what the newest message would: the one that began this attempt may be an older copy."""
    newest = json.loads(resume) if resume else {}
    if newest.get("retries", 0) > request.retries:
        request.retries = newest["retries"]
        request.headers = {**(request.headers or {}), HEADER: newest["header"]}


def _resume(retries: int, header: dict[str, Any]) -> dict[str, str]:
    return {"resume": json.dumps({"retries": retries, "header": header})}


def lasting(header: dict[str, Any]) -> dict[str, Any]:
    """What of our header is not about one message alone."""
    return {name: fact for name, fact in header.items() if name not in ("hint", "reopen", "asked")}


def _next_header(request: Any, by_policy: bool) -> dict[str, Any]:
    header = header_of(request)
    kept = {"changed": header["changed"]} if "changed" in header else {}
    return {**kept, "retries": library_retries(request) + 1, "by_policy": int(header.get("by_policy", 0)) + by_policy}


def headers_with(request: Any, header: dict[str, Any]) -> dict[str, Any]:
    """The headers of the next message, ours among them.

    RabbitMQ says there that a message has waited in a queue, and drops one that says so when it waits there again.
    """
    headers = {name: value for name, value in (request.headers or {}).items() if name not in X_DEATH_HEADERS}
    return {**headers, **our_headers(request, header)}


def our_headers(request: Any, header: dict[str, Any]) -> dict[str, Any]:
    seed = seed_of(request)
    return {HEADER: header, **(seed_header(request.id, request.replaced_task_nesting, seed) if seed else {})}


def seconds_until(task: Any, when: Any) -> float:
    """*when* as Celery has it, an ``eta`` or a number of seconds, in seconds from now."""
    if isinstance(when, datetime):
        now = task.app.now()
        return float(max(0.0, (when - (now if when.tzinfo else now.replace(tzinfo=None))).total_seconds()))
    return float(when or 0)


def unsent(request: Any, error: Exception) -> Reject:
    """What to raise when a retry could not be published: the message stays, and is delivered again."""
    logger.error(
        "task %s: its retry could not be published, the message goes back to the broker: %r", request.id, error
    )
    return Reject(error, requeue=True)


def left_to_journal(request: Any, error: Exception) -> None:
    """Say that a retry could not be published, and that a worker sends it when it is due."""
    logger.error("task %s: its retry could not be published, the journal has its due time: %r", request.id, error)


def sendable_delay(app: Any, delay: float) -> float:
    """*delay*, or 1 s where Celery loses a task with a countdown below that (RabbitMQ's quorum queues)."""
    return 1.0 if 0 < delay < 1 and uses_quorum_queues(app) else delay
