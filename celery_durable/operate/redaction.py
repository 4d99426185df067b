"""What is shown of the data of a run: ``durable_redact`` may replace it. What is recorded stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

ARGS, KWARGS, ERROR = "args", "kwargs", "error"
"""Where a value is shown; the value of a step is at ``step <name>``."""


Redact = Callable[[str, str, Any], Any]
"""``durable_redact``: ``(task, where, value) -> value``."""


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
