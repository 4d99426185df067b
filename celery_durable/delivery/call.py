"""The call that began a run: what the journal keeps of its message, and how a worker sends it again."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from kombu.utils import json as kombu_json

from celery_durable import sentry, tracing
from celery_durable.exceptions import EntryNotRecordableError
from celery_durable.journal.port import Delivery
from celery_durable.seams.celery import ignores_result, sending_options
from celery_durable.seams.kombu import serializer_of
from celery_durable.values.registry import content_text, dump_content, json_of, read_content
from celery_durable.values.remainder import same

from .message import (
    HEADER,
    default_serializer,
    header_of,
    is_redelivered,
    received_at,
    resume_of_user_retry,
    seed_header,
    seed_of,
    sending_id,
    serializer_option,
)

_sorted_json = kombu_json.JSONEncoder(sort_keys=True).encode

_ROUTE = ("queue", "exchange", "routing_key")
_TOGETHER = ("group_id", "group_index", "chord")
"""The options by which a task belongs to others that run beside it."""


class Call(NamedTuple):
    """Everything that is needed to send the task of a run again."""

    args: Any
    kwargs: Any
    options: dict[str, Any]
    """Options of ``apply_async``: id, headers, canvas, queue, priority, stamps, time limits."""

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
        """The call of the present message.

        Args:
            task: the task.
            request: Celery's request of the message.
            args: the positional arguments.
            kwargs: the keyword arguments.
            changes: the options that ``self.retry()`` was given, if it was called.
            header: our header on the message of that retry.
        """
        # Options that are None would be a third of the text.
        options = {name: value for name, value in request.as_execution_options().items() if value is not None}
        options["ignore_result"] = ignores_result(task, request)
        # ``expires`` holds until the first attempt begins, and this one has begun.
        for fact in ("retries", "expires"):
            options.pop(fact, None)
        options |= _route(request.delivery_info or {})
        options |= serializer_option(task, request)
        if changes:
            options = _changed(options, changes)
        headers = {name: value for name, value in (options.get("headers") or {}).items() if name != HEADER}
        if changed := (header or header_of(request)).get("changed"):
            headers[HEADER] = {"changed": changed}
        # If the sender had no trace, the next attempts go on with the trace of this one.
        options["headers"] = tracing.with_trace(headers)
        return cls(args, kwargs, options)

    @classmethod
    def load(cls, text: bytes | str, accept: frozenset[str]) -> Call:
        """Read a call that :meth:`text` has written; *accept* names the content types that the app reads."""
        facts = kombu_json.loads(text)
        if "content_type" in facts:
            facts = read_content(facts, accept)
        return cls(**facts)

    @classmethod
    def for_restart(cls, text: bytes, accept: frozenset[str], task_id: str) -> tuple[Call, str]:
        """The recorded call with another id, for a run of its own, and its text in the form in which it was recorded.

        That run is no part of a group or a chord: they have counted the one that was recorded.
        """
        recorded = cls.load(text, accept)
        options = {**_alone(recorded.options), "task_id": task_id}
        if options.get("root_id") == recorded.options.get("task_id"):
            options["root_id"] = task_id
        if chain := options.get("chain"):
            options["chain"] = [{**member, "options": _alone(member.get("options") or {})} for member in chain]
        call, content_type = recorded._replace(options=options), kombu_json.loads(text).get("content_type")
        return call, _text(call._asdict(), serializer_of(content_type) if content_type else "json")

    def text(self, task: Any) -> str:
        """The call as text for the journal: plain JSON, or JSON around what the serializer of the message writes.

        Raises:
            EntryNotRecordableError: no serializer that the app accepts gives the arguments back unchanged.
        """
        facts = {"args": self.args, "kwargs": self.kwargs, "options": self.options}
        serializer = self.options.get("serializer") or default_serializer(task)
        try:
            return _text(facts, serializer)
        except Exception as error:
            reason = error
        for other in task.app.conf.accept_content:
            # For example, self.retry() was given arguments that the serializer of the first message cannot write.
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
        """Send the task again.

        Args:
            app: the app that sends it.
            name: the name of the task.
            header: what our header of the message says.
            seed: the seed that the message brings to its run; empty: none.
            **options: further options of ``send_task``. They replace the recorded ones.
        """
        headers = dict(self.options.get("headers") or {})
        if seed:
            headers |= seed_header(self.options["task_id"], self.options.get("replaced_task_nesting"), seed)
        headers[HEADER] = {**headers.get(HEADER, {}), **header}
        # ``expires`` holds until the first attempt begins, and that has begun.
        options = {**self.options, **options, "headers": sentry.readable_headers(headers), "expires": None}
        if (task := app.tasks.get(name)) is not None:
            # The task has options of its own, such as its serializer.
            options = {**sending_options(task), **options, "task_type": task}
        with tracing.continue_trace(headers):
            app.send_task(name, tuple(self.args), self.kwargs, **options)


def delivery_of(task: Any, request: Any, args: Any, kwargs: Any) -> Delivery:
    """The facts of the present message that the journal decides by."""
    header, seed = header_of(request), seed_of(request)
    redelivered = is_redelivered(request)
    return Delivery(
        task_id=request.id,
        task=task.name,
        fingerprint=fingerprint(args, kwargs),
        call=Call.of(task, request, args, kwargs).text(task),
        nesting=request.replaced_task_nesting or 0,
        fresh=not header.keys().isdisjoint(("reopen", "asked")) or not (redelivered or request.retries or header),
        reopen=header.get("reopen", ""),
        restarted=header.get("restarted"),
        failed=header.get("failed"),
        received=received_at(request),
        changed=int(header.get("changed", 0)),
        wake_up=not header.keys().isdisjoint(("hint", "reopen")),
        seed=seed,
        sent=sending_id(request, seed),
        asked=header.get("asked"),
        build=task.durable_attempt_settings.build,
    )


def fingerprint(args: Any, kwargs: Any) -> str:
    """A hash of the arguments. If JSON cannot write them, it is a hash of their number and names only."""
    try:
        text = _sorted_json([args, kwargs])
    except Exception:  # pickled arguments have no text that is the same each time
        text = f"{len(args)} {sorted(kwargs)}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fields_of_user_retry(
    task: Any, request: Any, args: Any, kwargs: Any, options: Mapping[str, Any], header: dict[str, Any]
) -> dict[str, str]:
    """The fields of the journal that ``self.retry(args, kwargs, **options)`` changes: its message may get lost.

    *header* is our header on that message.
    """
    fields = resume_of_user_retry(request, header)
    if args is None and kwargs is None and not options:
        # The call does not change.
        return fields
    if not (args is None and kwargs is None):
        # The fingerprint is made when the arguments arrive: only then they are what later attempts get.
        fields |= {"changed": str(header["changed"]), "fingerprint": ""}
    args, kwargs = _retried_with(task, request, args, kwargs)
    return {**fields, "call": Call.of(task, request, args, kwargs, options, header).text(task)}


def _retried_with(task: Any, request: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments after a retry with new ones, by Celery's rules: old arguments that contradict them are dropped."""
    if args is not None and kwargs is None:
        taken = _indexes(task, len(args))
        kwargs = {name: value for name, value in request.kwargs.items() if name not in taken}
    elif kwargs is not None and args is None:
        args, kwargs = list(request.args), dict(kwargs)
        for name, index in _indexes(task, len(args)).items():
            if name in kwargs:
                args[index] = kwargs.pop(name)
    return (request.args if args is None else args), (request.kwargs if kwargs is None else kwargs)


def _indexes(task: Any, count: int) -> dict[str, int]:
    """Name → index of the first *count* parameters of the task, if they can also be given by name."""
    parameters = inspect.signature(task.run).parameters.values()
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return {
        each.name: index for index, each in enumerate(positional[:count]) if each.kind is each.POSITIONAL_OR_KEYWORD
    }


def _route(info: Mapping[str, Any]) -> dict[str, Any]:
    """The options that send a message to where this one came from, with the same priority."""
    priority = {} if info.get("priority") is None else {"priority": info["priority"]}
    if info.get("exchange") == "" and info.get("routing_key"):
        return {**priority, "queue": info["routing_key"]}
    return priority | {name: info[name] for name in ("exchange", "routing_key") if info.get(name)}


def _alone(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _TOGETHER}


def _changed(options: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    if any(name in changes for name in _ROUTE):
        options = {name: value for name, value in options.items() if name not in _ROUTE}
    return options | dict(changes)


def _text(facts: dict[str, Any], serializer: str) -> str:
    if serializer == "json":
        return json_of(facts)
    try:
        return content_text(*dump_content(facts, serializer))
    except Exception:
        # Callbacks and chains are objects of Celery's classes here. As plain data, each serializer can write them.
        plain = kombu_json.loads(json_of(facts["options"]))
        return content_text(*dump_content({**facts, "options": plain}, serializer))
