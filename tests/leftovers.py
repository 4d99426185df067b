"""What no test may leave behind: journals of finished runs that never expire, and processes."""

from contextlib import suppress

import psutil

from tests import processes
from tests.servers import RedisServer
from tests.waiting import eventually


def check_journals(server: RedisServer) -> None:
    """Fail when the journal of a finished run, in any database of the server, has no TTL."""
    if not server.running:
        return
    immortal = [
        key
        for database in server.client().info("keyspace")
        for key in immortal_journals(server, db=int(database.removeprefix("db")))
    ]
    assert not immortal, f"finished runs whose journals never expire: {immortal}"


def immortal_journals(server: RedisServer, db: int) -> list[str]:
    with server.client(db) as client:
        return [
            key
            for key in client.scan_iter(match="*:run:*", count=1000, _type="hash")
            # Until its outcome is delivered a run is not over.
            if client.hget(key, "delivered") and client.ttl(key) == -1
        ]


def check_processes(expected: set[psutil.Process]) -> None:
    """End all processes of this test run but the expected ones, and fail when there were any."""
    if processes.alive() <= expected:
        return
    with suppress(AssertionError):  # some end by themselves, a moment after their parent
        eventually(lambda: processes.alive() <= expected, deadline=3)
    if _looks_for_port_mapper(expected):
        with suppress(AssertionError):
            eventually(lambda: not _looks_for_port_mapper(expected), deadline=30)
    left = processes.alive() - expected
    commands = [f"{process.pid}: {processes.command_line(process)}" for process in left]
    processes.end(left)
    assert not left, f"processes left behind: {commands}"


def _looks_for_port_mapper(expected: set[psutil.Process]) -> bool:
    """Whether RabbitMQ has an Erlang look for its port mapper just now. On a busy machine that takes many seconds."""
    return any("epmd-starter" in processes.command_line(process) for process in processes.alive() - expected)
