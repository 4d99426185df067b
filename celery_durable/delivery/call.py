"""The call that began a run: what the journal keeps of its message, and how that is sent again."""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from kombu.serialization import dumps
from kombu.utils import json as kombu_json

from celery_durable import sentry, tracing
from celery_durable.exceptions import EntryNotRecordableError
from celery_durable.journal.port import Delivery
from celery_durable.seams.celery import ignores_result, sending_options
from celery_durable.values.registry import json_of, load_content
from celery_durable.values.remainder import same

from .message import (
    HEADER,
    as_it_came,
    default_serializer,
    header_of,
    received,
    resume_of_user_retry,
    seed_header,
    seed_of,
    sent_as,
)

_sorted_json = kombu_json.JSONEncoder(sort_keys=True).encode

_ROUTE = ("queue", "exchange", "routing_key")


class Call(NamedTuple):
    """How to send the task of a run."""

    args: Any
    kwargs: Any
    options: dict[str, Any]
    """As of ``apply_async``: id, headers, canvas, queue, priority, stamps, time limits."""

    @classmethod
    def of(
        cls,
        task: Any,
        request: Any,
        args: Any,
        kwargs: Any,
        changes: Mapping[str, Any] | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> Call:
        """That of the message being handled.

        *changes*, *header*: the options that ``self.retry()`` was given, and what its message says to us.
        """
        # What says nothing is a third of the text.
        options = {name: value for name, value in request.as_execution_options().items() if value is not None}
        options["ignore_result"] = ignores_result(task, request)
        # Expiry is honoured until the first attempt begins, and this one has begun.
        for fact in ("retries", "expires"):
            options.pop(fact, None)
        options |= _route(request.delivery_info or {})
        options |= as_it_came(task, request)
        if changes:
            options = _changed(options, changes)
        headers = {name: value for name, value in (options.get("headers") or {}).items() if name != HEADER}
        if changed := (header or header_of(request)).get("changed"):
            headers[HEADER] = {"changed": changed}
        # Of a sender without a trace: that of this attempt goes on in the next ones.
        options["headers"] = tracing.traced(headers)
        return cls(args, kwargs, options)

    @classmethod
    def load(cls, text: bytes | str, accept: frozenset[str]) -> Call:
        """The call as the journal keeps it."""
        facts = kombu_json.loads(text)
        if "content_type" in facts:
            raw = base64.b64decode(facts["data"])
            facts = load_content(raw, facts["content_type"], facts["charset"], accept)
        return cls(**facts)

    def text(self, task: Any) -> str:
        """As JSON, or in JSON as what the serializer of the message makes of it.

        Raises:
            EntryNotRecordableError: no serializer that the app accepts gives the arguments back as they are.
        """
        facts = self._asdict()
        serializer = self.options.get("serializer") or default_serializer(task)
        try:
            return _text(facts, serializer)
        except Exception as error:
            reason = error
        for other in task.app.conf.accept_content:
            # Arguments that self.retry() was given, say.
            with suppress(Exception):
                text = _text({**facts, "options": {**self.options, "serializer": other}}, other)
                kept = Call.load(text, frozenset(task.app.conf.accept_content))
                if other == "pickle" or same([*self.args, self.kwargs], [*kept.args, kept.kwargs]):
                    return text
        raise EntryNotRecordableError(
            f"task {self.options.get('task_id')}: no serializer of accept_content gives its arguments back to a later "
            f"attempt as they are ({serializer}: {reason!r}): send plain data"
        )

    def send(self, app: Any, name: str, header: Mapping[str, Any], *, seed: str = "", **options: Any) -> None:
        """Send it again, with *header* as what the message says to us, and the *seed* that it brings to its run."""
        headers = dict(self.options.get("headers") or {})
        if seed:
            headers |= seed_header(self.options["task_id"], self.options.get("replaced_task_nesting"), seed)
        headers[HEADER] = {**headers.get(HEADER, {}), **header}
        # Expiry is honoured until the first attempt begins, and that has.
        options = {**self.options, **options, "headers": sentry.readable(headers), "expires": None}
        if (task := app.tasks.get(name)) is not None:
            # The task's own: its serializer, say.
            options = {**sending_options(task), **options, "task_type": task}
        with tracing.continued(headers):
            app.send_task(name, tuple(self.args), self.kwargs, **options)


def delivery_of(task: Any, request: Any, args: Any, kwargs: Any) -> Delivery:
    """The message that is being handled, as the journal needs to know it."""
    header = header_of(request)
    redelivered = bool((request.delivery_info or {}).get("redelivered"))
    return Delivery(
        task_id=request.id,
        task=task.name,
        fingerprint=fingerprint(args, kwargs),
        call=Call.of(task, request, args, kwargs).text(task),
        nesting=request.replaced_task_nesting or 0,
        fresh=not header.keys().isdisjoint(("reopen", "asked")) or not (redelivered or request.retries or header),
        reopen=header.get("reopen", ""),
        received=received(request),
        changed=int(header.get("changed", 0)),
        wake_up=bool(header.get("hint")),
        seed=seed_of(request),
        sent=sent_as(request),
        asked=header.get("asked"),
        build=task.durable_terms.build,
    )


def fingerprint(args: Any, kwargs: Any) -> str:
    """A hash of the arguments; of those that JSON cannot tell apart, their number only."""
    try:
        text = _sorted_json([args, kwargs])
    except Exception:  # pickled arguments: no text of theirs is stable
        text = f"{len(args)} {sorted(kwargs)}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def changed_by_retry(
    task: Any, request: Any, args: Any, kwargs: Any, options: Mapping[str, Any], header: dict[str, Any]
) -> dict[str, str]:
    """What the journal is to know of ``self.retry(args, kwargs, **options)``, whose message may get lost.

    *header*: what that message says to us.
    """
    fields = resume_of_user_retry(request, header)
    if args is None and kwargs is None and not options:
        # The call stays as it is.
        return fields
    if not (args is None and kwargs is None):
        # The fingerprint is known when the arguments have arrived.
        fields |= {"changed": str(header["changed"]), "fingerprint": ""}
    args, kwargs = _retried_with(task, request, args, kwargs)
    return {**fields, "call": Call.of(task, request, args, kwargs, options, header).text(task)}


def _retried_with(task: Any, request: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a retry that is given some, as Celery has it: without the old ones that they contradict."""
    if args is not None and kwargs is None:
        taken = _positions(task, len(args))
        kwargs = {name: value for name, value in request.kwargs.items() if name not in taken}
    elif kwargs is not None and args is None:
        args, kwargs = list(request.args), dict(kwargs)
        for name, position in _positions(task, len(args)).items():
            if name in kwargs:
                args[position] = kwargs.pop(name)
    return (request.args if args is None else args), (request.kwargs if kwargs is None else kwargs)


def _positions(task: Any, count: int) -> dict[str, int]:
    """Where the first *count* positional parameters of the task stand that may be given by name, too."""
    parameters = inspect.signature(task.run).parameters.values()
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return {
        each.name: position
        for position, each in enumerate(positional[:count])
        if each.kind is each.POSITIONAL_OR_KEYWORD
    }


def _route(info: Mapping[str, Any]) -> dict[str, Any]:
    """Where the message came from."""
    priority = {} if info.get("priority") is None else {"priority": info["priority"]}
    if info.get("exchange") == "" and info.get("routing_key"):
        return {**priority, "queue": info["routing_key"]}
    return priority | {name: info[name] for name in ("exchange", "routing_key") if info.get(name)}


def _changed(options: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    if any(name in changes for name in _ROUTE):
        options = {name: value for name, value in options.items() if name not in _ROUTE}
    return options | dict(changes)


def _text(facts: dict[str, Any], serializer: str) -> str:
    if serializer == "json":
        return json_of(facts)
    try:
        content_type, charset, data = dumps(facts, serializer)
    except Exception:
        # What hangs on the task (callbacks, a chain) is of classes of Celery's, and plain data where it arrives.
        plain = kombu_json.loads(json_of(facts["options"]))
        content_type, charset, data = dumps({**facts, "options": plain}, serializer)
    raw: Any = data
    raw = raw.encode() if isinstance(raw, str) else raw
    return json.dumps({"content_type": content_type, "charset": charset, "data": base64.b64encode(raw).decode()})
