"""The outcome of a run: as text for the journal, and read back as a value or an exception."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any, NamedTuple

from celery.result import ResultBase
from kombu.serialization import loads

from celery_durable.journal.layout import Fields
from celery_durable.values.failure import describe, failure_of
from celery_durable.values.registry import content_text, dump_content, json_of, read_content
from celery_durable.values.tagged import NotEncodable


class Outcome(NamedTuple):
    """How a run has ended, as its journal says it."""

    status: str
    ended: datetime
    delivered: bool
    value: Any = None
    error: BaseException | None = None
    traceback: str = ""


def encode_value(value: Any, serializer: str) -> str:
    """A result as text, written by Celery's result *serializer*.

    Raises:
        Exception: the serializer cannot write it. Celery would get the same error.
    """
    if isinstance(value, ResultBase) and serializer != "pickle":
        # A task may return results of tasks that it has sent. Celery's backends do the same (``prepare_value``).
        value = value.as_tuple()  # type: ignore[attr-defined]
    if serializer == "json":
        return f'{{"value":{json_of(value)}}}'
    raw, content_type, charset = dump_content(value, serializer)
    if content_type == "application/json":
        return f'{{"value":{raw.decode()}}}'
    return content_text(raw, content_type, charset)


def encode_error(error: BaseException) -> str:
    """A failure as text. If JSON cannot keep its arguments or its metadata, they are left out."""
    try:
        facts = describe(error)
    except NotEncodable:
        facts = describe(error, with_args=False, with_metadata=False)
    return json.dumps({"error": facts})


def read(fields: Fields, accept: frozenset[str]) -> Outcome:
    """The outcome in the journal of a finished run; *accept* names the content types that the app reads."""
    facts = json.loads(fields.get(b"outcome", b"{}"))
    error = facts.get("error")
    return Outcome(
        status=fields.get(b"status", b"gone").decode(),
        ended=datetime.fromtimestamp(int(fields.get(b"ended", 0)) / 1000, timezone.utc),
        delivered=b"delivered" in fields,
        value=_value(facts, accept),
        error=failure_of(error) if error else None,
        traceback=error["traceback"] if error else "",
    )


def _value(facts: dict[str, Any], accept: frozenset[str]) -> Any:
    if "data" in facts:
        return read_content(facts, accept)
    # kombu reads it, because it has tags of its own for dates, UUIDs and decimals.
    return loads(json.dumps(facts.get("value")), "application/json", "utf-8")
