"""A Redis Cluster: connections that follow their slot from node to node.

redis-py's own client of a Cluster sends one command and reads its reply; a connection of ours sends ahead. So this
package asks the nodes itself, and leaves connections and protocol to redis-py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, cast

from redis.exceptions import AskError, MovedError, RedisError, ResponseError

from celery_durable.exceptions import DurableError, JournalUnavailableError

from .connection import JournalConnection
from .connector import Connector
from .errors import Refused, TransientError
from .pool import IdleConnections, JournalConnectionPool
from .protocol import pack
from .redis_py import point_at, redirected_to, slot_of
from .slots import NEVER, Node, Slots

_ASKING = pack("ASKING")


class Cluster:
    """A Cluster as this process sees it."""

    def __init__(
        self, make_connector: Callable[[], Connector], seeds: Iterable[tuple[str, int]], timeout: float
    ) -> None:
        self.slots = Slots(self._raw_connection, seeds)
        self._make_connector = make_connector
        self._timeout = timeout
        self._pools: dict[int, SlotConnectionPool] = {}
        self.forget()

    def forget(self) -> None:
        """Forget all in a forked child: the sockets belong to the parent, and so do the locks that its threads hold."""
        self._connector: Connector | None = None
        self.slots.forget()
        self._idle: dict[Node, IdleConnections[SlotConnection]] = {}

    def pool_for(self, key: str) -> JournalConnectionPool:
        """The connections to the node that has the slot of *key*."""
        slot = slot_of(key)
        return self._pools.setdefault(slot, SlotConnectionPool(self, slot, self._make_connector, self._timeout))

    def by_master(self) -> list[JournalConnectionPool]:
        """A pool for each node that has one of the slots of this app.

        Raises:
            JournalUnavailableError: no node answers.
            Refused: one has answered, but the user may not ask.
        """
        found: dict[Node, JournalConnectionPool] = {}
        for slot, pool in self._pools.items():
            try:
                found.setdefault(self.slots.master(slot, since=NEVER), pool)
            except ResponseError as error:
                raise Refused(str(error)) from error
            except RedisError as error:
                raise JournalUnavailableError(str(error)) from error
        return list(found.values())

    def _raw_connection(self) -> Any:
        if self._connector is None:
            self._connector = self._make_connector()
        return self._connector.make_connection()

    def take(self, slot: int) -> SlotConnection:
        """A connection that nobody else uses; if there is an idle one to the right node, that one."""
        node = self.slots.known_master(slot)
        idle = self._idle.get(node) if node else None
        while idle:
            with suppress(IndexError):
                connection = idle.take()
                if connection.turn_to(slot):
                    return connection
                # It is lost, and has pending commands, which must be sent again to its own slot.
                self._pools[connection.slot].keep(connection)
        return SlotConnection(self, slot, self._raw_connection(), self._timeout)

    @property
    def has_idle(self) -> bool:
        return any(self._idle.values())

    def flush_idle(self) -> None:
        for idle in list(self._idle.values()):
            idle.flush()

    def give_back(self, connection: SlotConnection) -> None:
        self._idle.setdefault(connection.node, IdleConnections()).give_back(connection)


class SlotConnection(JournalConnection):
    """A connection to the node that has a slot."""

    def __init__(self, cluster: Cluster, slot: int, raw: Any, timeout: float) -> None:
        super().__init__(raw, timeout)
        self.slot = slot
        self.node = Node("", 0)
        self._cluster = cluster
        self._redirected: tuple[Node, bool] | None = None
        self._asking = False
        self._tried = NEVER

    def turn_to(self, slot: int) -> bool:
        """Serve another slot of the same node. False if commands for the present one are not answered."""
        if slot != self.slot and self.pending:
            with suppress(DurableError):
                self.replies_if_connected()
        if slot == self.slot or not self.pending:
            self.slot = slot
            return True
        return False

    def _reconnect(self) -> None:
        (self.node, self._asking), self._redirected = self._redirected or self._find(), None
        # If this fails, the map of the slots may be wrong: the next try asks for a newer one.
        self._tried = time.monotonic()
        point_at(self.transport.raw, *self.node)
        super()._reconnect()

    def _carry_over(self) -> None:
        super()._carry_over()
        if self._asking:
            self.pending.put_before_each(_ASKING)

    def _find(self) -> tuple[Node, bool]:
        return self._cluster.slots.master(self.slot, since=self._tried), False

    def _judged(self, error: Exception) -> Exception:
        if isinstance(error, AskError):  # MovedError is one
            # An ASK says that the slot moves, and that this key has moved already. Only the next command goes there.
            slot, host, port = redirected_to(error)
            node, moved = Node(host or self.node.host, port), isinstance(error, MovedError)
            self._redirected = node, not moved
            if moved:
                self._cluster.slots.moved(slot, node)
            return TransientError(f"slot {slot} is at {node.host}:{node.port}")
        return super()._judged(error)


class SlotConnectionPool(JournalConnectionPool):
    """The connections of this process to one slot. All slots of a node share their connections."""

    def __init__(self, cluster: Cluster, slot: int, make_connector: Callable[[], Connector], timeout: float) -> None:
        super().__init__(make_connector, timeout)
        self._cluster = cluster
        self._slot = slot

    def take(self) -> JournalConnection:
        try:
            return self._idle.take()
        except IndexError:
            return self._cluster.take(self._slot)

    def give_back(self, connection: JournalConnection) -> None:
        connection.discard_replies()
        self._cluster.give_back(cast("SlotConnection", connection))

    @property
    def has_idle(self) -> bool:
        return super().has_idle or self._cluster.has_idle

    def flush_idle(self) -> None:
        super().flush_idle()
        self._cluster.flush_idle()

    def keep(self, connection: JournalConnection) -> None:
        """Keep a connection for this slot alone."""
        self._idle.keep(connection)

    def forget(self) -> None:
        super().forget()
        self._cluster.forget()
