"""What a closed connection had sent arrives when it has been sent again over another one, and after what followed."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from celery_durable import RunOptions
from celery_durable.app.store import Store, store_of
from celery_durable.interrupts import Fenced
from celery_durable.journal.entries import done_entry, open_entry, started_entry
from celery_durable.journal.port import Opened, Result
from celery_durable.redis.client import fence as fence_module
from celery_durable.redis.client import scripts
from celery_durable.redis.client.protocol import pack, pack_parts
from celery_durable.redis.journal import RedisJournal
from tests.integration.network import Proxy
from tests.integration.runs import (
    TASK,
    app_at,
    delivery,
    execute,
    lapse,
    new_id,
    opened,
    state,
    store_at,
    task_of,
    written,
)
from tests.servers import RedisServer
from tests.waiting import eventually

DAY = 24 * 3600.0
STARTED = {"step:1": started_entry("charge", 1, 1)}
DONE = {"step:1": done_entry("charge", 1, 1, 1, {}, "1")}
STALE, DONE_BY_SCRIPT = b":0\r\n", b":1\r\n"


@pytest.fixture
def store(far_store: Store) -> Store:
    """Here each store is behind the proxy."""
    return far_store


def fence_of(client: redis.Redis, store: Store, task_id: str) -> str:
    return str(client.hget(store.keys(task_id).run, "fence"))


# -- within an attempt


def test_a_start_record_that_is_late_does_not_undo_the_result(
    store: Store, proxy: Proxy, redis_client: redis.Redis
) -> None:
    journal = opened(store, task_id := new_id())
    proxy.hold_back(b'"charge","state":"started"')
    written(journal, STARTED)
    written(journal, DONE)
    before = state(redis_client, store, task_id)

    assert proxy.deliver_late() == STALE

    assert state(redis_client, store, task_id) == before
    assert before["fields"]["step:1"] == DONE["step:1"]
    written(journal, {"step:2": "{}"})
    journal.finish("succeeded", {"outcome": "{}"})
    assert redis_client.hget(store.keys(task_id).run, "status") == "succeeded"


ENDINGS: dict[str, Callable[[RedisJournal], Any]] = {
    "suspend": lambda journal: journal.suspend(60, STARTED),
    "finish": lambda journal: journal.finish("failed", {"outcome": "{}"}),
    "conclude": lambda journal: journal.conclude({"outcome": "{}"}, DAY, Result("result", "text", 0)),
    "renew": lambda journal: journal.prove_lease(),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_act_that_is_late_changes_nothing(
    store: Store, proxy: Proxy, redis_client: redis.Redis, ending: str
) -> None:
    journal = opened(store, task_id := new_id())
    proxy.hold_back(b"EVALSHA")
    ENDINGS[ending](journal)
    if ending == "suspend":
        store.runs.cancel(task_id)  # goes on at once, and not after what a late copy says
    elif ending == "renew":
        journal.suspend(60, {})
    redis_client.delete("result")
    before = state(redis_client, store, task_id)

    assert proxy.deliver_late() in (STALE, DONE_BY_SCRIPT)

    assert state(redis_client, store, task_id) == before
    assert not redis_client.exists("result")


@pytest.mark.parametrize("ending", ["suspend", "finish", "conclude"])
def test_an_ending_that_is_late_ends_no_later_attempt(
    store: Store, proxy: Proxy, redis_client: redis.Redis, ending: str
) -> None:
    proxy.hold_back(b"EVALSHA")
    journal = opened(store, task_id := new_id())  # the opening itself is late, too
    proxy.hold_back(b"EVALSHA")
    ENDINGS[ending](journal)
    redis_client.hset(store.keys(task_id).run, mapping={"status": "suspended", "due": 0})
    opened(store, task_id)
    before = state(redis_client, store, task_id)

    assert proxy.late == 2
    assert proxy.deliver_late().endswith(STALE)

    after = state(redis_client, store, task_id)
    assert after == before


def test_many_connections_of_an_attempt_arrive_late_and_in_any_order(
    store: Store, proxy: Proxy, redis_client: redis.Redis
) -> None:
    journal = opened(store, task_id := new_id())
    for position in range(1, 4):
        proxy.hold_back(b'"charge","state":"started"', 2)  # the repetition, too
        written(journal, {f"step:{position}": started_entry("charge", 1, 1)})
        written(journal, {f"step:{position}": done_entry("charge", 1, 1, 1, {}, "1")})
    before = state(redis_client, store, task_id)
    assert proxy.late == 6
    proxy._late.reverse()  # noqa: SLF001

    proxy.deliver_late()

    assert state(redis_client, store, task_id) == before
    assert before["fields"]["fence"].endswith(":7")


def test_an_attempt_that_keeps_its_connection_has_a_fence_as_before(store: Store, redis_client: redis.Redis) -> None:
    """Workers of 0.1.0 beside this one read it."""
    journal = opened(store, task_id := new_id())
    written(journal, DONE)

    assert len(fence_of(redis_client, store, task_id)) == 12


def test_what_is_said_of_an_attempt_over_other_connections_counts_whatever_its_number_is(
    store: Store, proxy: Proxy, redis_client: redis.Redis
) -> None:
    journal = opened(store, task_id := new_id())
    proxy.lose_replies()
    written(journal, DONE)
    keys, pool = store.keys(task_id), store.shards.of(task_id).pool
    assert fence_of(redis_client, store, task_id).endswith(":2")
    lapse(redis_client, store, task_id)

    assert pool.execute(journal.ownership.renewal()) == [1]
    assert redis_client.zscore(keys.leases, task_id) > 0
    assert pool.execute(journal.ownership.handover(orderly=True)) == [1]
    assert redis_client.zscore(keys.leases, task_id) is None
    with pytest.raises(Fenced):
        written(journal, {"step:2": "{}"})


def test_a_delivery_that_is_owed_is_made_known_though_the_connection_was_lost(
    store: Store, proxy: Proxy, redis_client: redis.Redis
) -> None:
    journal = opened(store, task_id := new_id())
    proxy.lose_replies()
    journal.finish("succeeded", {"outcome": "{}"})
    proxy.hold_back(b"EVALSHA")
    journal.deliver(60)
    journal.close()
    eventually(lambda: proxy.late == 1)
    store.runs.load(task_id)
    before = redis_client.hgetall(store.keys(task_id).run)
    assert before["delivered"] == "1"

    assert proxy.deliver_late() == DONE_BY_SCRIPT  # once more, which changes nothing

    assert redis_client.hgetall(store.keys(task_id).run) == before


def test_code_that_records_after_its_connection_was_given_back_supersedes_it(
    store: Store, redis_client: redis.Redis
) -> None:
    journal = opened(store, task_id := new_id())
    journal.close()

    written(journal, DONE)

    assert redis_client.hget(store.keys(task_id).run, "step:1") == DONE["step:1"]
    assert fence_of(redis_client, store, task_id).endswith(":2")
    journal.close()


def test_a_connection_that_takes_no_writes_yet_does_not_fence_its_attempt() -> None:
    """Its number cannot be raised: what follows would meet the number of the one before."""
    with RedisServer() as server, server.client() as admin, store_at(server.url(), durable_lease=20) as store:
        journal = opened(store, task_id := new_id())
        admin.config_set("maxmemory", 1)
        journal.connection.transport.close()
        journal.send(DONE)
        passed: list[Any] = []
        usual = journal.connection.transport.close
        journal.connection.transport.close = lambda: (passed.append(admin.config_set("maxmemory", 0)), usual())[1]

        journal.flush()

        assert passed
        assert admin.hget(store.keys(task_id).run, "step:1") == DONE["step:1"]


# -- entries


OPEN = [
    started_entry("charge", 2, 1),
    open_entry("charge", "retrying", 2, first=1),
    open_entry("charge", "sleeping", 1, until=1),
]
SETTLED = [
    done_entry("charge", 1, 1, 1, {}, '{"state":"started"}'),
    open_entry('"state":"started"', "failed", 3, at=1, error={}),
    open_entry("charge", "cancelled", 1, until=1, error={}),
]
WRITES: dict[str, Callable[[RedisJournal, dict[str, str]], Any]] = {
    "record": written,
    "record with others": lambda journal, fields: written(journal, {"time:1": "1", **fields}),
    "suspend": lambda journal, fields: journal.suspend(60, fields),
    "finish": lambda journal, fields: journal.finish("failed", fields),
    "conclude": lambda journal, fields: journal.conclude(fields, DAY, Result("", "", 0)),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("entry", SETTLED)
def test_nothing_replaces_an_entry_that_is_settled(
    store: Store, redis_client: redis.Redis, write: str, entry: str
) -> None:
    """Also within one connection: a process may die amid what it sends again."""
    for other in [*OPEN, *SETTLED]:
        journal = opened(store, task_id := new_id())
        written(journal, {"step:1": entry})

        WRITES[write](journal, {"step:1": other, "step:2": other, "failures": "1"})

        fields = redis_client.hgetall(store.keys(task_id).run)
        assert (fields["step:1"], fields["step:2"], fields["failures"]) == (entry, other, "1")
        journal.close()


@pytest.mark.parametrize("entry", SETTLED)
def test_nor_does_a_write_of_that_entry_alone(store: Store, redis_client: redis.Redis, entry: str) -> None:
    """The script has a short way for it, but not over a connection that sends what an earlier one has sent."""
    for other in [*OPEN, *SETTLED]:
        journal = opened(store, task_id := new_id())
        written(journal, {"step:1": entry})
        journal.connection.transport.close()

        written(journal, {"step:1": other})

        assert redis_client.hget(store.keys(task_id).run, "step:1") == entry
        journal.close()


@pytest.mark.parametrize("write", WRITES)
def test_an_entry_that_is_open_is_replaced(store: Store, redis_client: redis.Redis, write: str) -> None:
    for entry in OPEN:
        for other in [*OPEN, *SETTLED]:
            journal = opened(store, task_id := new_id())
            written(journal, {"step:1": entry, "uuid:1": '"state":"done"'})

            WRITES[write](journal, {"step:1": other, "uuid:1": "u"})

            assert redis_client.hmget(store.keys(task_id).run, "step:1", "uuid:1") == [other, "u"]
            journal.close()


# -- what no fence guards


def test_an_opening_that_is_late_begins_its_attempt_no_second_time(
    store: Store, proxy: Proxy, redis_client: redis.Redis
) -> None:
    proxy.hold_back(b"EVALSHA")
    journal = opened(store, task_id := new_id())
    journal.suspend(0, {})
    before = state(redis_client, store, task_id)

    assert b"outdated" in proxy.deliver_late()

    assert state(redis_client, store, task_id) == before


UNFENCED: dict[str, Callable[[Store, str], Any]] = {
    "open": lambda store, task_id: opened(store, task_id, fresh=False).suspend(0, {}),
    "terminate": lambda store, task_id: store.runs.terminate(task_id, "failed", DAY, "{}"),
    "cancel": lambda store, task_id: store.runs.cancel(task_id),
    "claim": lambda store, _: store.runs.claim([TASK]),
}


@pytest.mark.parametrize("act", UNFENCED)
def test_an_act_that_nobody_waits_for_any_more_does_nothing(
    store: Store, proxy: Proxy, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """The run has ended meanwhile, and was retried."""
    monkeypatch.setattr(scripts, "_LONGEST_REPLY", 0.3)
    opened(store, task_id := new_id()).suspend(0, {})
    proxy.hold_back(b"EVALSHA")
    UNFENCED[act](store, task_id)
    sent = seconds(redis_client)
    redis_client.delete(*store.keys(task_id).all)
    opened(store, task_id).suspend(0, {})
    before = state(redis_client, store, task_id)
    eventually(lambda: seconds(redis_client) > sent + 0.3)

    assert proxy.deliver_late().startswith(b"-LATE ")

    assert state(redis_client, store, task_id) == before


def seconds(client: redis.Redis) -> float:
    whole, microseconds = client.time()
    return whole + microseconds / 1e6


def test_a_clock_of_redis_that_was_put_on_is_noticed(store: Store, redis_client: redis.Redis) -> None:
    """A connection that was made before is made again, and the act is done."""
    journal = opened(store, task_id := new_id())
    journal.suspend(0, {})
    journal.connection.transport.clock_ahead_ms -= 3600_000
    journal.close()

    assert store.runs.cancel(task_id) == ("suspended", 0)
    assert redis_client.hget(store.keys(task_id).run, "cancel") == "requested"


def test_an_act_that_was_interrupted_is_not_sent_again_by_the_next_user_of_its_connection(
    store: Store, proxy: Proxy, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(store, task_id := new_id()).suspend(0, {})
    shared = store.shards.of(task_id).pool
    interrupted = KeyboardInterrupt()

    def strike(*_: Any) -> None:
        raise interrupted

    taken = shared.take()
    monkeypatch.setattr(taken, "_reconnect", strike)
    taken.transport.close()
    shared.give_back(taken)
    with pytest.raises(KeyboardInterrupt):
        store.runs.cancel(task_id)
    monkeypatch.undo()

    assert b"cancel" not in store.runs.load(task_id)
    assert not taken.pending


# -- a whole task


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_step_whose_start_record_is_late_runs_once(proxy: Proxy, redis_client: redis.Redis, kind: str) -> None:
    ran: list[str] = []

    def ship() -> str:
        ran.append("ship")
        return "shipped"

    def arrive() -> str:
        return proxy.deliver_late().decode()

    once = RunOptions(max_attempts=1)

    def body(self: Any) -> list[Any]:
        proxy.hold_back(b'"ship","state":"started"')
        return [self.ctx.run("ship", ship, once), self.ctx.run("late", arrive)]

    async def async_body(self: Any) -> list[Any]:
        proxy.hold_back(b'"ship","state":"started"')
        return [await self.ctx.run("ship", ship, once), await self.ctx.run("late", arrive)]

    with app_at(proxy.url) as app:
        task, task_id = task_of(app, body if kind == "def" else async_body), new_id()
        assert execute(task, task_id=task_id) == "SUCCESS"
        again = store_of(app).journal(task_id).open(delivery(task_id, task=task.name))
        fields = redis_client.hgetall(store_of(app).keys(task_id).run)

    assert not isinstance(again, Opened)
    assert ran == ["ship"]
    assert '"state":"done"' in fields["step:1"]
    assert json.loads(fields["step:2"])["value"] == STALE.decode()


def test_a_command_has_its_token_also_while_another_connection_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may send what a step that was given up has returned, at any moment of it."""
    fence, command = fence_module.Fence(b"token", "run"), pack("EVALSHA", "sha", 1, "run", b"token", "step:1")
    seen = []

    def pack_slowly(parts: Any) -> bytes:
        packed = pack_parts(parts)
        seen.append(fence.put_into(command))
        return packed

    monkeypatch.setattr(fence_module, "pack_parts", pack_slowly)
    for _ in range(3):
        fence.supersede()

    numbered = [
        pack("EVALSHA", "sha", 1, "run", token, "step:1") for token in ("token", "token:2", "token:3", "token:4")
    ]
    assert set(seen) <= set(numbered)
    assert fence.put_into(command) == numbered[-1]


@pytest.mark.parametrize("part", ["", "é", "\x80", b"\xff\x00", b"token", 7, 1.5, "x" * 511, "x" * 512, "é" * 600])
def test_parts_of_a_command_are_packed_by_their_bytes(part: Any) -> None:
    raw = part if isinstance(part, bytes) else str(part).encode()

    assert pack("SET", part) == b"*2\r\n$3\r\nSET\r\n$%d\r\n%s\r\n" % (len(raw), raw)
