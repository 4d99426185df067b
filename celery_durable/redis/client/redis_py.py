"""The private or undocumented names of redis-py. Each one that the library uses is looked up here, at import."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from redis.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.exceptions import AskError

from celery_durable.seams.lookup import Package

REDIS_PY = Package("redis", ">=6.4,<9")


def _check(kind: type, *names: str) -> None:
    """Check attributes: properties of a class in some versions, set by its constructor in others."""
    set_by_constructor = [name for name in names if not hasattr(kind, name)]
    REDIS_PY.check_attributes(kind.__module__, f"{kind.__qualname__}.__init__", *set_by_constructor)


_check(AbstractConnection, "_sock", "socket_timeout", "socket_connect_timeout")
_check(Connection, "host", "port")
_check(UnixDomainSocketConnection, "path")
_check(AskError, "host", "port", "slot_id")
REDIS_PY.check_attributes("redis.connection", "AbstractConnection.set_parser", "_parser")
for _name in ("can_read", "read_response", "parse_error"):
    REDIS_PY.look_up("redis.connection", f"DefaultParser.{_name}")
_key_slot: Callable[[bytes], int] = REDIS_PY.look_up("redis.crc", "key_slot")


class Parser(Protocol):
    """It reads the replies of a connection."""

    def can_read(self, timeout: float) -> bool:
        """Whether something arrives within so many seconds."""
        ...

    def read_response(self, *, disable_decoding: bool) -> Any:
        """The next reply. An error that the server has replied is returned, or raised if it ends the connection."""
        ...

    def parse_error(self, response: str) -> Exception:
        """The error for the words of a server."""
        ...


def socket_of(connection: Any) -> socket.socket | None:
    """The socket of a connection; None if it is not connected."""
    return connection._sock  # type: ignore[no-any-return]  # noqa: SLF001


def parser_of(connection: Any) -> Parser:
    """The parser of a connection. To connect may replace it."""
    return connection._parser  # type: ignore[no-any-return]  # noqa: SLF001


def address_of(connection: Any) -> str:
    """The address that a connection leads to; empty if it is not known yet."""
    if path := getattr(connection, "path", None):
        return str(path)
    return f"{connection.host}:{connection.port}" if connection.host else ""


def point_at(connection: Any, host: str, port: int) -> None:
    """Let a connection lead to another server when it connects the next time."""
    connection.host, connection.port = host, port


def bound_timeouts(connection: Any, seconds: float) -> None:
    """Let a connection wait for nothing longer than *seconds*."""
    connection.socket_timeout = min(connection.socket_timeout, seconds)
    connection.socket_connect_timeout = min(connection.socket_connect_timeout, seconds)


def slot_of(key: str) -> int:
    """The slot of a Cluster that a key belongs to."""
    return _key_slot(key.encode())


def redirected_to(error: AskError) -> tuple[int, str, int]:
    """The slot that a redirection is about, and the host (empty if it does not say one) and the port it names."""
    return error.slot_id, error.host, error.port
