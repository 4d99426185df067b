"""One call of a task's body, as all know it that have to do with it: which task, by which message, how it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from celery.exceptions import Retry

from celery_durable.delivery.call import Call
from celery_durable.journal.port import Delivery
from celery_durable.steps.attempt import Attempt

from .arguments import Arguments
from .ends import End
from .session import RunSession


class Mode(Enum):
    """Who has called the body."""

    WORKER = "worker"
    EAGER = "eager"
    """``apply()``, ``task_always_eager``: the journal is in memory, and nothing waits."""
    DIRECT = "direct"
    """Called as a function: no retries, errors as they are."""


class UserRetry:
    """What ``self.retry()`` has done in one call of the body."""

    __slots__ = ("changes", "due", "exhausted", "raised")

    def __init__(self) -> None:
        self.raised: Retry | None = None
        """It is sent, or kept by the journal, whatever user code makes of the exception."""
        self.due: float | None = None
        """When the retry is due, by the monotonic clock, that ``throw=False`` has sent; the body goes on."""
        self.exhausted: BaseException | None = None
        """What it raised because its limit is spent: no policy retries that."""
        self.changes: Mapping[str, str] = {}
        """What the journal is to know of the arguments that it has changed."""


class Invocation:
    """One call of a task's body."""

    __slots__ = (
        "args",
        "arguments",
        "delivery",
        "end",
        "entered",
        "kwargs",
        "mode",
        "open",
        "outer",
        "outer_exception",
        "raised",
        "request",
        "retry",
        "session",
        "task",
    )  # fmt: skip

    open: Callable[[], Any]
    """Gives the durable context; the run is opened at first use."""

    def __init__(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outer: Invocation | None) -> None:
        self.task = task
        self.args = args
        self.kwargs = kwargs
        self.request = task.request
        self.outer = outer
        """That of the task which has called this one as a function."""
        self.mode = _mode(self.request, outer)
        self.arguments = Arguments()
        self.retry = UserRetry()
        self.session: RunSession | None = None
        """None as long as no run was opened."""
        self.delivery: Delivery | None = None
        self.entered = False
        """Whether the arguments fitted and the function was entered."""
        self.end: End | None = None
        """How it has ended, once that is decided."""
        self.outer_exception = sys.exc_info()[1]
        """An exception that passed before: the pool forks a process while it handles the end of another, say."""
        self.raised: BaseException | None = None
        """What Celery was given to handle as it is: no autoretry of Celery's changes it."""

    @property
    def direct(self) -> bool:
        return self.mode is Mode.DIRECT

    @property
    def eager(self) -> bool:
        return self.mode is Mode.EAGER

    @property
    def attempt(self) -> Attempt | None:
        return None if self.session is None else self.session.attempt

    def restore_arguments(self) -> None:
        """Let the request have the arguments that the run was opened with: what is sent again is made of them.

        The body may have changed its own in place, and with those the run would not be known again.
        """
        if self.delivery is not None and self.mode is Mode.WORKER:
            opened_with = Call.load(self.delivery.call, self.task.durable_attempt_settings.accept)
            self.request.args, self.request.kwargs = opened_with.args, opened_with.kwargs


def _mode(request: Any, outer: Invocation | None) -> Mode:
    # A task that calls itself as a function finds its own request.
    if request.called_directly or request.id is None or (outer is not None and outer.request.id == request.id):
        return Mode.DIRECT
    return Mode.EAGER if request.is_eager else Mode.WORKER
