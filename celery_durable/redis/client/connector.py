"""A connector makes connections by redis-py: to one server, or to the master that Sentinels name.

Such a connection tries nothing again by itself: its user decides how long to try. Its reads and its attempts to connect
end in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from celery_durable.journal.port import LONGEST_READ

_LONGEST_SENTINEL = 1.0
_MANY = 2**31


class Connector(Protocol):
    """It makes new connections."""

    def make_connection(self) -> Any:
        """A connection of redis-py, not connected yet."""
        ...


def to_server(params: Mapping[str, Any], longest_read: float = LONGEST_READ) -> Connector:
    """A connector to the server that these parameters of redis-py name.

    *longest_read*: seconds after which a read, or an attempt to connect, is given up.
    """
    return ConnectionPool(**_bounded(params, longest_read))


def to_master(
    name: str | None,
    sentinels: Sequence[tuple[str, int]],
    params: Mapping[str, Any],
    longest_read: float = LONGEST_READ,
    *,
    min_other_sentinels: int,
    sentinel_params: Mapping[str, Any],
) -> Connector:
    """A connector to the master with this name. Each connection asks the Sentinels for it when it connects."""
    params = _bounded(params, longest_read)
    asked = Sentinel(  # type: ignore[no-untyped-call]
        sentinels,
        min_other_sentinels=min_other_sentinels,
        sentinel_kwargs={
            # Nobody waits long for a Sentinel that is gone: the next one knows as much.
            "socket_timeout": _LONGEST_SENTINEL,
            "socket_connect_timeout": _LONGEST_SENTINEL,
            "retry": _never_again(),
            **sentinel_params,
        },
    )
    params["host"] = ""  # until the Sentinels have named one: no message must name redis-py's default
    return SentinelConnectionPool(name, asked, **params)  # type: ignore[no-untyped-call]


def _bounded(params: Mapping[str, Any], longest_read: float) -> dict[str, Any]:
    bounded = {name: value for name, value in params.items() if name != "retry_on_timeout"}
    bounded["max_connections"] = _MANY  # an attempt has one of its own, and waits for nobody
    bounded["retry"] = _never_again()
    for timeout in ("socket_timeout", "socket_connect_timeout"):
        if timeout in params or "path" not in params:
            bounded[timeout] = min(params.get(timeout) or longest_read, longest_read)
    return bounded


def _never_again() -> Retry:
    return Retry(NoBackoff(), 0)
