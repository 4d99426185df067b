"""The invocation that this code belongs to."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import NoContextError

if TYPE_CHECKING:
    from .invocation import Invocation

current: ContextVar[Invocation | None] = ContextVar("celery_durable_invocation", default=None)

_OPENED = "durable_invocation"
"""The attribute in which Celery's request keeps the invocation that opened a run, for code outside of the body."""


def invocation_of(task: Any) -> Invocation:
    """The invocation of *task* that this code belongs to.

    Raises:
        NoContextError: this code is not in the body of *task*.
    """
    invocation = current.get()
    if invocation is None or invocation.task is not task:
        raise NoContextError(f"the context of {task.name} is known while the task runs, in its own body")
    return invocation


def is_executing(task: Any) -> bool:
    """Whether this code is in the body of *task* already, under the same request: then no new invocation begins."""
    invocation = current.get()
    return invocation is not None and invocation.task is task and invocation.request is task.request


def keep_opened(invocation: Invocation) -> None:
    """Note in the request that this invocation has opened a run: see :func:`opened_by`."""
    invocation.request.__dict__[_OPENED] = invocation


def forget_opened(request: Any) -> None:
    """Remove the note of :func:`keep_opened` from the request."""
    request.__dict__.pop(_OPENED, None)


def opened_by(request: Any) -> Invocation | None:
    """The invocation that has opened a run under *request*; None if the context was not used."""
    invocation: Invocation | None = request.__dict__.get(_OPENED)
    # A direct call of a task copies the present request, with this note.
    return invocation if invocation is not None and invocation.request is request else None
