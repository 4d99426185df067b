"""A run that nobody carries on is claimed by one worker, which sends it again."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import redis

from celery_durable.app.store import Store
from celery_durable.journal.port import Busy, Opened
from celery_durable.redis.keys import SHARDS
from celery_durable.redis.runs import Claimed
from tests.integration.network import Waits
from tests.integration.runs import (
    TASK,
    claimed,
    delivery,
    died,
    ended,
    id_of,
    ids,
    lapse,
    look,
    new_id,
    opened,
    overdue,
    server_ms,
    state,
    store_at,
)

DAY = 24 * 3600.0
LEASE = 30_000
MOST = 200
"""Runs that one look at a shard goes through."""


@pytest.fixture
def shard(store: Store) -> Iterator[str]:
    """Ids of runs that share their sorted sets."""
    first = new_id()
    return (one for one in iter(new_id, "") if store.keys(one).leases == store.keys(first).leases)


# -- to find a run is to claim it


def test_a_run_whose_lease_has_lapsed_is_claimed_once(store: Store, redis_client: redis.Redis) -> None:
    died(redis_client, store, task_id := new_id(), call='{"args":[1]}')
    before = server_ms(redis_client)

    assert claimed(store) == [Claimed(task_id, "running", TASK, b'{"args":[1]}', b"")]
    assert claimed(store) == []

    after = state(redis_client, store, task_id)
    assert (after["fields"]["status"], after["fields"]["resent"]) == ("running", "1")
    assert after["lease"] is None
    assert before + LEASE <= after["due"] <= server_ms(redis_client) + LEASE


def test_a_run_whose_wait_is_over_is_claimed_with_what_its_message_is_to_say(
    store: Store, redis_client: redis.Redis
) -> None:
    opened(store, task_id := new_id()).suspend(0, {"resume": '{"retries":3}'})

    assert claimed(store) == [Claimed(task_id, "suspended", TASK, b"{}", b'{"retries":3}')]
    assert claimed(store) == []
    assert state(redis_client, store, task_id)["fields"]["status"] == "suspended"


def test_a_run_that_waits_is_left_alone_and_its_time_is_told(store: Store, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id()).suspend(60, {})
    before = state(redis_client, store, task_id)

    found = look(store)

    assert [run for claims in found for run in claims.runs] == []
    [next_due] = [claims.next_due for claims in found if claims.next_due is not None]
    assert 59 < next_due <= 60
    assert state(redis_client, store, task_id) == before


def test_a_run_that_a_message_is_to_bring_back_is_claimed_only_when_that_has_not_come(
    store: Store, redis_client: redis.Redis
) -> None:
    opened(store, task_id := new_id()).suspend(0, {}, slack=30)
    assert ids(store) == []
    overdue(redis_client, store, task_id)

    assert ids(store) == [task_id]


def test_a_live_run_is_left_alone(store: Store, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id())
    before = state(redis_client, store, task_id)
    # As if a claim had come between the opening of an attempt and its first renewal.
    redis_client.zadd(store.keys(task_id).due, {task_id: 0})

    assert ids(store) == []
    assert state(redis_client, store, task_id) == before


def test_the_time_until_a_run_is_sent_again_grows_up_to_a_day(store: Store, redis_client: redis.Redis) -> None:
    died(redis_client, store, task_id := new_id())
    pauses = []
    for _ in range(8):
        before = server_ms(redis_client)
        assert ids(store) == [task_id]
        pauses.append(state(redis_client, store, task_id)["due"] - before)
        overdue(redis_client, store, task_id)

    assert pauses == pytest.approx([*(LEASE * 4**n for n in range(6)), DAY * 1000, DAY * 1000], abs=5_000)
    assert state(redis_client, store, task_id)["fields"]["resent"] == "8"


def test_the_pause_begins_again_with_each_attempt(store: Store, redis_client: redis.Redis) -> None:
    died(redis_client, store, task_id := new_id())
    for _ in range(3):
        assert ids(store) == [task_id]
        overdue(redis_client, store, task_id)

    assert isinstance(store.journal(task_id).open(delivery(task_id, wake_up=True)), Opened)

    begun = state(redis_client, store, task_id)
    assert begun["due"] is None
    assert "resent" not in begun["fields"]
    lapse(redis_client, store, task_id)
    before = server_ms(redis_client)
    assert ids(store) == [task_id]
    assert before + LEASE <= state(redis_client, store, task_id)["due"] <= server_ms(redis_client) + LEASE


def test_a_finished_run_that_was_not_delivered_is_claimed(store: Store, redis_client: redis.Redis) -> None:
    task_id = id_of(ended(store, delivered=False))
    assert ids(store) == [], "whoever ended it is delivering it"
    lapse(redis_client, store, task_id)

    assert ids(store) == [task_id]
    after = state(redis_client, store, task_id)
    assert (after["fields"]["status"], after["expires"]) == ("succeeded", False)


@pytest.mark.parametrize("status", ["succeeded", "failed", "revoked"])
def test_a_finished_run_that_was_delivered_is_dropped(store: Store, redis_client: redis.Redis, status: str) -> None:
    task_id = id_of(ended(store, status, delivered=True))
    keys = store.keys(task_id)
    for leftover in (keys.leases, keys.due):
        redis_client.zadd(leftover, {task_id: 0})
    before = redis_client.hgetall(keys.run)

    assert ids(store) == []
    after = state(redis_client, store, task_id)
    assert (after["fields"], after["lease"], after["due"]) == (before, None, None)


def test_a_run_without_a_journal_is_dropped(store: Store, redis_client: redis.Redis) -> None:
    keys = store.keys(task_id := new_id())
    for leftover in (keys.leases, keys.due):
        redis_client.zadd(leftover, {task_id: 0})

    assert ids(store) == []
    assert redis_client.dbsize() == 0


@pytest.mark.parametrize("status", ["running", "suspended", "succeeded"])
def test_a_run_of_a_task_that_is_not_known_is_left_alone(store: Store, redis_client: redis.Redis, status: str) -> None:
    journal = died(redis_client, store, task_id := new_id())
    if status == "suspended":
        journal.suspend(0, {})
    elif status == "succeeded":
        journal.finish(status, {})
        lapse(redis_client, store, task_id)
    before = state(redis_client, store, task_id)

    assert ids(store, "another.task") == []
    assert state(redis_client, store, task_id) == before
    assert ids(store, "another.task", TASK) == [task_id]


def test_a_run_without_a_layout_is_left_alone(store: Store, redis_client: redis.Redis) -> None:
    died(redis_client, store, task_id := new_id())
    redis_client.hset(store.keys(task_id).run, "v", "none")
    before = state(redis_client, store, task_id)

    assert ids(store) == []
    assert state(redis_client, store, task_id) == before


def test_runs_behind_many_of_other_tasks_are_found(
    store: Store, redis_client: redis.Redis, shard: Iterator[str]
) -> None:
    for _ in range(2 * MOST + 50):
        died(redis_client, store, next(shard), task="another.task").close()
    behind = [next(shard) for _ in range(3)]
    for task_id in behind:
        died(redis_client, store, task_id).close()
        redis_client.zadd(store.keys(task_id).leases, {task_id: 1})

    assert found_in_time(store, looks=3) == sorted(behind)


def test_runs_behind_many_of_other_tasks_are_found_whichever_sets_these_are_in(
    store: Store, redis_client: redis.Redis, shard: Iterator[str]
) -> None:
    """Some have lapsed, some are overdue; ours is behind the first two hundred of those that have lapsed."""
    for _ in range(60):
        journal = opened(store, next(shard), task="another.task")
        journal.suspend(0, {})
        journal.close()
    for _ in range(MOST + 20):
        died(redis_client, store, next(shard), task="another.task").close()
    died(redis_client, store, ours := next(shard)).close()
    redis_client.zadd(store.keys(ours).leases, {ours: 1})

    assert found_in_time(store, looks=4) == [ours]


def found_in_time(store: Store, looks: int) -> list[str]:
    """Look so often as a worker does, which passes over what it could not claim before."""
    found: list[str] = []
    claims = None
    for _ in range(looks):
        claims = store.runs.claim((TASK,), claims)
        found += [run.task_id for each in claims for run in each.runs]
    return sorted(found)


def test_one_look_takes_two_hundred_runs_of_a_shard_and_the_next_one_goes_on(
    store: Store, redis_client: redis.Redis, shard: Iterator[str]
) -> None:
    waiting = {next(shard) for _ in range(2 * MOST + 50)}
    for task_id in waiting:
        died(redis_client, store, task_id).close()

    looks = [ids(store) for _ in range(4)]

    assert [len(found) for found in looks] == [MOST, MOST, 50, 0]
    assert {task_id for found in looks for task_id in found} == waiting


def test_of_many_that_look_at_once_one_gets_each_run(redis_url: str, store: Store, redis_client: redis.Redis) -> None:
    waiting = [new_id() for _ in range(200)]
    for number, task_id in enumerate(waiting):
        if number % 2:
            died(redis_client, store, task_id).close()
        else:
            journal = opened(store, task_id)
            journal.suspend(0, {})
            journal.close()

    with ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        stores = [stack.enter_context(store_at(redis_url)) for _ in range(4)]
        found = list(threads.map(ids, stores * 3))

    assert Counter(task_id for each in found for task_id in each) == Counter(waiting)
    assert {redis_client.hget(store.keys(task_id).run, "resent") for task_id in waiting} == {"1"}


def test_of_all_messages_that_bring_a_claimed_run_back_one_begins_an_attempt(
    store: Store, redis_client: redis.Redis
) -> None:
    died(redis_client, store, task_id := new_id())
    assert ids(store) == [task_id]

    verdicts = [store.journal(task_id).open(delivery(task_id, wake_up=hint)) for hint in (True, False, True)]

    assert [type(verdict) for verdict in verdicts] == [Opened, Busy, Busy]
    assert verdicts[0].recoveries == 1


def test_one_look_at_all_shards_waits_for_redis_once(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits().install(monkeypatch)
    with store_at(redis_url) as store:
        died(redis_client, store, new_id()).close()
        look(store)
        redis_client.config_resetstat()
        with waits.counted(1):
            look(store)
        assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] == SHARDS


def test_the_clock_of_a_worker_does_not_matter(
    store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall_clock = time.time
    live, asleep, dead = new_id(), new_id(), new_id()
    opened(store, live)
    opened(store, asleep).suspend(60, {})
    died(redis_client, store, dead)
    monkeypatch.setattr(time, "time", lambda: wall_clock() + 10 * DAY)

    assert ids(store) == [dead]
    monkeypatch.setattr(time, "time", lambda: wall_clock() - 10 * DAY)
    assert ids(store) == []
    overdue(redis_client, store, dead)
    assert ids(store) == [dead]


# -- what could not be sent


def test_a_run_that_could_not_be_sent_is_found_again_soon(store: Store, redis_client: redis.Redis) -> None:
    died(redis_client, store, task_id := new_id())
    found = claimed(store)
    before = server_ms(redis_client)

    store.runs.unclaim(found)

    after = state(redis_client, store, task_id)
    assert before + 5_000 <= after["due"] <= server_ms(redis_client) + 5_000
    assert "resent" not in after["fields"]
    overdue(redis_client, store, task_id)
    assert claimed(store) == found


@pytest.mark.parametrize("then", ["runs", "waits", "is gone"])
def test_a_run_that_could_not_be_sent_and_has_begun_by_another_message_is_left_alone(
    store: Store, redis_client: redis.Redis, then: str
) -> None:
    died(redis_client, store, task_id := new_id())
    found = claimed(store)
    journal = opened(store, task_id)
    if then == "waits":
        journal.suspend(60, {})
    elif then == "is gone":
        redis_client.delete(store.keys(task_id).run)
    before = state(redis_client, store, task_id)

    store.runs.unclaim(found)

    assert state(redis_client, store, task_id) == before
