"""The connections of this process to one Redis: those that nobody uses are kept for the next attempt."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from .connection import TIME, Wire
from .connector import Connector
from .scripts import Dated

_LONG_IDLE = 1.0
_LONGEST_IDLE = 60.0
"""Seconds after which a connection is closed that nobody has needed."""


class Wires:
    """The connections of this process to one Redis; an attempt has one of its own while it lasts."""

    def __init__(self, make_connector: Callable[[], Connector], patience: float) -> None:
        self._make_connector = make_connector
        self._patience = patience
        self._connector: Connector | None = None
        self._idle: list[Wire] = []
        self.writes_results = True
        """Whether the server writes a result of Celery's together with a journal, as far as is known."""
        self.ahead: float | None = None
        """Seconds that its clock is ahead of this machine's monotonic one; None as long as it has not told its time."""
        _everywhere.add(self)

    def take(self) -> Wire:
        """A connection that nobody else uses."""
        try:
            return self._idle.pop()
        except IndexError:
            if self._connector is None:
                self._connector = self._make_connector()
            return Wire(self._connector.make_connection(), self._patience)

    def give_back(self, wire: Wire) -> None:
        """Keep a connection for the next attempt, which is not to see replies of this one."""
        wire.disown()
        wire.idle_since = time.monotonic()
        self._idle.append(wire)
        close_unneeded(self._idle)

    def ask(self, *commands: bytes | Dated, patience: float | None = None) -> list[Any]:
        """The replies to these commands, over a connection of their own; raises what :meth:`Wire.replies` does."""
        wire = self.take()
        try:
            wire.send(*commands)
            return wire.replies(patience)
        finally:
            self.give_back(wire)

    @property
    def has_idle(self) -> bool:
        """Whether there is a connection that nobody uses."""
        return bool(self._idle)

    def answer(self, seconds: float) -> bool:
        """Whether there is a connection to this Redis over which it answers within so many seconds."""
        wire = self.take()
        idle_since = wire.idle_since
        try:
            if wire.fileno() < 0:
                return False
            wire.send(TIME)
            return wire.answers(seconds) and wire.replies_if_connected() is not None
        finally:
            self.give_back(wire)
            wire.idle_since = idle_since  # this was no use of it

    def settle_idle(self) -> None:
        """Read what connections are owed that nobody uses: what was lost on its way is sent again.

        Those that nobody needs any more are closed, and those that the server has closed.
        """
        settle(self._idle)

    def forget(self) -> None:
        """In a forked child: the parent's sockets are not ours."""
        self._idle = []
        self._connector = None


def settle(idle: list[Any]) -> None:
    """Read what these connections are owed, if nobody has used them for a while; close those that are not needed."""
    for wire in list(idle):
        if time.monotonic() - wire.idle_since > _LONG_IDLE:
            with suppress(ValueError):  # taken just now
                idle.remove(wire)
                try:
                    if wire.owed:
                        wire.try_again()
                    else:
                        wire.answers(0)  # notices that the server has closed it
                finally:
                    if wire.owed or wire.fileno() >= 0:
                        idle.insert(0, wire)
                    else:
                        wire.close()
    while close_unneeded(idle):
        pass


def close_unneeded(idle: list[Any]) -> bool:
    """Close a connection that was not used for long, if another one is left; whether there was one."""
    oldest = idle[0] if len(idle) > 1 else None  # what is taken is the last
    if oldest is None or oldest.owed or time.monotonic() - oldest.idle_since < _LONGEST_IDLE:
        return False
    with suppress(ValueError):  # taken just now
        idle.remove(oldest)
        oldest.close()
    return True


_everywhere: WeakSet[Wires] = WeakSet()


def _forget_all() -> None:
    for wires in _everywhere:
        wires.forget()


os.register_at_fork(after_in_child=_forget_all)
