"""A Redis Cluster: which node has which slot, and connections that follow their slot from node to node.

redis-py's own client of a Cluster sends one command and reads its reply; a connection of ours sends ahead. So this
module asks the nodes itself, and leaves connections and protocol to redis-py.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple, cast

from redis.exceptions import AskError, InvalidResponse, MovedError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_durable.exceptions import DurableError, JournalUnavailableError

from .connection import JournalConnection
from .connector import Connector
from .errors import Refused, TransientError
from .pool import IdleConnections, JournalConnectionPool
from .protocol import pack
from .redis_py import bound_timeouts, point_at, redirected_to, slot_of

# It has no state that the user could have seeded.
_SHUFFLED = random.SystemRandom()
_ASKING = pack("ASKING")
_LONGEST_QUESTION = 1.0
_NEVER = float("-inf")


class Node(NamedTuple):
    """The address of a server of the Cluster."""

    host: str
    port: int


class _Range(NamedTuple):
    """Neighbouring slots that are on the same servers."""

    first: int
    last: int
    master: Node
    replicas: tuple[Node, ...]


class Cluster:
    """A Cluster as this process sees it."""

    def __init__(
        self, make_connector: Callable[[], Connector], seeds: Iterable[tuple[str, int]], timeout: float
    ) -> None:
        self._make_connector = make_connector
        self._seeds = [Node(*seed) for seed in seeds]
        self._timeout = timeout
        self._ranges: list[_Range] = []
        self._moved: dict[int, Node] = {}
        self._asked = _NEVER
        self._pools: dict[int, SlotConnectionPool] = {}
        self.forget()

    def forget(self) -> None:
        """In a forked child: the parent's sockets are not ours, nor is what its threads hold."""
        self._connector: Connector | None = None
        self._asking = threading.Lock()
        self._idle: dict[Node, IdleConnections[SlotConnection]] = {}

    def pool_for(self, key: str) -> JournalConnectionPool:
        """The connections to whichever node has the slot of *key*."""
        slot = slot_of(key)
        return self._pools.setdefault(slot, SlotConnectionPool(self, slot, self._make_connector, self._timeout))

    def by_master(self) -> list[JournalConnectionPool]:
        """One of the connections to each node that has one of our slots.

        Raises:
            JournalUnavailableError: no node answers.
            Refused: one has answered, but the user may not ask.
        """
        found: dict[Node, JournalConnectionPool] = {}
        for slot, pool in self._pools.items():
            try:
                found.setdefault(self.master(slot, since=_NEVER), pool)
            except ResponseError as error:
                raise Refused(str(error)) from error
            except RedisError as error:
                raise JournalUnavailableError(str(error)) from error
        return list(found.values())

    # -- who has which slot

    def known_master(self, slot: int) -> Node | None:
        """The node that had a slot when this process last heard of it."""
        if node := self._moved.get(slot):
            return node
        return next((one.master for one in self._ranges if one.first <= slot <= one.last), None)

    def moved(self, slot: int, node: Node) -> None:
        """A node has said that this one has the slot."""
        self._moved[slot] = node

    def master(self, slot: int, since: float) -> Node:
        """The node that has a slot, by an answer that is newer than monotonic time *since*."""
        with self._asking:
            if self._asked <= since:
                asked = time.monotonic()
                self._ranges, self._moved = self._ask_around(), {}
                self._asked = asked
        if node := self.known_master(slot):
            return node
        raise TransientError(f"no node of the Cluster has slot {slot}")

    def _ask_around(self) -> list[_Range]:
        known = [node for one in self._ranges for node in (one.master, *one.replicas)]
        nodes = list({*known, *self._seeds})
        # The first is not always the same: a node that was cut off may have an old view.
        _SHUFFLED.shuffle(nodes)
        silence: Exception | None = None
        for node in nodes:
            try:
                return self._ask(node)
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                silence = error
            except InvalidResponse as error:
                silence = TransientError(f"what answers at {node.host}:{node.port} is no Redis: {error}")
        raise TransientError(f"no node of the Cluster answers: {silence}") from silence

    def _ask(self, node: Node) -> list[_Range]:
        connection = self._raw_connection()
        point_at(connection, *node)
        bound_timeouts(connection, _LONGEST_QUESTION)
        try:
            connection.connect()
            connection.send_command("CLUSTER", "SLOTS")
            answer = connection.read_response(disable_decoding=True)
        finally:
            connection.disconnect()
        return [_range(*one, asked=node) for one in answer]

    # -- connections

    def _raw_connection(self) -> Any:
        if self._connector is None:
            self._connector = self._make_connector()
        return self._connector.make_connection()

    def take(self, slot: int) -> SlotConnection:
        """A connection that nobody else uses; one to the right node if there is any."""
        node = self.known_master(slot)
        idle = self._idle.get(node) if node else None
        while idle:
            with suppress(IndexError):
                connection = idle.take()
                if connection.turn_to(slot):
                    return connection
                # It is lost, and has commands that have to be sent to its own slot.
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
    """A connection to whichever node has a slot."""

    def __init__(self, cluster: Cluster, slot: int, raw: Any, timeout: float) -> None:
        super().__init__(raw, timeout)
        self.slot = slot
        self.node = Node("", 0)
        self._cluster = cluster
        self._redirected: tuple[Node, bool] | None = None
        self._asking = False
        self._tried = _NEVER

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
        # If this fails, what was known until now is in doubt.
        self._tried = time.monotonic()
        point_at(self.transport.raw, *self.node)
        super()._reconnect()

    def _carry_over(self) -> None:
        super()._carry_over()
        if self._asking:
            self.pending.put_before_each(_ASKING)

    def _find(self) -> tuple[Node, bool]:
        return self._cluster.master(self.slot, since=self._tried), False

    def _judged(self, error: Exception) -> Exception:
        if isinstance(error, AskError):  # MovedError is one
            # ASK: the slot is being moved, and this key already was. Only the next command goes there.
            slot, host, port = redirected_to(error)
            node, moved = Node(host or self.node.host, port), isinstance(error, MovedError)
            self._redirected = node, not moved
            if moved:
                self._cluster.moved(slot, node)
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


def _range(first: int, last: int, *servers: list[Any], asked: Node) -> _Range:
    master, *replicas = (_node(server, asked) for server in servers)
    return _Range(first, last, master, tuple(replicas))


def _node(server: list[Any], asked: Node) -> Node:
    # A node may not know its own address, or be told not to say it: it is where it was found.
    host = (server[0] or b"").decode()
    return Node(host if host not in ("", "?") else asked.host, server[1])
