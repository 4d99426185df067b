"""Servers that forget, restart, hang and refuse: what was sent is sent again, and nothing is lost."""

import json
import selectors
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest
import redis

from celery_durable import JournalUnavailableError
from celery_durable.app.store import Store, store_of
from celery_durable.drivers import on_loop
from tests.alarms import Struck, alarms
from tests.groups import MAKES, program_or_skip
from tests.integration.network import Proxy
from tests.integration.runs import (
    app_at,
    assert_ended,
    delivered_in_an_outage,
    delivery,
    execute,
    new_id,
    opened,
    run_to_its_end,
    state,
    store_at,
    task_of,
)
from tests.servers import OLDEST, RedisServer, free_port
from tests.waiting import eventually

DAY = 24 * 3600.0


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

        with pytest.raises(JournalUnavailableError, match=r"cannot be used \(tried for 1 s\): ConnectionError"):
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


def test_an_opening_that_was_interrupted_is_not_sent_again_by_the_next_attempt() -> None:
    with RedisServer() as server, store_at(server.url()) as store, server.client() as client:
        failed = opened(store, task_id := new_id())
        failed.finish("failed", {"outcome": "{}"})
        failed.deliver(DAY)
        failed.prove_lease()
        failed.close()
        victim = store.journal(task_id)
        server.freeze()
        with alarms([0.3]), pytest.raises(Struck):
            victim.open(delivery(task_id, reopen="again", over="1"))
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
