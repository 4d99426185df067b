"""What becomes of a run where Celery itself says nothing of it: for monitors, receivers of signals, hooks of the task.

Monitors are told by events that the main process of a worker sends. What they read from those are rules of Celery's
own (``celery.events.state``): an event of an unknown kind is a state of that name, which takes the place of every other
but SUCCESS and FAILURE; STARTED and REVOKED take the place of none of these three, unless the event says so itself, in
its field ``state``. Exporters count the kinds they know, so these are sent once for what they stand for.
"""

from __future__ import annotations

import logging
import time
from math import inf
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.exceptions import Ignore
from kombu.utils.encoding import safe_repr

from celery_durable import sentry

from .report import ENDED

if TYPE_CHECKING:
    from .outcome import Outcome

logger = logging.getLogger("celery_durable")

HOW_REVOKED = {"terminated": False, "signum": None, "expired": False}
"""As Celery says it of a task whose process was not killed for it."""
REVOKED = {**HOW_REVOKED, "state": states.REVOKED}
"""What the event ``task-revoked`` says of a run that has ended by it, though it slept."""


class Announcement(Ignore):
    """Celery is done with a message, and says nothing of its run: this is what the worker's main process says."""

    error: BaseException | None = None
    """What a cancelled run has ended by; it does not leave its process."""

    def __init__(self, reason: str, event: str, fields: dict[str, Any], until: float = inf) -> None:
        super().__init__(reason, event, fields, until)
        self.event = event
        self.fields = fields
        self.until = until
        """When it is no news any more, by the machine's monotonic clock."""

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args

    @classmethod
    def of_wait(cls, state: str, info: dict[str, str] | None = None, seconds: float = inf) -> Announcement:
        return cls(f"the run is {state}", f"task-{state.lower()}", info or {}, time.monotonic() + seconds)

    @classmethod
    def of_cancellation(cls, error: BaseException) -> Announcement:
        said = cls("the run was cancelled", "task-revoked", REVOKED)
        said.error = error
        return said

    @classmethod
    def of_outcome(cls, reason: str, ended: Outcome) -> Ignore:
        """A message came after the end of the run: it has not begun again. Nothing that is counted once more."""
        if ended.status not in ENDED:
            return Ignore(reason)
        state = ENDED[ended.status]
        failed = {"exception": safe_repr(ended.error), "traceback": ended.traceback, "failed": ended.ended.timestamp()}
        return cls(reason, f"task-{state}", failed if state == states.FAILURE else {})

    def publish(self, request: Any) -> None:
        """Tell monitors, and receivers of the signal, in the worker's main process."""
        if time.monotonic() >= self.until:
            # What ends a task has taken longer than the wait of its run: another worker may have said that it goes on.
            return
        request.send_event(self.event, **self.fields)
        if self.event == "task-revoked":
            signals.task_revoked.send(request.task, request=request.celery_context, **HOW_REVOKED)

    def call_hooks(self, task: Any, request: Any) -> None:
        """Tell the task itself, as when it fails: what it holds, a lock say, it gives back there."""
        error = self.error
        if error is None:
            sentry.end_well()
            return
        call = request.id, request.args, request.kwargs
        einfo = _raised(error)
        # With what Celery gives them.
        arguments = {"on_failure": (error, *call, einfo), "after_return": (states.REVOKED, error, *call, None)}
        for hook, given in arguments.items():
            try:
                getattr(task, hook)(*given)
            except Exception:
                logger.exception("task %s: it was cancelled, and its %s failed", request.id, hook)
        sentry.end_check_in(request)


def going_on(header: dict[str, Any]) -> dict[str, Any]:
    """What the event ``task-started`` says of a run that may have slept, or failed."""
    afresh = dict.fromkeys(("failed", "exception", "traceback")) if "reopen" in header else {}
    return {"state": states.STARTED, **afresh}


def _raised(error: BaseException) -> ExceptionInfo:
    """It has a traceback then, also one that was read from the journal."""
    try:
        raise error  # noqa: TRY301
    except BaseException:
        return ExceptionInfo()
