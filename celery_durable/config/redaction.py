"""What is shown of the data of a run: ``durable_redact`` may replace it. What is recorded stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from celery_durable.records import error_line, preview_of

from .settings import Redact

_LARGE = 10_000
"""Characters. A larger value is not read again for its preview: an event loop may wait for that."""

T = TypeVar("T")


class Redaction(NamedTuple):
    """Replaces what is shown of the runs of one task."""

    redact: Redact | None
    """None: all is shown."""
    task: str
    limits: Callable[[], tuple[type[BaseException], ...]] = tuple
    """Gives errors that are no failure of the redactor, such as Celery's soft time limit. They are raised."""

    def shown(self, where: str, value: Any) -> Any:
        """What is shown in place of *value*. If the redactor fails, that is a text which says so."""
        return value if self.redact is None else self._redacted(partial(self.redact, self.task, where, value))

    def error(self, facts: dict[str, Any] | None) -> str:
        """What is shown of an error of the journal, as one line; empty if there is none."""
        return error_line(facts, partial(self.shown, "error"))

    def preview(self, name: str, text: str, metadata: Mapping[str, Any]) -> str:
        """What is shown of the value of the step *name*, which is recorded as *text* with this *metadata*."""
        if not metadata and self.redact is None:
            return preview_of(text)
        compressed_by = metadata.get("compression", "").rpartition("/")[2].removeprefix("x-")
        written_by = metadata.get("serializer") or compressed_by
        redact = self.redact
        if redact is None or written_by:
            return preview_of(text, written_by)
        if len(text) > _LARGE:
            return f"<{len(text)} characters>"

        def as_json() -> str:
            redacted = redact(self.task, f"step {name}", json.loads(text))
            return json.dumps(redacted, ensure_ascii=False, default=str)

        return preview_of(self._redacted(as_json))

    def _redacted(self, redacted: Callable[[], T]) -> T | str:
        try:
            return redacted()
        except self.limits():
            raise
        except Exception as error:  # its message may have the value in it
            return f"<redacted: durable_redact has failed with {type(error).__name__}>"
