"""Interruptions: an exception is raised in user code that is running, and never in the code of the library.

A signal reaches the main thread of a process, and also ends a blocking system call. A throw reaches a greenlet of
gevent. A cancellation reaches an async body. Nothing reaches other threads.
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

# A process that does not handle this signal ignores it, and nothing in Python uses it.
_SIGNAL = getattr(signal, "SIGURG", None)


class Interruption(Protocol):
    """One exception that is on its way."""

    overrun: Overrun

    def arrives(self) -> bool:
        """Whether the code that it must end still runs. If so, the exception is raised now."""
        ...


class Target(Protocol):
    """A place where code runs that can be interrupted."""

    def send(self, interruption: Interruption) -> None:
        """Raise it there, unless the code of the library runs there now."""
        ...


# -- targets -----------------------------------------------------------------------------------------------------------


def current_target() -> Target | None:
    """The target of the code that calls this; None if it cannot be interrupted."""
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
        """Whether the signal arrives here. Only the main thread may ask."""
        if self._listens is None:
            # The application may use the signal for something of its own.
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
    # While another thread imports a module, some of its names are missing. So they are looked for, here and below.
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
        # While the hub runs, no greenlet does. So the greenlet does not move between the check and the throw.
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
    """The body of an async task, which makes this object. An interruption cancels what the body awaits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._body = asyncio.current_task()

    def send(self, interruption: Interruption) -> None:
        self._loop.call_soon_threadsafe(self._cancel, interruption)

    def _cancel(self, interruption: Interruption) -> None:
        # The body is suspended in an await. A cancellation may always be raised there.
        if self._body is not None and interruption.arrives():
            overrun = interruption.overrun
            overrun.pulse.interrupted_by = overrun
            for step in tuple(overrun.pulse.running):
                # The cancellation does not end an action that runs in a thread.
                if step.work is not None:
                    step.work.give_up(step, overrun)
            self._body.cancel()
