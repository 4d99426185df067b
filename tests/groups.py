"""Servers that stand in for each other: a master with a replica and Sentinels, and a Cluster."""

from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from typing_extensions import Self

from tests.processes import Process, Running
from tests.servers import RedisServer, ServerUnavailableError, free_port, program_of
from tests.waiting import eventually

MASTER_NAME = "journals"
DOWN_AFTER_MS = 1500
SLOTS = 16384
# Without the delay a master that dies at once leaves a replica without data.
_QUICK_REPLICATION = {"repl-diskless-sync-delay": "0", "repl-diskless-sync": "yes"}


def is_here(make: str) -> bool:
    """Say whether this machine has a server of this make."""
    try:
        program_of(make)
    except ServerUnavailableError:
        return False
    return True


MAKES = [make for make in ("redis", "valkey") if is_here(make)]
"""The makes that this machine has: a test that is about every make runs once on each. Valkey comes in a wheel."""


def program_or_skip(make: str) -> Path:
    """Find the server of this make; skip the test where there is none."""
    try:
        return program_of(make)
    except ServerUnavailableError as missing:
        pytest.skip(str(missing))


class Sentinel(RedisServer):
    """A Sentinel that watches one master."""

    def __init__(self, master: RedisServer, quorum: int) -> None:
        super().__init__(program=master.program)
        self._file = self.directory / "sentinel.conf"
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            f"sentinel monitor {MASTER_NAME} 127.0.0.1 {master.port} {quorum}",
            f"sentinel down-after-milliseconds {MASTER_NAME} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {MASTER_NAME} 3000",
        ]
        self._file.write_text("\n".join(lines) + "\n")

    def launch(self) -> Running:
        return Process([self.program, self._file, "--sentinel"], log=self.log)


class Group(ABC):
    """Servers that are started together, as a context manager, and ended together."""

    @abstractmethod
    def members(self) -> list[RedisServer]:
        """Return all of them, in the order in which they are ended."""

    @abstractmethod
    def _start(self) -> None:
        """Start them, and wait until they stand in for each other."""

    def start(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        for one in self.members():
            one.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()


class Watched(Group):
    """A master with one replica, and three Sentinels that promote it when the master is gone."""

    def __init__(self, program: Path) -> None:
        self.servers = [
            RedisServer(program=program, appendonly=True, config=_QUICK_REPLICATION),
            RedisServer(program=program, appendonly=True, config=_QUICK_REPLICATION),
        ]
        self.sentinels: list[Sentinel] = []

    @property
    def url(self) -> str:
        return ";".join(f"sentinel://127.0.0.1:{sentinel.port}/0" for sentinel in self.sentinels)

    @property
    def conf(self) -> dict[str, Any]:
        """The settings with which Celery, and the journal, find the master."""
        return {"durable_redis_url": self.url, "result_backend_transport_options": {"master_name": MASTER_NAME}}

    @property
    def master(self) -> RedisServer:
        return next(one for one in self.servers if role(one) == "master")

    @property
    def replica(self) -> RedisServer:
        return next(one for one in self.servers if role(one) == "slave")

    def _start(self) -> None:
        master, replica = self.servers
        master.start()
        replica.config["replicaof"] = f"127.0.0.1 {master.port}"
        replica.start()
        eventually(lambda: is_linked(replica), what="a replica with its master's data")
        self.sentinels = [Sentinel(master, quorum=2) for _ in range(3)]
        for sentinel in self.sentinels:
            sentinel.start()
        self.wait_until_watched(master)

    def wait_until_watched(self, master: RedisServer) -> None:
        """Wait until each Sentinel knows this master with its replica, and the other Sentinels."""

        def knows(sentinel: Sentinel) -> bool:
            state = state_of_master(sentinel)
            others = len(self.sentinels) - 1
            return (state["port"], state["num-other-sentinels"]) == (master.port, others) and state["num-slaves"] >= 1

        eventually(lambda: all(knows(one) for one in self.sentinels), what=f"Sentinels that watch {master.port}")

    def fail_over(self) -> RedisServer:
        """Kill the master; return the new one, when all Sentinels have made the replica that."""
        old, new = self.master, self.replica
        old.kill()
        self.wait_until_master_is(new)
        return new

    def wait_until_master_is(self, server: RedisServer) -> None:
        """Wait until all Sentinels name this server, and its role is that."""
        named = lambda: all(named_master(one) == server.port for one in self.sentinels)  # noqa: E731
        eventually(lambda: named() and role(server) == "master", deadline=30, what="a promoted replica")

    def members(self) -> list[RedisServer]:
        return [*self.sentinels, *self.servers]


class RedisCluster(Group):
    """Three masters with a replica each; the first has slots 0 to 5460, and so on."""

    def __init__(self, program: Path, *, tls: bool = False) -> None:
        self.servers = [self._server(program, tls=tls) for _ in range(6)]
        for one in self.servers[1:]:
            one.certificate = self.servers[0].certificate

    @staticmethod
    def _server(program: Path, *, tls: bool) -> RedisServer:
        config = {
            "cluster-enabled": "yes",
            "cluster-port": str(free_port()),
            "cluster-node-timeout": "1000",
            **_QUICK_REPLICATION,
        }
        server = RedisServer(program=program, appendonly=True, config=config, tls=tls)
        if server.tls_port:
            # Clients are sent to the ports with TLS; among themselves the nodes use those without.
            server.config["cluster-announce-client-port"] = str(server.port)
        elif tls:
            server.config |= {"tls-cluster": "yes", "tls-replication": "yes"}
        return server

    @property
    def url(self) -> str:
        """Two seeds, as an operator writes them."""
        seeds = [one.url().removesuffix("/0") for one in self.running[:2]]
        return ";".join(seed.replace("://", "+cluster://") for seed in seeds)

    @property
    def running(self) -> list[RedisServer]:
        return [one for one in self.servers if one.running]

    def _start(self) -> None:
        for one in self.servers:
            one.start()
        masters, replicas = self.servers[:3], self.servers[3:]
        first = masters[0]
        for number, master in enumerate(masters):
            with master.client() as client:
                client.execute_command("CLUSTER ADDSLOTS", *range(number * SLOTS // 3, (number + 1) * SLOTS // 3))
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for one in self.servers[1:]:
            with one.client() as client:
                bus = first.config["cluster-port"]
                client.execute_command("CLUSTER MEET", "127.0.0.1", first.port, bus)
        eventually(lambda: all(self._knows_all(one) for one in self.servers), what="nodes that know each other")
        for master, replica in zip(masters, replicas, strict=True):
            with replica.client() as client:
                client.execute_command("CLUSTER REPLICATE", node_id(master))
        self.wait_until_ok()

    def wait_until_ok(self) -> None:
        """Wait until every node that runs sees all slots served, and every replica has its master's data."""
        eventually(lambda: all(self._is_ok(one) for one in self.running), deadline=30, what="a Cluster that is whole")

    def _knows_all(self, server: RedisServer) -> bool:
        with server.client() as client:
            return int(client.cluster("info")["cluster_known_nodes"]) == len(self.servers)

    def _is_ok(self, server: RedisServer) -> bool:
        with server.client() as client:
            serving = client.cluster("info")["cluster_state"] == "ok"
            masters = {node["node_id"] for node in client.cluster("nodes").values() if "master" in node["flags"]}
        is_settled = role(server) == "master" or is_linked(server)
        return serving and is_settled and len(masters) >= 3

    def master_of(self, key: str) -> RedisServer:
        """The server that has a key now, as most nodes see it."""
        with self.running[0].client() as client:
            slot = client.execute_command("CLUSTER KEYSLOT", key)
        return self.server_of_slot(slot)

    def holder_of(self, task_id: str) -> RedisServer:
        """The master that has the journal of a run."""
        for one in self.running:
            with one.client() as client:
                if role(one) == "master" and any(client.scan_iter(match=f"*:run:{task_id}", count=1000)):
                    return one
        raise AssertionError(f"no master has a journal of {task_id}")

    def server_of_slot(self, slot: int) -> RedisServer:
        return next(one for one in self.running if role(one) == "master" and slot in served_slots(one))

    def replica_of(self, master: RedisServer) -> RedisServer:
        wanted = str(master.port)
        return next(one for one in self.running if role(one) == "slave" and master_port(one) == wanted)

    def fail_over(self, master: RedisServer) -> RedisServer:
        """Kill a master; return its replica when the others have made it one."""
        replica = self.replica_of(master)
        master.kill()
        eventually(lambda: role(replica) == "master", deadline=30, what="a promoted replica")
        return replica

    def members(self) -> list[RedisServer]:
        return self.servers


def named_master(sentinel: Sentinel) -> int:
    """The port of the master, as a Sentinel says it."""
    return int(state_of_master(sentinel)["port"])


def state_of_master(sentinel: Sentinel) -> dict[str, Any]:
    """What a Sentinel says of the master."""
    with sentinel.client() as client:
        return client.sentinel_masters()[MASTER_NAME]


def role(server: RedisServer) -> str | None:
    """Master or slave; None of a server that does not answer."""
    with suppress(redis.RedisError), server.client() as client:
        return str(client.info("replication")["role"])
    return None


def is_linked(replica: RedisServer) -> bool:
    with suppress(redis.RedisError, KeyError), replica.client() as client:
        return client.info("replication")["master_link_status"] == "up"
    return False


def master_port(replica: RedisServer) -> str:
    with replica.client() as client:
        return str(client.info("replication")["master_port"])


def node_id(server: RedisServer) -> str:
    with server.client() as client:
        return str(client.execute_command("CLUSTER MYID"))


def served_slots(server: RedisServer) -> set[int]:
    """The slots that a node of a Cluster says to serve itself."""
    with server.client() as client:
        (me,) = (node for node in client.cluster("nodes").values() if "myself" in node["flags"])
    return {slot for ends in me["slots"] for slot in range(int(ends[0]), int(ends[-1]) + 1)}
