"""Connections to Redis: every kind of URL, servers that restart or refuse, and what is sent again after a cut."""

import asyncio
import json
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any
from unittest import mock

import pytest
import redis

from celery_durable import ConfigurationError, JournalUnavailableError
from celery_durable.app.store import Store, store_of
from celery_durable.drivers import on_loop
from celery_durable.journal.entries import done_entry
from celery_durable.journal.port import Opened
from celery_durable.redis.client.connection import JournalConnection
from celery_durable.redis.client.protocol import pack
from celery_durable.redis.client.spin_wait import SpinWait
from celery_durable.worker.startup import risks_of
from tests.groups import MAKES, program_or_skip
from tests.integration.network import Proxy
from tests.integration.runs import app_at, app_for, delivery, execute, new_id, opened, state, store_at, task_of
from tests.servers import OLDEST, RedisServer, ServerUnavailableError, free_port
from tests.waiting import eventually

DAY = 24 * 3600.0
PASSWORD = "s3cret/with:signs@"  # noqa: S105
QUOTED = "s3cret%2Fwith%3Asigns%40"


def run_to_its_end(store: Store, task_id: str) -> None:
    """Do what an attempt does: open, record, end, deliver."""
    journal = opened(store, task_id)
    journal.send({"step:1": done_entry("charge", 1, 1, 1, {}, "1"), "progress": "1"})
    journal.flush()
    journal.finish("succeeded", {"outcome": '{"value":1}'})
    journal.deliver(60)
    journal.prove_lease()
    journal.close()


def assert_ended(client: redis.Redis, store: Store, task_id: str) -> None:
    fields = client.hgetall(store.keys(task_id).run)
    assert (fields["status"], fields["delivered"], fields["attempt"]) == ("succeeded", "1", "1")
    assert "step:1" in fields


# -- URLs


def test_a_url_with_redis_scheme(redis_server: RedisServer, redis_url: str) -> None:
    with store_at(redis_url) as store, redis_server.client() as client:
        run_to_its_end(store, task_id := new_id())

        assert_ended(client, store, task_id)


def test_the_database_of_the_url_is_used(redis_server: RedisServer, redis_url: str) -> None:
    with store_at(redis_server.url(db=5)) as store, redis_server.client(5) as client:
        run_to_its_end(store, task_id := new_id())

        assert_ended(client, store, task_id)


def test_a_unix_socket() -> None:
    with RedisServer(unix_socket=True) as server, store_at(server.url(db=3)) as store, server.client(3) as client:
        run_to_its_end(store, task_id := new_id())

        assert_ended(client, store, task_id)


@contextmanager
def tls_server() -> Iterator[RedisServer]:
    server = None
    try:
        server = RedisServer(tls=True)
        server.start()
    except ServerUnavailableError as reason:
        if server is not None:
            server.close()
        pytest.skip(f"no server with TLS here: {str(reason).splitlines()[0]}")
    try:
        yield server
    finally:
        server.close()


def test_a_server_with_tls() -> None:
    with tls_server() as server, store_at(server.url()) as store, server.client() as client:
        run_to_its_end(store, task_id := new_id())

        assert_ended(client, store, task_id)


def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    with tls_server() as server:
        url = f"rediss://localhost:{server.port}/0?ssl_cert_reqs=required"
        with (
            store_at(url, durable_lease=1) as store,
            pytest.raises(JournalUnavailableError, match="CERTIFICATE_VERIFY"),
        ):
            store.runs.load(new_id())


def test_the_result_backend_serves_without_a_url_of_its_own(redis_url: str) -> None:
    app = app_for(redis_url)
    app.conf.update(durable_redis_url=None, result_backend=redis_url, broker_url="memory://")
    assert store_of(app).address.url == redis_url


def test_the_broker_serves_where_the_result_backend_is_no_redis(redis_url: str) -> None:
    app = app_for(redis_url)
    app.conf.update(durable_redis_url=None, result_backend="cache+memory://", broker_url=redis_url)
    assert store_of(app).address.url == redis_url


def test_without_a_redis_the_error_says_what_was_found_and_hides_passwords() -> None:
    app = app_for("")
    app.conf.update(durable_redis_url=None, result_backend=None, broker_url=f"amqp://guest:{QUOTED}@rabbit//")
    with pytest.raises(ConfigurationError, match="durable_redis_url") as caught:
        store_of(app)

    assert "broker_url=amqp://guest:***@rabbit//" in str(caught.value)
    assert "result_backend=None" in str(caught.value)


# -- passwords and users


@pytest.fixture
def guarded() -> Iterator[RedisServer]:
    """A server with a user whose only keys are those below the default prefix."""
    with RedisServer() as server, server.client() as admin:
        commands = ["+evalsha", "+script|load", "+hgetall", "+info", "+@connection", "+@hash", "+@sortedset"]
        keys = ["+time", "+del", "+pexpire", "+persist", "+exists", "+type"]
        admin.execute_command(
            *[
                "ACL",
                "SETUSER",
                "durable",
                "on",
                f">{PASSWORD}",
                "resetchannels",
                "~durable:*",
                "-@all",
                *commands,
                *keys,
            ]
        )
        yield server


def test_a_user_who_may_touch_the_prefix_only(guarded: RedisServer) -> None:
    url = f"redis://durable:{QUOTED}@127.0.0.1:{guarded.port}/0"
    with store_at(url) as store, guarded.client() as admin:
        run_to_its_end(store, task_id := new_id())
        failed = opened(store, new_id())
        failed.finish("failed", {"outcome": "{}"})
        suspended = opened(store, again := new_id())
        suspended.suspend(0, {})
        reopened = store.journal(again).open(delivery(again, fresh=False))
        store.runs.terminate(again, "failed", DAY, "{}")

        assert isinstance(reopened, Opened)
        assert_ended(admin, store, task_id)
        assert admin.hget(store.keys(again).run, "status") == "failed"


def test_keys_outside_of_what_the_user_may_touch_are_refused_with_the_servers_words(guarded: RedisServer) -> None:
    url = f"redis://durable:{QUOTED}@127.0.0.1:{guarded.port}/0"
    with (
        store_at(url, durable_key_prefix="other:", durable_lease=1) as store,
        pytest.raises(JournalUnavailableError, match=r"(?i)permission|NOPERM|access") as caught,
    ):
        opened(store, new_id())

    assert PASSWORD not in str(caught.value)


class AnswersAsHttp(BaseRequestHandler):
    """What is no Redis at all. It hangs up after its client, whom the answer would not reach otherwise."""

    def handle(self) -> None:
        with suppress(ConnectionError):
            while self.request.recv(65536):
                self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@contextmanager
def http_server() -> Iterator[int]:
    with ThreadingTCPServer(("127.0.0.1", 0), AnswersAsHttp) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://:{}@127.0.0.1:{}/0", "what answers there is no Redis"),
        ("redis+cluster://:{}@127.0.0.1:{}", "what answers at 127.0.0.1:{} is no Redis"),
    ],
)
def test_what_is_no_redis_is_said_with_its_address(url: str, why: str) -> None:
    with (
        http_server() as port,
        store_at(url.format(QUOTED, port), durable_lease=1) as store,
        pytest.raises(JournalUnavailableError) as caught,
    ):
        opened(store, new_id())

    assert f"Redis at 127.0.0.1:{port} did not take the journal within 1 s: " in str(caught.value)
    assert why.format(port) in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_run_whose_redis_is_none_waits_for_one() -> None:
    def work(self: Any) -> None:
        self.ctx.uuid()

    with http_server() as port, app_at(f"redis://127.0.0.1:{port}/0", durable_lease=1) as app:
        assert execute(task_of(app, work), task_id=new_id()) == "RETRY"


@pytest.mark.parametrize("unix_socket", [False, True])
def test_a_database_that_the_server_lacks_is_said_with_its_address(unix_socket: bool) -> None:
    with (
        RedisServer(unix_socket=unix_socket) as server,
        store_at(server.url(db=99)) as store,
        pytest.raises(JournalUnavailableError) as caught,
    ):
        opened(store, new_id())

    where = server.socket_path or f"127.0.0.1:{server.port}"
    assert f"Redis at {where} refused the journal: DB index is out of range" in str(caught.value)


@pytest.mark.parametrize("url", ["redis://durable:{}@127.0.0.1:{}/0", "redis://:{}@127.0.0.1:{}/0"])
def test_a_wrong_password_is_said_and_not_shown(
    guarded: RedisServer, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with guarded.client() as admin:
        admin.config_set("requirepass", PASSWORD)
    wrong = "wr0ng%40word"
    with (
        store_at(url.format(wrong, guarded.port), durable_lease=1) as store,
        pytest.raises(JournalUnavailableError, match="authentication failed") as caught,
    ):
        store.runs.load(new_id())

    assert f"Redis at 127.0.0.1:{guarded.port} " in str(caught.value)
    told = f"{caught.value!r} {caught.value.__cause__!r} {caplog.text}"
    assert [secret for secret in (wrong, "wr0ng@word", PASSWORD, QUOTED) if secret in told] == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://:{}@127.0.0.1:{}/0",
        "redis://user:{}@127.0.0.1:{}/0",
        "redis://127.0.0.1:{1}/0?password={0}",
        "redis+socket://:{}@/no/such/socket{}",
    ],
)
def test_an_unreachable_server_is_named_without_its_password(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    app = app_for(url.format(QUOTED, 1), durable_lease=1)

    (risk,) = risks_of(app, [])

    told = f"{risk} {caplog.text}"
    assert [secret for secret in (PASSWORD, QUOTED) if secret in told] == []


# -- servers that forget, restart, hang, and refuse


def test_scripts_that_the_server_has_forgotten_are_loaded_again(redis_url: str, redis_client: redis.Redis) -> None:
    with store_at(redis_url) as store:
        journal = opened(store, task_id := new_id())
        for position in range(1, 4):
            redis_client.script_flush()
            journal.send({f"step:{position}": "{}"})
            journal.flush()
        redis_client.script_flush()
        journal.finish("succeeded", {})

        fields = redis_client.hgetall(store.keys(task_id).run)
    assert [name for name in fields if name.startswith("step:")] == ["step:1", "step:2", "step:3"]
    assert (fields["status"], fields["attempt"]) == ("succeeded", "1")


def test_scripts_forgotten_between_a_sending_and_its_reply_lose_nothing(
    redis_url: str, redis_client: redis.Redis
) -> None:
    with store_at(redis_url) as store:
        journal = opened(store, task_id := new_id())
        redis_client.script_flush()
        journal.send({"time:1": "1"})
        journal.send({"time:2": "2"})
        redis_client.script_flush()
        journal.send({"step:1": "{}"})
        journal.flush()

        fields = redis_client.hgetall(store.keys(task_id).run)
    assert (fields["time:1"], fields["time:2"], fields["step:1"]) == ("1", "2", "{}")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_restart_of_the_server_between_two_writes_goes_unnoticed(how: str) -> None:
    with RedisServer(appendonly=True) as server, store_at(server.url()) as store:
        journal = opened(store, task_id := new_id())
        journal.send({"step:1": "{}"})
        journal.flush()
        server.stop() if how == "stop" else server.kill()
        server.start()

        journal.send({"step:2": "{}"})
        journal.flush()
        journal.finish("succeeded", {})

        with server.client() as client:
            fields = client.hgetall(store.keys(task_id).run)
    assert (fields["step:1"], fields["step:2"], fields["status"], fields["attempt"]) == ("{}", "{}", "succeeded", "1")


def test_a_write_waits_for_a_server_that_comes_back_in_time() -> None:
    with RedisServer(appendonly=True) as server, store_at(server.url(), durable_lease=20) as store:
        journal = opened(store, task_id := new_id())
        server.stop()
        starting = threading.Thread(target=lambda: eventually(lambda: journal.connection.pending) and server.start())
        starting.start()
        journal.send({"step:1": "{}"})
        journal.flush()
        starting.join()

        with server.client() as client:
            assert client.hget(store.keys(task_id).run, "step:1") == "{}"


def test_a_server_that_stays_away_is_waited_for_as_long_as_the_lease_lasts() -> None:
    with RedisServer() as server, store_at(server.url(), durable_lease=1) as store:
        journal = opened(store, new_id())
        server.stop()
        began = time.monotonic()
        journal.send({"step:1": "{}"})

        with pytest.raises(JournalUnavailableError, match=r"within 1 s.*ConnectionError"):
            journal.flush()

        assert time.monotonic() - began < 5


def test_a_server_that_hangs_is_given_up_in_bounded_time() -> None:
    with RedisServer() as server, store_at(server.url(), durable_lease=1) as store:
        journal = opened(store, new_id())
        server.freeze()
        began = time.monotonic()
        journal.send({"step:1": "{}"})
        with pytest.raises(JournalUnavailableError, match="Timeout"):
            journal.flush()
        server.thaw()

        assert time.monotonic() - began < 15


def test_what_could_not_be_written_is_not_written_later_by_the_next_attempt() -> None:
    with RedisServer(appendonly=True) as server, store_at(server.url(), durable_lease=1) as store:
        journal = opened(store, lost := new_id())
        server.stop()
        journal.send({"step:1": "lost"})
        with pytest.raises(JournalUnavailableError):
            journal.flush()
        journal.close()
        server.start()

        next_one = opened(store, next_id := new_id())

        assert not next_one.connection.pending
        with server.client() as client:
            assert client.hget(store.keys(lost).run, "step:1") is None
            assert client.hget(store.keys(next_id).run, "attempt") == "1"


def delivered_in_an_outage(server: RedisServer, store: Store, task_id: str) -> JournalConnection:
    """End a run whose delivery does not reach the server; return the connection that it is pending on, now idle."""
    journal = opened(store, task_id)
    journal.finish("succeeded", {"outcome": "{}"})
    connection = journal.connection
    server.kill()
    journal.deliver(60)
    journal.close()
    assert len(connection.pending) == 1
    return connection


def open_in_vain(store: Store) -> None:
    """Try to begin an attempt, as a worker does, where Redis takes no writes."""
    journal = store.journal(task_id := new_id())
    with pytest.raises(JournalUnavailableError):
        journal.open(delivery(task_id))
    journal.close()


def test_a_delivery_is_made_known_after_an_outage_though_others_gave_up_on_its_connection() -> None:
    with RedisServer(appendonly=True) as server, store_at(server.url(), durable_lease=1) as store:
        connection = delivered_in_an_outage(server, store, task_id := new_id())
        with pytest.raises(JournalUnavailableError):
            store.runs.claim([])
        open_in_vain(store)
        open_in_vain(store)
        assert len(connection.pending) == 1
        server.start()
        connection.idle_since -= 60

        store.shards.of(task_id).pool.flush_idle()

        assert len(connection.pending) == 0
        with server.client() as client:
            assert client.hget(store.keys(task_id).run, "delivered") == "1"
            assert client.zcard(store.keys(task_id).leases) == 0


def test_the_next_user_of_a_connection_makes_known_what_was_delivered_in_an_outage() -> None:
    with RedisServer(appendonly=True) as server, store_at(server.url(), durable_lease=1) as store:
        connection = delivered_in_an_outage(server, store, task_id := new_id())
        with pytest.raises(JournalUnavailableError):
            store.runs.load(task_id)
        server.start()

        assert store.runs.load(task_id)[b"delivered"] == b"1"
        assert len(connection.pending) == 0


def test_links_are_sent_once_though_the_server_is_away_before_that_is_journaled() -> None:
    sent: list[Any] = []

    def send_and_kill(signature: Any, *_: Any, **__: Any) -> None:
        sent.append(signature)
        server.kill()

    def body(self: Any) -> str:
        return str(self.ctx.run("a", str, 1))

    with RedisServer(appendonly=True) as server, app_at(server.url(), durable_lease=1) as app:
        store, task, task_id = store_of(app), task_of(app, body), new_id()
        link = app.signature("shop.link")
        with mock.patch("celery.canvas.Signature.apply_async", autospec=True, side_effect=send_and_kill):
            assert execute(task, task_id=task_id, callbacks=[link]) == "SUCCESS"
        with pytest.raises(JournalUnavailableError):
            store.runs.claim([task.name])
        server.start()

        with server.client() as client:
            eventually(lambda: client.hget(store.keys(task_id).run, "delivered") == "1")
        assert [run for claims in store.runs.claim([task.name]) for run in claims.runs] == []
        assert execute(task, task_id=task_id, callbacks=[link]) == "IGNORED"
        assert sent == [link]


def test_what_an_attempt_left_unread_is_forgotten_when_the_next_one_gives_up() -> None:
    with RedisServer(appendonly=True) as server, store_at(server.url(), durable_lease=1) as store:
        journal = opened(store, task_id := new_id())
        connection = journal.connection
        server.stop()
        journal.send({"step:1": "lost"})
        journal.close()
        with pytest.raises(JournalUnavailableError):
            store.runs.load(task_id)
        assert len(connection.pending) == 0
        server.start()

        assert b"step:1" not in store.runs.load(task_id)


def test_a_delivery_that_is_refused_for_good_is_said_and_hurts_nobody(
    redis_url: str, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with store_at(redis_url) as store:
        journal = opened(store, damaged := new_id())
        journal.finish("succeeded", {"outcome": "{}"})
        connection = journal.connection
        redis_client.delete(store.keys(damaged).run)
        redis_client.set(store.keys(damaged).run, "no journal")
        journal.deliver(60)
        journal.close()

        run_to_its_end(store, task_id := new_id())

        assert len(connection.pending) == 0
        assert_ended(redis_client, store, task_id)
    assert [record.levelname for record in caplog.records if "WRONGTYPE" in record.getMessage()] == ["WARNING"]


def test_a_delivery_that_is_refused_for_now_holds_up_nobody_and_is_made_known_later() -> None:
    with RedisServer() as server, server.client() as admin, store_at(server.url(), durable_lease=1) as store:
        journal = opened(store, task_id := new_id())
        journal.finish("succeeded", {"outcome": "{}"})
        connection = journal.connection
        admin.config_set("min-replicas-to-write", 1)
        journal.deliver(60)
        journal.close()
        for _ in range(3):
            assert b"delivered" not in store.runs.load(task_id)
            assert len(connection.pending) == 1
        open_in_vain(store)
        assert len(connection.pending) == 1

        admin.config_set("min-replicas-to-write", 0)

        assert store.runs.load(task_id)[b"delivered"] == b"1"
        assert len(connection.pending) == 0


def test_a_server_that_is_full_is_said_and_waited_for() -> None:
    with RedisServer() as server, server.client() as admin, store_at(server.url(), durable_lease=1) as store:
        journal = opened(store, task_id := new_id())
        admin.config_set("maxmemory", 1)
        journal.send({"step:1": "{}"})
        with pytest.raises(JournalUnavailableError, match=r"(?i)memory"):
            journal.flush()

        admin.config_set("maxmemory", 0)
        journal.send({"step:1": "{}"})
        journal.flush()

        assert admin.hget(store.keys(task_id).run, "step:1") == "{}"


def test_a_connection_that_was_cut_before_a_write_goes_unnoticed(redis_url: str, redis_client: redis.Redis) -> None:
    with store_at(redis_url) as store:
        journal = opened(store, task_id := new_id())
        assert redis_client.client_kill_filter(skipme=True, _type="normal") >= 1

        journal.send({"step:1": "{}"})
        journal.flush()

        assert redis_client.hget(store.keys(task_id).run, "step:1") == "{}"


def test_cut_after_cut_is_survived(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    with Proxy(redis_server) as proxy, store_at(proxy.url) as store:
        journal = opened(store, task_id := new_id())
        proxy.lose_replies(5)  # also those of the reconnections

        journal.send({"step:1": "{}"})
        journal.flush()

        assert proxy.lost == 5
        assert redis_client.hget(store.keys(task_id).run, "step:1") == "{}"


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_attempt_whose_connection_falls_silent_goes_on_over_another(
    redis_server: RedisServer, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A NAT has forgotten it, say: no FIN and no RST, and the lease is renewed over other connections."""
    monkeypatch.setattr(on_loop, "LONGEST_READ", 0.2)
    with Proxy(redis_server) as proxy, app_at(proxy.url, redis_socket_timeout=0.2) as app:

        def body(self: Any) -> int:
            self.ctx.run("charge", proxy.fall_silent)
            return self.ctx.run("ship", lambda: 5)

        async def async_body(self: Any) -> int:
            await self.ctx.run("charge", proxy.fall_silent)
            return await self.ctx.run("ship", lambda: 5)

        task, task_id = task_of(app, body if kind == "def" else async_body), new_id()
        run = threading.Thread(target=execute, args=[task], kwargs={"task_id": task_id}, daemon=True)
        run.start()
        eventually(lambda: not run.is_alive(), what="the end of the attempt")

        fields = state(redis_client, store_of(app), task_id)["fields"]
    assert (fields["status"], fields["attempt"]) == ("succeeded", "1")
    steps = [json.loads(fields[name]) for name in ("step:1", "step:2")]
    assert [(step["name"], step["attempts"]) for step in steps] == [("charge", 1), ("ship", 1)]


def test_the_replies_to_steps_are_looked_out_for_and_no_others(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An opening and an ending take Redis longer, and there is one of each only."""
    looks: list[SpinWait] = []
    monkeypatch.setattr(SpinWait, "spin", lambda self: looks.append(self))  # noqa: PLW0108  a function binds
    with store_at(redis_url) as store:
        journal = opened(store, new_id())
        assert len(looks) == 0

        for number in range(1, 4):
            journal.send({f"step:{number}": "{}"})
            journal.flush()
        assert len(looks) == 3

        journal.connection.transport.close()
        journal.send({"step:4": "{}"})
        journal.flush()
        assert len(looks) == 3

        journal.finish("succeeded", {"outcome": "{}"})
        assert len(looks) == 3


@pytest.mark.parametrize("beside", [False, True])
def test_a_coroutine_looks_out_for_its_reply_where_no_other_waits_for_the_loop(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    looks, turns, read = [], [], []
    look, readable = SpinWait.spin, on_loop._readable  # noqa: SLF001

    def look_and_count(spin_wait: SpinWait) -> bool:
        looks.append(spin_wait)
        return look(spin_wait) or True  # a Redis may be slow; it answers in any case

    def read_and_count(fd: int) -> Any:
        read.append(fd)
        return readable(fd)

    monkeypatch.setattr(SpinWait, "spin", look_and_count)
    monkeypatch.setattr(on_loop, "_readable", read_and_count)

    async def charge() -> int:
        return 1

    async def body(self: Any) -> int:
        loop = asyncio.get_running_loop()
        others = [loop.create_task(asyncio.sleep(60))] if beside else []
        for number in range(1, 6):
            loop.call_soon(turns.append, number)
            await self.ctx.run("charge", charge)
            assert turns[-1] == number  # whatever else is due has its turn in each step
        for other in others:
            other.cancel()
        return 1

    with app_at(redis_url) as app:
        execute(task_of(app, body), task_id=new_id())

    assert turns == [1, 2, 3, 4, 5]
    assert (len(looks), len(read)) == ((0, 5) if beside else (5, 0))


def test_a_write_that_may_go_with_the_next_does_not_wait_for_it_for_ever(
    redis_url: str, redis_client: redis.Redis
) -> None:
    with store_at(redis_url) as store:
        journal = opened(store, task_id := new_id())

        journal.send({"step:1": "started"}, with_next=True)

        eventually(lambda: redis_client.hget(store.keys(task_id).run, "step:1") == "started", deadline=5)


def test_a_write_that_goes_with_the_next_survives_a_cut(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    with Proxy(redis_server) as proxy, store_at(proxy.url) as store:
        journal = opened(store, task_id := new_id())
        proxy.lose_replies()
        journal.send({"step:1": "started"}, with_next=True)
        eventually(lambda: proxy.lost == 1)

        journal.send({"step:1": "done"})
        journal.flush()

        assert redis_client.hget(store.keys(task_id).run, "step:1") == "done"


class Struck(Exception):
    """What a time limit's signal raises."""


def test_an_opening_that_was_interrupted_is_not_sent_again_by_the_next_attempt() -> None:
    def strike(*_: Any) -> None:
        raise Struck

    with RedisServer() as server, store_at(server.url()) as store, server.client() as client:
        failed = opened(store, task_id := new_id())
        failed.finish("failed", {"outcome": "{}"})
        failed.deliver(DAY)
        failed.prove_lease()
        failed.close()
        victim = store.journal(task_id)
        server.freeze()
        usual = signal.signal(signal.SIGALRM, strike)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Struck):
                victim.open(delivery(task_id, reopen="again", over="1"))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, usual)
        assert not victim.connection.pending
        victim.close()
        server.thaw()
        # What reached the server before the interruption is applied; end that attempt as its lease would.
        eventually(lambda: client.hget(store.keys(task_id).run, "status") == "running")
        client.delete(*store.keys(task_id).all)

        run_to_its_end(store, other := new_id())

        assert_ended(client, store, other)
        assert client.exists(store.keys(task_id).run) == 0


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("refusal", ["NOREPLICAS", "BUSY", "READONLY", "OOM"])
@pytest.mark.parametrize("make", [*MAKES, OLDEST])
def test_a_refusal_that_passes_is_waited_for(make: str, refusal: str, connected: bool) -> None:
    """Also where it answers what a connection begins with."""
    said = {"READONLY": "read only replica", "OOM": "maxmemory"}.get(refusal, refusal)
    with (
        RedisServer(program=program_or_skip(make)) as server,
        server.client() as admin,
        store_at(server.url(), durable_lease=20) as store,
    ):
        journal = opened(store, task_id := new_id())
        if not connected:
            journal.connection.transport.close()
        if refusal == "BUSY":
            admin.config_set("lua-time-limit", 1)
            script = threading.Thread(target=endless_script, args=(server,))
            script.start()
            eventually(lambda: is_busy(admin))
        else:
            begin_to_refuse(admin, refusal)
        seen: list[Exception] = []
        usual = journal.connection.transport.close
        journal.connection.transport.close = lambda: (seen.append(sys.exc_info()[1]), usual())[1]
        recovering = threading.Thread(target=lambda: eventually(lambda: seen) and recover(admin, refusal))
        recovering.start()

        journal.send({"step:1": "{}"})
        journal.flush()

        recovering.join()
        if refusal == "BUSY":
            script.join()
        assert said in str(seen[0])
        assert admin.hget(store.keys(task_id).run, "step:1") == "{}"


def endless_script(server: RedisServer) -> None:
    with server.client() as client, pytest.raises(redis.ResponseError, match="killed"):
        client.eval("while true do end", 0)


def is_busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


_REFUSING = {"NOREPLICAS": "min-replicas-to-write", "OOM": "maxmemory"}


def begin_to_refuse(client: redis.Redis, refusal: str) -> None:
    if refusal == "READONLY":
        client.replicaof("127.0.0.1", free_port())  # another one has become the master
    else:
        client.config_set(_REFUSING[refusal], 1)


def recover(client: redis.Redis, refusal: str) -> None:
    if refusal == "BUSY":
        client.script_kill()
    elif refusal == "READONLY":
        client.replicaof("NO", "ONE")
    else:
        client.config_set(_REFUSING[refusal], 0)


def test_siblings_may_send_while_another_reads_and_nothing_is_taken_for_acknowledged(
    redis_url: str, redis_client: redis.Redis
) -> None:
    """What is sent after a reading has begun stays pending until its own reply is read."""
    with store_at(redis_url) as store:
        journal = opened(store, task_id := new_id())
        connection = journal.connection
        journal.send({"step:1": "{}"})
        receive = connection.transport.receive

        def receive_late(**options: Any) -> Any:
            reply = receive(**options)
            connection.transport.receive = receive
            journal.send({"step:2": "{}"})
            return reply

        connection.transport.receive = receive_late
        journal.flush()

        assert len(connection.pending) == 1
        journal.flush()
        assert len(connection.pending) == 0
        fields = redis_client.hgetall(store.keys(task_id).run)
    assert (fields["step:1"], fields["step:2"]) == ("{}", "{}")


def test_threads_that_share_a_connection_lose_nothing_though_the_connection_is_cut(
    redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    with Proxy(redis_server) as proxy, store_at(proxy.url) as store:
        journal = opened(store, task_id := new_id())
        proxy.lose_replies(3)

        def send(sibling: int) -> None:
            for number in range(20):
                journal.send({f"step:{sibling * 20 + number + 1}": "{}"})

        with ThreadPoolExecutor(4) as siblings:
            sent = [siblings.submit(send, sibling) for sibling in range(4)]
            while not all(one.done() for one in sent):
                journal.flush()
        journal.flush()

        [one.result() for one in sent]
        assert not journal.connection.pending
        fields = redis_client.hgetall(store.keys(task_id).run)
    assert {name for name in fields if name.startswith("step:")} == {f"step:{number + 1}" for number in range(80)}


def test_a_sibling_that_meets_a_lost_connection_wakes_up_who_waits_for_it(redis_url: str) -> None:
    with store_at(redis_url) as store:
        journal = opened(store, new_id())
        fd = journal.fileno()
        with selectors.DefaultSelector() as waiting:
            waiting.register(fd, selectors.EVENT_READ)
            assert waiting.select(0) == []
            connection, cut = journal.connection, OSError("cut")

            def sendall(*_: Any) -> None:
                raise cut

            connection.transport.sendall = sendall
            journal.send({"step:1": "{}"})

            assert len(waiting.select(5)) == 1
        assert not journal.flush_if_connected()
        journal.flush()


# -- one connection per attempt


def clients(client: redis.Redis) -> int:
    return len(client.client_list(_type="normal"))


def test_attempts_one_after_the_other_share_a_connection(redis_url: str, redis_client: redis.Redis) -> None:
    with store_at(redis_url) as store:
        before = clients(redis_client)
        for _ in range(10):
            run_to_its_end(store, new_id())

        assert clients(redis_client) - before == 1


def test_attempts_side_by_side_have_connections_of_their_own(redis_url: str, redis_client: redis.Redis) -> None:
    with store_at(redis_url) as store:
        before = clients(redis_client)
        journals = [opened(store, new_id()) for _ in range(3)]
        assert clients(redis_client) - before == 3
        for journal in journals:
            journal.close()
        for journal in [opened(store, new_id()) for _ in range(3)]:
            journal.close()

        assert clients(redis_client) - before == 3


def many_idle(store: Store, count: int) -> list[JournalConnection]:
    """Make connections that nobody uses, as after so many attempts side by side."""
    pool = store.pool
    taken = [pool.take() for _ in range(count)]
    for connection in taken:
        connection.send(pack("PING"))
        connection.replies()
    for connection in taken:
        pool.give_back(connection)
    return taken


def test_connections_that_nobody_needs_are_closed_but_one(redis_url: str, redis_client: redis.Redis) -> None:
    with store_at(redis_url) as store:
        before = clients(redis_client)
        idle = many_idle(store, 100)
        assert clients(redis_client) - before == 100
        for connection in idle:
            connection.idle_since -= 61

        store.pool.flush_idle()

        eventually(lambda: clients(redis_client) - before == 1)


def test_connections_that_nobody_needs_are_closed_where_no_leases_are_kept(
    redis_url: str, redis_client: redis.Redis
) -> None:
    """In a web server's process, say."""
    with store_at(redis_url) as store:
        before = clients(redis_client)
        for connection in many_idle(store, 10):
            connection.idle_since -= 61

        for _ in range(10):
            store.runs.load(new_id())

        eventually(lambda: clients(redis_client) - before == 1)


def test_a_connection_that_still_owes_a_delivery_is_not_closed() -> None:
    with RedisServer(appendonly=True) as server, store_at(server.url(), durable_lease=1) as store:
        connection = delivered_in_an_outage(server, store, new_id())
        connection.idle_since -= 3600

        other = JournalConnection(store.pool._connector.make_connection(), 1)  # noqa: SLF001
        store.pool.give_back(other)

        assert list(store.pool._idle) == [connection, other]  # noqa: SLF001


def test_idle_connections_that_the_server_has_closed_are_let_go(redis_url: str, redis_client: redis.Redis) -> None:
    """By its own `timeout`."""
    with store_at(redis_url) as store:
        idle = many_idle(store, 3)
        assert redis_client.client_kill_filter(skipme=True, _type="normal") >= 3
        for connection in idle:
            connection.idle_since -= 2

        store.pool.flush_idle()

        assert [connection.transport.fileno() for connection in idle] == [-1] * 3
        assert list(store.pool._idle) == []  # noqa: SLF001


def test_replies_that_an_attempt_left_unread_are_not_those_of_the_next_one(
    redis_url: str, redis_client: redis.Redis
) -> None:
    with store_at(redis_url) as store:
        hasty = opened(store, new_id())
        hasty.send({"step:1": "{}"})
        hasty.close()

        run_to_its_end(store, task_id := new_id())

        assert_ended(redis_client, store, task_id)


def test_a_store_connects_when_it_is_first_used(redis_url: str, redis_client: redis.Redis) -> None:
    before = clients(redis_client)

    store_of(app_for(redis_url))

    assert clients(redis_client) == before


def test_the_owner_names_the_host_and_the_process(redis_url: str, redis_client: redis.Redis) -> None:
    with store_at(redis_url) as store:
        opened(store, task_id := new_id())

        host, _, process = redis_client.hget(store.keys(task_id).run, "owner").split(":")
    assert (host, int(process)) == (socket.gethostname(), os.getpid())
