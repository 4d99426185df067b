"""What a Redis server says about itself that decides what it may lose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.exceptions import ResponseError

from celery_durable.exceptions import JournalUnavailableError

from .client.errors import Refused
from .client.pool import JournalConnectionPool


def server_of(pool: JournalConnectionPool, timeout: float) -> Server:
    """The server that these connections lead to.

    Raises:
        JournalUnavailableError: it does not answer.
        Refused: it answers, but its user may not ask.
    """
    found: list[Server] = []
    connection = pool.take()
    try:
        # A probe runs when the connection is made. This one asks for no confirmation, but for the facts of the server.
        connection.set_confirmation(lambda raw: found.append(Server.at(raw)))
        connection.replies(timeout)
    except JournalUnavailableError as error:
        if isinstance(error.__cause__, ResponseError):
            raise Refused(str(error)) from error.__cause__
        raise
    finally:
        pool.give_back(connection)
    return found[-1]


class Server:
    """The facts of one server."""

    def __init__(self, info: Mapping[str, str], config: Mapping[str, str] | None) -> None:
        self._info = info
        self._config = config

    @classmethod
    def at(cls, connection: Any) -> Server:
        """The server at the other end of a connection on which nothing is pending.

        Raises:
            ResponseError: the user may not call INFO.
        """

        def ask(*words: str) -> Any:
            connection.send_command(*words)
            return connection.read_response(disable_decoding=True)

        lines = (line.partition(":") for line in ask("INFO").decode().splitlines())
        info = {name: value for name, _, value in lines if value}
        try:
            config = _pairs(ask("CONFIG", "GET", "*appendfsync*"))
        except ResponseError:
            config = None
        return cls(info, config)

    # -- what it is

    @property
    def name(self) -> str:
        """Its name, as its makers write it, with its version."""
        if "valkey_version" in self._info:
            return f"Valkey {self._info['valkey_version']}"
        return f"Redis {self._info.get('redis_version', '(of an unknown version)')}"

    @property
    def is_valkey(self) -> bool:
        return "valkey_version" in self._info or self._info.get("server_name") == "valkey"

    @property
    def version(self) -> tuple[int, int]:
        """The version of Redis that it is, or that it is compatible with."""
        major, minor, *_ = (*self._info.get("redis_version", "0.0").split("."), "0")
        return int(major), int(minor)

    @property
    def is_cluster_node(self) -> bool:
        return self._info.get("cluster_enabled") == "1"

    # -- what it does with writes

    @property
    def eviction(self) -> str | None:
        """The policy by which it drops keys when memory is full; None if it drops none."""
        policy = self._info.get("maxmemory_policy", "noeviction")
        return policy if policy != "noeviction" and self._info.get("maxmemory", "0") != "0" else None

    @property
    def has_append_only_file(self) -> bool | None:
        """Whether it has one; None if that is not known."""
        enabled = self._info.get("aof_enabled")
        return None if enabled is None else enabled == "1"

    @property
    def fsync(self) -> str | None:
        """When it writes the file to the disk: always, everysec or no; None if it is not known."""
        return None if self._config is None else self._config.get("appendfsync")

    @property
    def fsyncs_during_rewrites(self) -> bool:
        return (self._config or {}).get("no-appendfsync-on-rewrite") != "yes"

    @property
    def replicas(self) -> int:
        """How many replicas are connected now."""
        return int(self._info.get("connected_slaves", 0))


def _pairs(reply: Any) -> dict[str, str]:
    """A map, as either version of Redis' protocol gives it."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in pairs}
