"""What is shown of the data of a run: ``durable_redact`` may replace it. What is recorded stays as it is."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, NamedTuple

from celery_durable.records import error_line, preview_of

from .settings import Redact


class Redaction(NamedTuple):
    """Replaces what is shown of the runs of one task."""

    redact: Redact | None
    """None: all is shown."""
    task: str

    def shown(self, where: str, value: Any) -> Any:
        """What is shown in place of *value*. If the redactor fails, that is a text which says so."""
        if self.redact is None:
            return value
        try:
            return self.redact(self.task, where, value)
        except Exception as error:  # its message may have the value in it
            return f"<redacted: durable_redact raised {type(error).__name__}>"

    def error(self, facts: dict[str, Any] | None) -> str:
        """What is shown of an error of the journal, as one line; empty if there is none."""
        return error_line(facts, partial(self.shown, "error"))

    def preview(self, name: str, text: str, serializer: str = "") -> str:
        """What is shown of the value of the step *name*, whose *text* is JSON, or what a *serializer* has written."""
        if self.redact is not None and not serializer:
            text = json.dumps(self.shown(f"step {name}", json.loads(text)), ensure_ascii=False, default=str)
        return preview_of(text, serializer)
