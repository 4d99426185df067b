"""One call of a task's body: which task, by which message, and how it is called."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from celery_durable.delivery.call import Call

from .arguments import Arguments

if TYPE_CHECKING:
    from celery.exceptions import Retry

    from celery_durable.interrupts import Interrupt
    from celery_durable.steps.attempt import Attempt
    from celery_durable.steps.context import AsyncDurableContext, DurableContext
    from celery_durable.tracing import AttemptSpan

    from .ends import End
    from .session import RunSession


class Mode(Enum):
    """How the body was called."""

    WORKER = "worker"
    EAGER = "eager"
    """By ``apply()``, or with ``task_always_eager``: the journal is in memory, and nothing waits."""
    DIRECT = "direct"
    """As a function: nothing is retried, and errors are raised as they are."""


class UserRetry:
    """What ``self.retry()`` has done in one call of the body."""

    # Few tasks call it. So these are values of the class until there is another one.
    raised: Retry | None = None
    """The exception of a retry that was sent, or that the journal keeps: it holds even if user code swallows it."""
    due: float | None = None
    """When the retry of ``self.retry(throw=False)`` is due, by the monotonic clock (s). The body goes on."""
    exhausted: BaseException | None = None
    """The error that it raised because ``max_retries`` was reached. No policy retries this error."""
    changes: Mapping[str, str] = MappingProxyType({})
    """Fields of the journal that it has changed: new arguments and options."""


class Invocation:
    """One call of a task's body.

    It has many attributes: each is a fact that several rooms ask for, and is known at another moment of the call.
    """

    __slots__ = (
        "args",
        "arguments",
        "context",
        "end",
        "kwargs",
        "mode",
        "outer",
        "outer_exception",
        "raised",
        "refused",
        "request",
        "retry",
        "session",
        "span",
        "task",
    )  # fmt: skip

    def __init__(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outer: Invocation | None) -> None:
        self.task = task
        self.args = args
        self.kwargs = kwargs
        self.request = task.request
        self.outer = outer
        """The invocation of the task that has called this one as a function; None if there is none."""
        self.mode = _mode(self.request, outer)
        self.arguments = Arguments()
        self.retry = UserRetry()
        self.session: RunSession | None = None
        """The session with the run; None until a run is opened."""
        self.context: DurableContext | AsyncDurableContext | None = None
        """The durable context; None until the run is open."""
        self.refused: Interrupt | None = None
        """Why the run was not opened; None if it was, or was not tried."""
        self.end: End | None = None
        """How the attempt ends; None until that is decided."""
        self.outer_exception = sys.exc_info()[1]
        """An exception that was being handled when this began: the pool may fork a process in an except block."""
        self.raised: BaseException | None = None
        """The exception that Celery was given at the end. Celery's autoretry must not replace it."""
        self.span: AttemptSpan | None = None
        """The span of the attempt in OpenTelemetry; None: there is no trace, or no run is opened."""

    @property
    def direct(self) -> bool:
        return self.mode is Mode.DIRECT

    @property
    def eager(self) -> bool:
        """Whether nothing waits and nothing is stored. A call that an eager task makes of itself is eager, too."""
        return bool(self.request.is_eager)

    @property
    def attempt(self) -> Attempt | None:
        return None if self.session is None else self.session.attempt

    @property
    def interrupt(self) -> Interrupt | None:
        """The interrupt that ended the attempt, even if user code has swallowed it; None if there was none."""
        attempt = self.attempt
        return self.refused or (attempt.pulse.interrupt if attempt is not None else None)

    def restore_arguments(self) -> None:
        """Give the request the arguments with which the run was opened: the next message is made from the request.

        The body may have changed its arguments in place. With these, the journal would refuse the message.
        """
        delivery = None if self.session is None else self.session.delivery
        if delivery is not None and self.mode is Mode.WORKER:
            opened_with = Call.load(delivery.call, self.task.durable_attempt_settings.accept)
            self.request.args, self.request.kwargs = opened_with.args, opened_with.kwargs


def _mode(request: Any, outer: Invocation | None) -> Mode:
    # A task that calls itself as a function finds its own request.
    if request.called_directly or request.id is None or (outer is not None and outer.request.id == request.id):
        return Mode.DIRECT
    return Mode.EAGER if request.is_eager else Mode.WORKER
