"""The slots of a Cluster: which node has which of them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

from .errors import TransientError
from .redis_py import bound_timeouts, point_at

# User code cannot seed it, so processes do not all ask the same node first.
_SHUFFLED = random.SystemRandom()
_LONGEST_QUESTION = 1.0
NEVER = float("-inf")


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


class Slots:
    """The slots as far as this process has heard of them."""

    def __init__(self, make_connection: Callable[[], Any], seeds: Iterable[tuple[str, int]]) -> None:
        self._make_connection = make_connection
        self._seeds = [Node(*seed) for seed in seeds]
        self._ranges: list[_Range] = []
        self._moved: dict[int, Node] = {}
        self._asked = NEVER
        self.forget()

    def forget(self) -> None:
        """Forget in a forked child what the threads of the parent hold."""
        self._asking = threading.Lock()

    def known_master(self, slot: int) -> Node | None:
        """The node that had a slot when this process last heard of it."""
        if node := self._moved.get(slot):
            return node
        return next((one.master for one in self._ranges if one.first <= slot <= one.last), None)

    def moved(self, slot: int, node: Node) -> None:
        """A node has said that this one has the slot."""
        self._moved[slot] = node

    def master(self, slot: int, since: float) -> Node:
        """The node that has a slot. The map of the slots must be newer than monotonic time *since*."""
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
        # The first one is not always the same: a node that was cut off may have an old view.
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
        connection = self._make_connection()
        point_at(connection, *node)
        bound_timeouts(connection, _LONGEST_QUESTION)
        try:
            connection.connect()
            connection.send_command("CLUSTER", "SLOTS")
            answer = connection.read_response(disable_decoding=True)
        finally:
            connection.disconnect()
        return [_range(*one, asked=node) for one in answer]


def _range(first: int, last: int, *servers: list[Any], asked: Node) -> _Range:
    master, *replicas = (_node(server, asked) for server in servers)
    return _Range(first, last, master, tuple(replicas))


def _node(server: list[Any], asked: Node) -> Node:
    # A node may not know its own address, or may be configured not to say it. It is where it was found.
    host = (server[0] or b"").decode()
    return Node(host if host not in ("", "?") else asked.host, server[1])
