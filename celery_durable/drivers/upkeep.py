"""Upkeep of what a process keeps by thread (database connections, sessions) where Celery does not do it.

Celery looks after its own thread around each task. Steps that are executed elsewhere, in the library's threads or on
its event loop, find here what a task finds there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from celery_durable import django
from celery_durable.signals import has_receivers, step_postrun, step_prerun

if TYPE_CHECKING:
    from types import TracebackType

    from celery.utils.dispatch import Signal

    from celery_durable.steps.attempt import Attempt
    from celery_durable.steps.step import Step


class InThread:
    """Around the action of a step, in a thread of the library's: ``with upkeep.InThread(step):``."""

    __slots__ = ("_attempt", "_step")

    def __init__(self, step: Step) -> None:
        self._step = step
        self._attempt = step.attempt

    def __enter__(self) -> None:
        if _is_needed(self._attempt):
            self._tidy()
            self._send(step_prerun)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _is_needed(self._attempt):
            self._send(step_postrun)
            self._tidy()

    def _tidy(self) -> None:
        django.close_old_connections(self._attempt.terms.db_reuse_max)

    def _send(self, signal: Signal) -> None:
        about = self._attempt.about
        signal.send(sender=about.task, task_id=about.task_id, name=self._step.name)


class OnLoop(InThread):
    """The same on the event loop, where async code has its queries executed by a thread that belongs to asgiref."""

    __slots__ = ()

    def _tidy(self) -> None:
        django.close_old_connections_of_async_code(self._attempt.terms.db_reuse_max)


_NOTHING = nullcontext()


def on_loop(step: Step) -> AbstractContextManager[None]:
    """:class:`OnLoop`, where there is something to look after: it would be a tenth of what a step costs otherwise."""
    nobody = not (has_receivers() or django.is_imported())
    return _NOTHING if nobody else OnLoop(step)


class OfBody:
    """Around the body of an async task, which is no step, but is not in Celery's thread, either."""

    __slots__ = ("_attempt",)

    def __init__(self, attempt: Attempt | None) -> None:
        self._attempt = attempt

    def __enter__(self) -> None:
        self._tidy()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tidy()

    def _tidy(self) -> None:
        if self._attempt is not None and _is_needed(self._attempt):
            django.close_old_connections_of_async_code(self._attempt.terms.db_reuse_max)


def _is_needed(attempt: Attempt) -> bool:
    """Not in tests, whose connections are to be kept: Celery does nothing, either."""
    return not attempt.about.is_local
