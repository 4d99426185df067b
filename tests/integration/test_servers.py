"""The servers of the tests themselves, and the check of what they hold after a test."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from tests import leftovers
from tests.groups import program_or_skip
from tests.servers import OLDEST, RedisServer, ServerUnavailableError


@contextmanager
def running(**options: bool) -> Iterator[RedisServer]:
    try:
        server = RedisServer(**options).start()
    except ServerUnavailableError as unavailable:
        pytest.skip(str(unavailable).splitlines()[0])
    try:
        yield server
    finally:
        server.close()


@pytest.mark.parametrize("make", ["redis", "valkey", OLDEST])
def test_there_is_a_server_of_each_make(make: str) -> None:
    """Where one is missing, this test alone is skipped: the tests that are about every make run on the others."""
    with RedisServer(program=program_or_skip(make)) as server, server.client() as client:
        info = client.info("server")

    assert make != "valkey" or "valkey_version" in info
    assert make != OLDEST or info["redis_version"].startswith("6.2.")


@pytest.mark.parametrize("listens", [{}, {"unix_socket": True}, {"tls": True}], ids=["port", "unix-socket", "tls"])
def test_a_server_answers_under_its_url(listens: dict[str, bool]) -> None:
    with running(**listens) as server, server.client(db=3) as client:
        client.set("here", "yes")

        assert client.info("keyspace").keys() == {"db3"}
        assert server.url(3).startswith(("redis://", "rediss://", "redis+socket://"))


def test_a_killed_server_comes_back_with_its_data_under_its_url() -> None:
    with running(appendonly=True) as server:
        url = server.url()
        server.client().set("kept", "yes")
        server.kill()
        assert not server.running
        server.start()

        assert server.client().get("kept") == "yes"
        assert server.url() == url


def test_a_frozen_server_answers_again_when_it_is_thawed(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        redis_server.freeze()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        redis_server.thaw()

        assert client.ping()


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_the_journal_of_a_finished_run_needs_a_ttl(
    redis_server: RedisServer, redis_client: redis.Redis, status: str
) -> None:
    redis_client.hset("durable:{7}:run:some-task", mapping={"status": status, "delivered": 1})
    with pytest.raises(AssertionError, match="run:some-task"):
        leftovers.check_journals(redis_server)

    redis_client.expire("durable:{7}:run:some-task", 60)
    leftovers.check_journals(redis_server)


def test_the_journal_of_a_live_run_needs_none(redis_server: RedisServer, redis_client: redis.Redis) -> None:
    redis_client.hset("durable:{7}:run:some-task", "status", "running")

    leftovers.check_journals(redis_server)
