"""Interruptions: an exception is raised in user code that is running, and never in the library's own.

The main thread of a process is reached by a signal, which also ends a blocking system call; a greenlet of gevent by a
throw; an async body by its cancellation. Other threads cannot be reached.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from types import FrameType
from typing import Any, Protocol

from celery_durable.user_code import in_user_code

from .pulse import Overrun

# Ignored where nobody handles it, and used by nobody in Python.
_SIGNAL = getattr(signal, "SIGURG", None)


class Interruption(Protocol):
    """One exception that is on its way."""

    overrun: Overrun

    def arrives(self) -> bool:
        """Whether what it is to end still runs; if so it is raised now."""
        ...


class Target(Protocol):
    """Where code runs that can be interrupted."""

    def send(self, interruption: Interruption) -> None:
        """Raise it there, unless the library is at work there just now."""
        ...


# -- targets -----------------------------------------------------------------------------------------------------------


def current_target() -> Target | None:
    """Where the code runs that calls this, if it can be interrupted there."""
    greenlet = _gevent_greenlet()
    if greenlet is not None:
        return _InGreenlet(greenlet)
    if _in_main_thread() and _main_thread.is_listening():
        return _main_thread
    return None


class _InMainThread:
    def __init__(self) -> None:
        self._coming: Interruption | None = None
        self._listens: bool | None = None

    def is_listening(self) -> bool:
        """Whether the signal arrives here; asked in the main thread."""
        if self._listens is None:
            # The application may use it for something of its own.
            self._listens = _SIGNAL is not None and signal.getsignal(_SIGNAL) in (signal.SIG_DFL, signal.SIG_IGN)
            if _SIGNAL is not None and self._listens:
                signal.signal(_SIGNAL, self._on_signal)
        return self._listens

    def send(self, interruption: Interruption) -> None:
        assert _SIGNAL is not None  # noqa: S101
        self._coming = interruption
        signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)

    def _on_signal(self, _signal: int, frame: FrameType | None) -> None:
        interruption, self._coming = self._coming, None
        if interruption is not None and in_user_code(frame) and interruption.arrives():
            raise interruption.overrun


_main_thread = _InMainThread()  # a forked child inherits the handler


def _in_main_thread() -> bool:
    # While another thread imports a module, it is there without what it will have: so here and below.
    getcurrent = getattr(sys.modules.get("greenlet"), "getcurrent", None)
    if getcurrent is not None and getcurrent().parent is not None:
        return False
    return threading.current_thread() is threading.main_thread()


class _InGreenlet:
    def __init__(self, greenlet: Any) -> None:
        from gevent import get_hub  # type: ignore[import-untyped, unused-ignore]

        self._greenlet = greenlet
        self._loop = get_hub().loop

    def send(self, interruption: Interruption) -> None:
        # In the hub no greenlet runs, so that none moves between the look and the throw.
        self._loop.run_callback(self._throw, interruption)

    def _throw(self, interruption: Interruption) -> None:
        if in_user_code(self._greenlet.gr_frame) and interruption.arrives():
            self._greenlet.throw(interruption.overrun)


def _gevent_greenlet() -> Any:
    gevent: Any = sys.modules.get("gevent")
    if not hasattr(gevent, "getcurrent") or not hasattr(gevent, "Greenlet"):
        return None
    current = gevent.getcurrent()
    return current if isinstance(current, gevent.Greenlet) else None


class AsyncBody:
    """The body of an async task, which makes it: what it awaits is cancelled."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._body = asyncio.current_task()

    def send(self, interruption: Interruption) -> None:
        self._loop.call_soon_threadsafe(self._cancel, interruption)

    def _cancel(self, interruption: Interruption) -> None:
        # It is suspended in an await, where a cancellation is foreseen.
        if self._body is not None and interruption.arrives():
            overrun = interruption.overrun
            overrun.pulse.interrupted_by = overrun
            for step in tuple(overrun.pulse.running):
                # What runs in a thread does not end by that.
                if step.work is not None:
                    step.work.give_up(step, overrun)
            self._body.cancel()
