"""Connections that nobody uses: the last one that was given back is taken first, and those that stay are closed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Generic, TypeVar

from .connection import JournalConnection

C = TypeVar("C", bound=JournalConnection)

_LONG_IDLE = 1.0
_LONGEST_IDLE = 60.0
"""Seconds after which a connection is closed that nobody has needed."""


class IdleConnections(Generic[C]):
    """Those to one server; any thread may take one, or give it back."""

    def __init__(self) -> None:
        self._connections: list[C] = []

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[C]:
        return iter(list(self._connections))

    def take(self) -> C:
        """One that nobody else uses.

        Raises:
            IndexError: there is none.
        """
        return self._connections.pop()

    def keep(self, connection: C) -> None:
        """Keep one, as if it had not been used."""
        self._connections.append(connection)

    def give_back(self, connection: C) -> None:
        """Keep one that was used until now."""
        connection.idle_since = time.monotonic()
        self._connections.append(connection)
        self._close_unneeded()

    def flush(self) -> None:
        """Read what is pending, and send again what was lost, where nobody has used a connection for a while.

        Those that nobody needs any more are closed, and those that the server has closed.
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
        """Close a connection that was not used for long, if another one is left; whether there was one."""
        oldest = self._connections[0] if len(self._connections) > 1 else None  # what is taken is the last
        if oldest is None or oldest.pending or time.monotonic() - oldest.idle_since < _LONGEST_IDLE:
            return False
        with suppress(ValueError):  # taken just now
            self._connections.remove(oldest)
            oldest.transport.close()
        return True
