"""Every kind of URL, with TLS, passwords and users; what is no Redis is said by its address."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from celery_durable import ConfigurationError, JournalUnavailableError
from celery_durable.app.store import store_of
from celery_durable.journal.port import Opened
from celery_durable.worker.startup import risks_of
from tests.integration.runs import (
    app_at,
    app_for,
    assert_ended,
    delivery,
    execute,
    new_id,
    opened,
    run_to_its_end,
    store_at,
    task_of,
)
from tests.servers import RedisServer, ServerUnavailableError

DAY = 24 * 3600.0
PASSWORD = "s3cret/with:signs@"  # noqa: S105
QUOTED = "s3cret%2Fwith%3Asigns%40"


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

    assert f"Redis at 127.0.0.1:{port} cannot be used (tried for 1 s): " in str(caught.value)
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
