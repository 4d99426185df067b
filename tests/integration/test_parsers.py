"""Commands are packed and replies read by hiredis, which comes with the package, or by Python where it is not there."""

from typing import Any

import pytest
import redis
from redis._parsers import _HiredisParser, _RESP3Parser
from redis.connection import AbstractConnection
from redis.utils import HIREDIS_AVAILABLE

from celery_durable import JournalUnavailableError, JournalUnreadableError
from celery_durable.app.store import Store, store_of
from celery_durable.interrupts import Fenced
from celery_durable.journal.entries import done_entry
from celery_durable.journal.port import Opened
from celery_durable.redis.client import protocol
from tests.alarms import Struck, alarms
from tests.integration.network import Proxy
from tests.integration.runs import app_at, delivery, execute, lapse, new_id, opened, store_at, task_of, written
from tests.servers import RedisServer
from tests.waiting import eventually


@pytest.fixture(params=[_HiredisParser, _RESP3Parser], autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let connections have this parser, as if hiredis were there, or were not."""
    use = AbstractConnection.set_parser
    monkeypatch.setattr(AbstractConnection, "set_parser", lambda connection, _: use(connection, request.param))
    if request.param is not _HiredisParser:
        monkeypatch.setattr(protocol, "_pack_command", None)
    return request.param


def test_a_command_is_packed_in_the_same_way() -> None:
    parts = ("EVALSHA", b"\xff\r\n", "", "☃ é", "x" * 70_000, 0, -7, 10**18, 0.25, 1e20, "a\r\nb")

    packed = protocol.pack(*parts)

    texts = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    assert packed == b"*11\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts)
    assert protocol.pack_parts(parts) == packed.removeprefix(b"*11\r\n")


def test_hiredis_comes_with_the_package(store: Store, parser: Any) -> None:
    journal = opened(store, new_id())

    assert HIREDIS_AVAILABLE
    assert type(journal.connection.transport._parser) is parser  # noqa: SLF001


def test_a_journal_is_written_and_loaded(store: Store, redis_client: redis.Redis) -> None:
    journal = opened(store, task_id := new_id())
    entries = {f"step:{n}": done_entry("a ☃", 1, 1, 1, {}, f'"{"ü" * n}"') for n in range(1, 1000, 37)}
    written(journal, entries)
    lapse(redis_client, store, task_id)

    again = store.journal(task_id).open(delivery(task_id, fresh=False))

    assert isinstance(again, Opened)
    assert {name: again.fields[name.encode()].decode() for name in entries} == entries


def test_replies_that_say_no_are_told_apart(store: Store, redis_client: redis.Redis) -> None:
    stale = opened(store, task_id := new_id())
    lapse(redis_client, store, task_id)
    opened(store, task_id)
    with pytest.raises(Fenced):
        written(stale, {"step:1": "stale"})

    redis_client.script_flush()
    fresh = opened(store, new_id())
    redis_client.delete(store.keys(task_id).run)
    redis_client.set(store.keys(task_id).run, "no journal")
    with pytest.raises(JournalUnreadableError, match="holds no journal"):
        store.runs.load(task_id)
    written(fresh, {"step:1": "{}"})


def test_a_server_that_refuses_is_waited_for_and_said() -> None:
    with RedisServer() as server, server.client() as admin, store_at(server.url(), durable_lease=1) as store:
        journal = opened(store, new_id())
        admin.config_set("maxmemory", 1)
        journal.send({"step:1": "{}"})
        with pytest.raises(JournalUnavailableError, match=r"OutOfMemoryError: .*maxmemory"):
            journal.flush()
        server.stop()
        journal.send({"step:1": "{}"})
        with pytest.raises(JournalUnavailableError, match="ConnectionError"):
            journal.flush()


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_task_whose_replies_are_lost_and_whose_requests_are_late(
    redis_server: RedisServer, redis_client: redis.Redis, kind: str
) -> None:
    ran: list[int] = []

    def act(number: int) -> int:
        ran.append(number)
        proxy.deliver_late()
        proxy.lose_replies() if number % 2 else proxy.hold_back(b'"state":"done"')
        return number

    def body(self: Any) -> list[int]:
        return [self.ctx.run("act", act, number) for number in range(4)]

    async def async_body(self: Any) -> list[int]:
        return [await self.ctx.run("act", act, number) for number in range(4)]

    with Proxy(redis_server) as proxy, app_at(proxy.url) as app:
        task, task_id = task_of(app, body if kind == "def" else async_body), new_id()
        assert execute(task, task_id=task_id) == "SUCCESS"
        fields = redis_client.hgetall(store_of(app).keys(task_id).run)

    assert ran == [0, 1, 2, 3]
    assert (fields["status"], fields["attempt"]) == ("succeeded", "1")


def test_a_signal_amid_a_reply_leaves_the_connection_usable() -> None:
    with RedisServer() as server, store_at(server.url()) as store:
        journal = opened(store, task_id := new_id())
        server.freeze()
        journal.send({"step:1": "{}"})
        with alarms([0.3]), pytest.raises(Struck):
            journal.flush()
        server.thaw()

        written(journal, {"step:2": "{}"})
        journal.prove_lease()

        with server.client() as client:
            assert client.hmget(store.keys(task_id).run, "step:1", "step:2") == ["{}", "{}"]


def test_whether_a_server_answers_is_seen_without_reading(store: Store, redis_client: redis.Redis) -> None:
    written(opened(store, new_id()), {"step:1": "{}"})
    journal = opened(store, new_id())
    connection = journal.connection
    assert not connection.transport.has_reply(0)
    journal.send({"step:1": "{}"})
    eventually(lambda: connection.transport.has_reply(0))
    journal.flush()
    assert not connection.transport.has_reply(0)

    redis_client.client_kill_filter(skipme=True, _type="normal")

    eventually(lambda: not connection.transport.has_reply(0) and connection.transport.fileno() < 0)
    written(journal, {"step:2": "{}"})
