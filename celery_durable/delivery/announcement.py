"""What monitors, receivers of signals and hooks of the task are told where Celery itself says nothing of a run.

Monitors get events, which the main process of a worker sends. Celery has rules for how they read events
(``celery.events.state``):

- An event of an unknown kind sets a state of that name. It replaces every state except SUCCESS and FAILURE.
- The events of STARTED and REVOKED do not replace SUCCESS, FAILURE or such a state. They do if their field ``state``
  says so.

Exporters count the events of the kinds that they know. So the library sends each of those once per fact.
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

from .backend import STATES_OF_ENDED

if TYPE_CHECKING:
    from .outcome import Outcome

logger = logging.getLogger("celery_durable")

REVOKED_SIGNAL_FIELDS = {"terminated": False, "signum": None, "expired": False}
"""Fields of the signal ``task_revoked``: no process was killed, and the task had not expired."""
REVOKED_EVENT_FIELDS = {**REVOKED_SIGNAL_FIELDS, "state": states.REVOKED}
"""Fields of the event ``task-revoked`` for a run that has begun: they replace the state that it had before."""


class Announcement(Ignore):
    """An ``Ignore``: Celery does nothing more with the message. The worker's main process then sends this event."""

    error: BaseException | None = None
    """The error of a cancelled run, for the hooks of the task. It is not pickled: only this process needs it."""

    def __init__(self, reason: str, event: str, fields: dict[str, Any], until: float = inf) -> None:
        super().__init__(reason, event, fields, until)
        self.event = event
        self.fields = fields
        self.until = until
        """The time at which the event is out of date, by the machine's monotonic clock (s)."""

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args

    @classmethod
    def of_wait(cls, state: str, info: dict[str, str] | None = None, seconds: float = inf) -> Announcement:
        """The run waits in this *state*, with this *info*, for that many *seconds*."""
        return cls(f"the run is {state}", f"task-{state.lower()}", info or {}, time.monotonic() + seconds)

    @classmethod
    def of_revocation(cls) -> Announcement:
        """The run was revoked, and has ended. None of its code runs any more, not even its hooks."""
        return cls("the run was revoked", "task-revoked", REVOKED_EVENT_FIELDS)

    @classmethod
    def of_cancellation(cls, error: BaseException) -> Announcement:
        """The run was cancelled, and has ended by this *error*."""
        said = cls("the run was cancelled", "task-revoked", REVOKED_EVENT_FIELDS)
        said.error = error
        return said

    @classmethod
    def of_outcome(cls, reason: str, ended: Outcome) -> Ignore:
        """A message came after the end of the run, and began nothing.

        Its event sets the state back to what it was. No exporter counts this kind of event.
        """
        if ended.status not in STATES_OF_ENDED:
            return Ignore(reason)
        state = STATES_OF_ENDED[ended.status]
        failed = {"exception": safe_repr(ended.error), "traceback": ended.traceback, "failed": ended.ended.timestamp()}
        return cls(reason, f"task-{state}", failed if state == states.FAILURE else {})

    def publish(self, request: Any) -> None:
        """Tell monitors, and receivers of the signal, in the worker's main process."""
        if time.monotonic() >= self.until:
            # The wait of the run is over: another worker may have announced already that the run goes on.
            return
        request.send_event(self.event, **self.fields)
        if self.event == "task-revoked":
            signals.task_revoked.send(request.task, request=request.celery_context, **REVOKED_SIGNAL_FIELDS)

    def call_hooks(self, task: Any, request: Any) -> None:
        """Call the hooks of a task that was cancelled, as Celery does after a failure: they may release a lock."""
        error = self.error
        if error is None:
            sentry.mark_ok()
            return
        call = request.id, request.args, request.kwargs
        einfo = _exception_info(error)
        # These are the arguments that Celery passes.
        arguments = {"on_failure": (error, *call, einfo), "after_return": (states.REVOKED, error, *call, None)}
        for hook, given in arguments.items():
            try:
                getattr(task, hook)(*given)
            except Exception:
                logger.exception("task %s: it was cancelled, and its %s failed", request.id, hook)
        sentry.end_check_in(request)


def started_fields(header: dict[str, Any]) -> dict[str, Any]:
    """Fields of the event ``task-started`` for a run that may have slept or failed: they replace that state."""
    cleared = dict.fromkeys(("failed", "exception", "traceback")) if "reopen" in header else {}
    return {"state": states.STARTED, **cleared}


def _exception_info(error: BaseException) -> ExceptionInfo:
    """Celery's form of *error*. It is raised here, so that it has a traceback even if the journal kept none."""
    try:
        raise error  # noqa: TRY301
    except BaseException:
        return ExceptionInfo()
