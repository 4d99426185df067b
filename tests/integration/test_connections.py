"""An attempt has one connection; those that nobody needs are closed."""

import os
import socket

import redis

from celery_durable.app.store import Store, store_of
from celery_durable.redis.client.connection import JournalConnection
from celery_durable.redis.client.protocol import pack
from tests.integration.runs import (
    app_for,
    assert_ended,
    delivered_in_an_outage,
    new_id,
    opened,
    run_to_its_end,
    store_at,
)
from tests.servers import RedisServer
from tests.waiting import eventually


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
