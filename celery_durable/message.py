"""Celery messages of a run: what a delivery says, what the journal keeps of it, and how it is sent again."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from contextlib import suppress
from typing import Any

from celery.app.task import get_actual_ignore_result  # type: ignore[attr-defined]
from celery.exceptions import Reject
from celery.utils.log import get_logger
from celery.utils.quorum_queues import detect_quorum_queues
from kombu.exceptions import OperationalError
from kombu.serialization import dumps
from kombu.utils import json as kombu_json

from .journal import Delivery
from .serializers import load_content

logger = get_logger("celery_durable")

BROKER_AWAY = (OperationalError, OSError)
"""What publishing raises when it can be tried again later."""

HEADER = "celery_durable"
"""Our header on messages that the library sends: ``{"retries": n}``, how many of the retries were the library's own;
``"by_policy"``: how many of these by the task retry policy;
``"hint"``: sent on behalf of another message; ``"changed"``: with other arguments than the run began with."""


# To make an encoder, as ``dumps`` does each time, costs as much as to encode a message.
_json = kombu_json.JSONEncoder().encode
_sorted_json = kombu_json.JSONEncoder(sort_keys=True).encode


def header_of(request: Any) -> dict[str, Any]:
    return (request.headers or {}).get(HEADER) or {}


def library_retries(request: Any) -> int:
    """How many of ``request.retries`` the library sent."""
    return int(header_of(request).get("retries", 0))


def delivery_of(task: Any, request: Any, args: Any, kwargs: Any) -> Delivery:
    """The message that is being handled, as the journal needs to know it."""
    header = header_of(request)
    redelivered = bool((request.delivery_info or {}).get("redelivered"))
    return Delivery(
        task_id=request.id,
        task=task.name,
        fingerprint=fingerprint(args, kwargs),
        call=saved_call(task, request, args, kwargs),
        nesting=request.replaced_task_nesting or 0,
        fresh="reopen" in header or not (redelivered or request.retries or header),
        reopen=header.get("reopen", ""),
        changed=int(header.get("changed", 0)),
        hint=bool(header.get("hint")),
    )


def fingerprint(args: Any, kwargs: Any) -> str:
    """A hash of the arguments; of those that JSON cannot tell apart, their number only."""
    try:
        text = _sorted_json([args, kwargs])
    except Exception:  # pickled arguments: no text of theirs is stable
        text = f"{len(args)} {sorted(kwargs)}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def step_retries(request: Any) -> int:
    """How many of ``request.retries`` the retry options of steps asked for."""
    return library_retries(request) - int(header_of(request).get("by_policy", 0))


def own_retries(request: Any) -> int:
    """How many of ``request.retries`` user code asked for, by ``self.retry()``."""
    return int(request.retries or 0) - library_retries(request)


# -- what is kept for Retry --------------------------------------------------------------------------------------------


def saved_call(task: Any, request: Any, args: Any, kwargs: Any) -> str:
    """All that is needed to send the task again, as JSON."""
    options = request.as_execution_options()
    headers = {name: value for name, value in (options["headers"] or {}).items() if name != HEADER}
    if changed := header_of(request).get("changed"):
        headers[HEADER] = {"changed": changed}
    options["headers"] = headers
    options["ignore_result"] = get_actual_ignore_result(task, request)
    # Expiry is honoured until the first attempt begins, and this one has begun.
    for fact in ("retries", "expires"):
        options.pop(fact, None)
    info = request.delivery_info or {}
    if info.get("priority") is not None:
        options["priority"] = info["priority"]
    if info.get("exchange") == "" and info.get("routing_key"):
        options["queue"] = info["routing_key"]
    else:
        options |= {name: info[name] for name in ("exchange", "routing_key") if info.get(name)}
    call = {"args": args, "kwargs": kwargs, "options": options}
    try:
        return _call_text(call, task.serializer or task.app.conf.task_serializer)
    except Exception:
        for serializer in task.app.conf.accept_content:
            with suppress(Exception):  # the message itself may have been sent by another one
                return _call_text(call, serializer)
        raise


def _call_text(call: dict[str, Any], serializer: str) -> str:
    if serializer == "json":
        return _json(call)
    content_type, charset, data = dumps(call, serializer)
    raw: Any = data
    raw = raw.encode() if isinstance(raw, str) else raw
    return json.dumps({"content_type": content_type, "charset": charset, "data": base64.b64encode(raw).decode()})


def load_call(text: bytes | str, accept: frozenset[str]) -> dict[str, Any]:
    """What :func:`saved_call` kept: ``args``, ``kwargs`` and ``options``."""
    call = kombu_json.loads(text)
    if "content_type" in call:
        raw = base64.b64decode(call["data"])
        return load_content(raw, call["content_type"], call["charset"], accept)  # type: ignore[no-any-return]
    return call  # type: ignore[no-any-return]


# -- sending again -----------------------------------------------------------------------------------------------------


def send_retry(task: Any, request: Any, delay: float, *, by_policy: bool = False, reopen: str = "") -> Any:
    """Publish a Celery retry of the task, the library's own; its signature."""
    header = _next_header(request, by_policy)
    if reopen:
        header["reopen"] = reopen
    return _send(task, request, delay, header, retries=request.retries + 1)


def reopening(headers: dict[str, Any] | None, nonce: str) -> dict[str, Any]:
    """The *headers* of a message that is to reopen a failed run, once."""
    headers = headers or {}
    return {**headers, HEADER: {**headers.get(HEADER, {}), "reopen": nonce}}


def send_hint(task: Any, request: Any, delay: float) -> Any:
    """Publish the message again, as a reminder to look at the run later."""
    header = {**header_of(request), "hint": 1}
    return _send(task, request, sendable_delay(task.app, delay), header, retries=request.retries)


def eager_signature(task: Any, request: Any, delay: float, *, by_policy: bool = False, reopen: str = "") -> Any:  # noqa: ARG001
    """The signature by which Celery's eager mode runs a retry, at once."""
    return _signature(task, request, delay, _next_header(request, by_policy), request.retries + 1)


def _next_header(request: Any, by_policy: bool) -> dict[str, Any]:
    header = header_of(request)
    kept = {"changed": header["changed"]} if "changed" in header else {}
    return {**kept, "retries": library_retries(request) + 1, "by_policy": int(header.get("by_policy", 0)) + by_policy}


def _signature(task: Any, request: Any, delay: float, header: dict[str, Any], retries: int) -> Any:
    return task.signature_from_request(
        request,
        countdown=delay,
        retries=retries,
        expires=None,
        headers={**(request.headers or {}), HEADER: header},
    )


def _send(task: Any, request: Any, delay: float, header: dict[str, Any], retries: int) -> Any:
    signature = _signature(task, request, delay, header, retries)
    pause = 1.0
    while True:
        try:
            signature.apply_async()
        except BROKER_AWAY as error:
            if task.acks_late:
                raise unsent(request, error) from error
            # The message was acknowledged before the task began: the retry exists only here.
            logger.error("task %s: its retry cannot be published, next try in %g s: %r", request.id, pause, error)
            time.sleep(pause)
            pause = min(pause * 2, 30.0)
        else:
            return signature


def unsent(request: Any, error: Exception) -> Reject:
    """What to raise when a retry could not be published: the message stays, and is delivered again."""
    logger.error(
        "task %s: its retry could not be published, the message goes back to the broker: %r", request.id, error
    )
    return Reject(error, requeue=True)


def sendable_delay(app: Any, delay: float) -> float:
    """*delay*, or 1 s where Celery loses a task with a countdown below that (RabbitMQ's quorum queues)."""
    if 0 < delay < 1:
        driver_type = app.producer_pool.connections.connection.transport.driver_type
        if detect_quorum_queues(app, driver_type)[0]:
            return 1.0
    return delay
