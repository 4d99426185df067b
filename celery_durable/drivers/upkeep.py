"""Upkeep of what a process keeps by thread (database connections, sessions), in threads that Celery does not know.

Around each task, Celery does it in its own thread. If a step is executed elsewhere, in a thread of the library or on
its event loop, it is done here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from celery_durable import django
from celery_durable.signals import has_receivers, step_postrun, step_prerun

from .pulse import Pulse, Running


class OfAction:
    """The upkeep around the action of a step, in a thread of the library: ``with upkeep.OfAction(step):``."""

    __slots__ = ("_pulse", "_step")

    def __init__(self, step: Running) -> None:
        self._step = step
        self._pulse = step.pulse

    def __enter__(self) -> None:
        if _is_needed(self._pulse):
            self._tidy()
            self._send(step_prerun)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _is_needed(self._pulse):
            self._send(step_postrun)
            self._tidy()

    def _tidy(self) -> None:
        django.close_old_connections(self._pulse.settings.db_reuse_max)

    def _send(self, signal: Any) -> None:
        info = self._pulse.info
        signal.send(sender=info.task, task_id=info.task_id, name=self._step.name)


class OfActionOnLoop(OfAction):
    """The same on the event loop. There, a thread of asgiref executes the queries of async code."""

    __slots__ = ()

    def _tidy(self) -> None:
        django.close_old_connections_of_async_code(self._pulse.settings.db_reuse_max)


_NOTHING = nullcontext()


def on_loop(step: Running) -> AbstractContextManager[None]:
    """The upkeep around an action on the event loop, if anybody needs it: it is a tenth of a step's cost."""
    nobody = not (has_receivers() or django.is_imported())
    return _NOTHING if nobody else OfActionOnLoop(step)


class OfBody:
    """The upkeep around the body of an async task. It is no step, but it does not run in Celery's thread, either."""

    __slots__ = ("_pulse",)

    def __init__(self, pulse: Pulse | None) -> None:
        self._pulse = pulse

    def __enter__(self) -> None:
        self._tidy()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tidy()

    def _tidy(self) -> None:
        if self._pulse is not None and _is_needed(self._pulse):
            django.close_old_connections_of_async_code(self._pulse.settings.db_reuse_max)


def _is_needed(pulse: Pulse) -> bool:
    """Whether a worker runs the task. Elsewhere, in a test, Celery does no upkeep, either: the connections stay."""
    return not pulse.info.is_local
