"""A run as a document: what its journal holds, to be kept elsewhere and to be brought back."""

from __future__ import annotations

import base64
from typing import Any

from kombu.utils import json as kombu_json

from celery_durable.delivery.backend import state_of
from celery_durable.exceptions import JournalUnreadableError, RunNotImportableError
from celery_durable.journal.entries import read_entry
from celery_durable.journal.headings import heading_of
from celery_durable.journal.layout import LAYOUT, RESERVED, UNBRANCHED, Fields, Status, entries_of, step_field
from celery_durable.operate.reading import Reader

FORMAT = 1
"""The newest format. This version reads it and all older ones."""
_BINARY = "base64"
_NEEDED = (b"v", b"task", b"call", b"created", b"ended", b"attempt", b"fingerprint", b"nesting", b"seed", b"recoveries")
"""The fields without which a run cannot be retried."""


def document_of(task_id: str, fields: Fields) -> dict[str, Any]:
    """The document of a journal: ``{"format", "id", "fields": {name: text or {"base64": text}}}``.

    Raises:
        JournalUnreadableError: the name of a field is no text.
    """
    try:
        named = {name.decode(): _text_or_base64(text) for name, text in fields.items()}
    except UnicodeDecodeError as error:
        raise JournalUnreadableError(f"the journal of task {task_id} is damaged: {error}") from error
    return {"format": FORMAT, "id": task_id, "fields": named}


def _text_or_base64(text: bytes) -> str | dict[str, str]:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return {_BINARY: base64.b64encode(text).decode()}


def journal_in(document: Any) -> tuple[str, Fields]:
    """The id and the journal in a document.

    Raises:
        RunNotImportableError: it is no document of a run that has ended, or a newer version has written it.
    """
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise RunNotImportableError(f"this is no export of a run: {str(document)[:80]!r} has no format")
    if document["format"] > FORMAT:
        raise RunNotImportableError(
            f"the document has format {document['format']}, this version reads up to {FORMAT}: upgrade celery-durable"
        )
    task_id = document.get("id")
    if not (isinstance(task_id, str) and task_id):
        raise RunNotImportableError(f"the document does not say the id of its run, got {task_id!r}")
    try:
        fields = {name.encode(): _raw(said) for name, said in document["fields"].items()}
    except Exception as error:
        raise _damaged(task_id, f"its fields cannot be read: {error!r}") from error
    _check(task_id, fields)
    # The tokens of an attempt and of a Retry that may still write elsewhere are none of this journal.
    return task_id, {name: text for name, text in fields.items() if name not in (b"fence", RESERVED.encode())}


def _raw(said: str | dict[str, str]) -> bytes:
    return said.encode() if isinstance(said, str) else base64.b64decode(said[_BINARY], validate=True)


def _check(task_id: str, fields: Fields) -> None:
    layout = fields.get(b"v", b"none").decode(errors="replace")
    if layout not in (UNBRANCHED, LAYOUT):
        reason = f"its journal has layout {layout!r}, this version reads up to {LAYOUT!r}: upgrade celery-durable"
        raise RunNotImportableError(f"task {task_id} cannot be imported: {reason}")
    status = fields.get(b"status", b"none").decode(errors="replace")
    if status in Status.LIVE or (status in Status.ENDED and b"delivered" not in fields):
        state = f"it was {state_of(heading_of(fields))}" if status in Status.LIVE else "its outcome was not delivered"
        raise RunNotImportableError(
            f"task {task_id} cannot be imported: when it was exported, {state}. It may go on where it was, and a run "
            f"must not live twice: export it when it has ended"
        )
    if missing := [name.decode() for name in _NEEDED if name not in fields]:
        raise _damaged(task_id, f"it has no {', '.join(missing)}")
    if status not in Status.ENDED:
        raise _damaged(task_id, f"its status is {status!r}")
    try:
        _check_readable(task_id, fields)
    except Exception as error:
        raise _damaged(task_id, str(error) or repr(error)) from error


def _check_readable(task_id: str, fields: Fields) -> None:
    """What operators and attempts read of a journal can be read."""
    called = kombu_json.loads(fields[b"call"])
    if "content_type" not in called and called["options"]["task_id"] != task_id:
        raise ValueError(f"its call is of task {called['options']['task_id']}")
    for position, raw in entries_of(fields).items():
        read_entry(step_field(position), raw)
    for number in (b"created", b"ended", b"attempt", b"nesting", b"recoveries"):
        int(fields[number])
    Reader(frozenset()).run(task_id, fields, None)


def _damaged(task_id: str, reason: str) -> RunNotImportableError:
    return RunNotImportableError(f"the document of task {task_id} is damaged: {reason}")
