"""When a write counts as recorded (``durable_journal_sync``): in memory, on a replica, or on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redis.exceptions import ResponseError

from celery_durable.exceptions import ConfigurationError

from .client.connection import ConfirmationProbe
from .client.errors import TransientError
from .client.pending import Confirmation
from .client.protocol import pack
from .replies import WriteReply
from .server import Server

_REPLICA_MS = 1000
_FIRST_WAITAOF = (7, 2)
_DISK_MS = 3000  # an fsync is due each second, and may be late


def probe_for(sync: str) -> ConfirmationProbe | None:
    """How writes are confirmed with this setting; None: Redis' own reply is enough."""
    return _PROBES[sync]


def _replicated(count: int, answers: list[Any]) -> None:
    if count < 1 and not _refused(answers):
        raise TransientError(
            f"no replica acknowledged the write within {_REPLICA_MS / 1000:g} s (durable_journal_sync)"
        )


def _on_disk(counts: list[int], answers: list[Any]) -> None:
    if counts[0] < 1 and not _refused(answers):
        raise TransientError(f"the write was not on disk within {_DISK_MS / 1000:g} s (durable_journal_sync)")


def _refused(answers: list[Any]) -> bool:
    """Whether nothing was written that could be confirmed: the attempt is fenced, or its journal is gone."""
    return bool(answers) and answers[-1] in (WriteReply.FENCED, WriteReply.NO_JOURNAL)


_REPLICATED = Confirmation(pack("WAIT", 1, _REPLICA_MS), _replicated)
_ON_DISK = Confirmation(pack("WAITAOF", 1, 0, _DISK_MS), _on_disk)


def _probe_replicas(_connection: Any) -> Confirmation:
    return _REPLICATED


def _probe_disk(connection: Any) -> Confirmation | None:
    """How this server confirms that a write is on its disk; None: by the reply alone.

    Raises:
        ConfigurationError: it cannot confirm that truthfully.
    """
    try:
        server = Server.at(connection)
    except ResponseError as error:
        raise ConfigurationError(
            f'durable_journal_sync="disk" needs to know the server, but INFO was refused ({error}): '
            f"allow the user +info and +config|get, or set another durable_journal_sync"
        ) from error
    if reason := why_not_on_disk(server):
        raise ConfigurationError(f'durable_journal_sync="disk" cannot be kept: {reason}')
    return None if server.fsync == "always" else _ON_DISK


def why_not_on_disk(server: Server) -> str | None:
    """Why a server cannot confirm truthfully that a write is on its disk, and what to do; None if it can."""
    return next(_obstacles(server), None)


def _obstacles(server: Server) -> Iterator[str]:
    cure = 'set appendfsync always, or durable_journal_sync="replicas"'
    if server.has_append_only_file is None:
        yield f"whether {server.name} has an append-only file is not known: INFO does not say"
    elif not server.has_append_only_file:
        yield f"{server.name} has no append-only file: set appendonly yes"
    elif server.fsync is None:
        yield "appendfsync is not known, since CONFIG GET was refused: allow the user +config|get"
    elif not server.fsyncs_during_rewrites:
        yield "with no-appendfsync-on-rewrite yes nothing reaches the disk during a rewrite: set it to no"
    elif server.fsync == "everysec" and server.version < _FIRST_WAITAOF:
        yield f"{server.name} with appendfsync everysec has no WAITAOF: {cure}"
    elif server.fsync == "everysec" and not _waits_for_the_disk(server):
        yield f"WAITAOF of {server.name} may answer before the fsync under appendfsync everysec: {cure}"
    elif server.fsync not in ("always", "everysec"):
        yield f"appendfsync {server.fsync} leaves the disk to the kernel: {cure}"


def _waits_for_the_disk(server: Server) -> bool:
    # This was measured under everysec: Redis 7.2 answers after the fsync, Redis 7.4 and Valkey 8 to 9 before it. Later
    # versions are said to be correct (redis/redis#13793). They must be measured before they are trusted.
    return server.version == _FIRST_WAITAOF and not server.is_valkey


_PROBES: dict[str, ConfirmationProbe | None] = {"memory": None, "replicas": _probe_replicas, "disk": _probe_disk}
