"""The connections of this process to one Redis. Those that nobody uses are kept for the next attempt."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from .connection import JournalConnection
from .connector import Connector
from .scripts import Dated
from .transport import TIME

C = TypeVar("C", bound=JournalConnection)

SHORT_TIMEOUT = 1.0
"""Seconds that a process waits for Redis if it has others to serve, or is about to die."""
_LONG_IDLE = 1.0
_LONGEST_IDLE = 60.0
"""A connection that nobody has used for so many seconds is closed."""


class IdleConnections(Generic[C]):
    """Connections to one server that nobody uses. Any thread may take the last one, or give one back."""

    def __init__(self) -> None:
        self._connections: list[C] = []

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[C]:
        return iter(list(self._connections))

    def take(self) -> C:
        """Take a connection that nobody else uses.

        Raises:
            IndexError: there is none.
        """
        return self._connections.pop()

    def keep(self, connection: C) -> None:
        """Keep a connection as if it had not been used."""
        self._connections.append(connection)

    def give_back(self, connection: C) -> None:
        """Keep a connection that was used until now."""
        connection.idle_since = time.monotonic()
        self._connections.append(connection)
        self._close_unneeded()

    def flush(self) -> None:
        """Read the replies to what is pending on connections that have been idle for a while; send again what was lost.

        Then close the connections that nobody needs any more, and those that the server has closed.
        """
        for connection in self:
            if time.monotonic() - connection.idle_since > _LONG_IDLE:
                with suppress(ValueError):  # taken just now
                    self._connections.remove(connection)
                    self._flush(connection)
        while self._close_unneeded():
            pass

    def _flush(self, connection: C) -> None:
        try:
            if connection.pending:
                connection.try_again()
            else:
                connection.transport.has_reply(0)  # notices that the server has closed it
        finally:
            if connection.pending or connection.transport.fileno() >= 0:
                self._connections.insert(0, connection)
            else:
                connection.transport.close()

    def _close_unneeded(self) -> bool:
        """Close a connection that was not used for long, if another one is left; return whether there was one."""
        oldest = self._connections[0] if len(self._connections) > 1 else None  # what is taken is the last
        if oldest is None or oldest.pending or time.monotonic() - oldest.idle_since < _LONGEST_IDLE:
            return False
        with suppress(ValueError):  # taken just now
            self._connections.remove(oldest)
            oldest.transport.close()
        return True


class JournalConnectionPool:
    """The connections of this process to one Redis. An attempt has one of its own while it lasts."""

    def __init__(self, make_connector: Callable[[], Connector], timeout: float) -> None:
        self._make_connector = make_connector
        self._timeout = timeout
        self._connector: Connector | None = None
        self._idle: IdleConnections[JournalConnection] = IdleConnections()
        self.writes_results = True
        """Whether the server writes a result of Celery's together with a journal, as far as is known."""
        self.clock_ahead: float | None = None
        """Seconds that the server's clock is ahead of the monotonic one here; None until the server has told it."""
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
        """Keep a connection for the next attempt. That one does not see the replies of this one."""
        connection.discard_replies()
        self._idle.give_back(connection)

    def execute(self, *commands: bytes | Dated, timeout: float | None = None) -> list[Any]:
        """Send these commands over a connection of their own, and return the replies.

        Raises:
            JournalUnavailableError: see :meth:`JournalConnection.replies`.
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
            connection.idle_since = idle_since  # the question does not count as a use

    def flush_idle(self) -> None:
        """Read the replies to what is pending on idle connections; send again what was lost."""
        self._idle.flush()

    def forget(self) -> None:
        """Forget all in a forked child: the sockets belong to the parent."""
        self._idle = IdleConnections()
        self._connector = None


_everywhere: WeakSet[JournalConnectionPool] = WeakSet()


def _forget_all() -> None:
    for pool in _everywhere:
        pool.forget()


os.register_at_fork(after_in_child=_forget_all)
