"""The connections of this process to one Redis: those that nobody uses are kept for the next attempt."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from .connection import JournalConnection
from .connector import Connector
from .idle import IdleConnections
from .scripts import Dated
from .transport import TIME


class JournalConnectionPool:
    """The connections of this process to one Redis; an attempt has one of its own while it lasts."""

    def __init__(self, make_connector: Callable[[], Connector], timeout: float) -> None:
        self._make_connector = make_connector
        self._timeout = timeout
        self._connector: Connector | None = None
        self._idle: IdleConnections[JournalConnection] = IdleConnections()
        self.writes_results = True
        """Whether the server writes a result of Celery's together with a journal, as far as is known."""
        self.ahead: float | None = None
        """Seconds that its clock is ahead of this machine's monotonic one; None as long as it has not told its time."""
        _everywhere.add(self)

    def take(self) -> JournalConnection:
        """A connection that nobody else uses."""
        try:
            return self._idle.take()
        except IndexError:
            if self._connector is None:
                self._connector = self._make_connector()
            return JournalConnection(self._connector.make_connection(), self._timeout)

    def give_back(self, connection: JournalConnection) -> None:
        """Keep a connection for the next attempt, which is not to see replies of this one."""
        connection.discard_replies()
        self._idle.give_back(connection)

    def execute(self, *commands: bytes | Dated, timeout: float | None = None) -> list[Any]:
        """The replies to these commands, over a connection of their own.

        Raises:
            JournalUnavailableError: as :meth:`JournalConnection.replies` does.
        """
        connection = self.take()
        try:
            connection.send(*commands)
            return connection.replies(timeout)
        finally:
            self.give_back(connection)

    @property
    def has_idle(self) -> bool:
        """Whether there is a connection that nobody uses."""
        return bool(self._idle)

    def answers(self, seconds: float) -> bool:
        """Whether there is a connection to this Redis over which it answers within so many seconds."""
        connection = self.take()
        idle_since = connection.idle_since
        try:
            if connection.transport.fileno() < 0:
                return False
            connection.send(TIME)
            return connection.transport.has_reply(seconds) and connection.replies_if_connected() is not None
        finally:
            self.give_back(connection)
            connection.idle_since = idle_since  # this was no use of it

    def flush_idle(self) -> None:
        """Read what is pending on connections that nobody uses: what was lost on its way is sent again."""
        self._idle.flush()

    def forget(self) -> None:
        """In a forked child: the parent's sockets are not ours."""
        self._idle = IdleConnections()
        self._connector = None


_everywhere: WeakSet[JournalConnectionPool] = WeakSet()


def _forget_all() -> None:
    for pool in _everywhere:
        pool.forget()


os.register_at_fork(after_in_child=_forget_all)
