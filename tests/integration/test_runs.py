"""Runs seen from outside their attempts: each is claimed once, given back, ended or cancelled in one act."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_durable.app.owner import owner_name
from celery_durable.app.store import Store
from celery_durable.interrupts import Fenced
from celery_durable.journal.port import Busy, Finished, Opened
from celery_durable.redis.journal import RedisJournal
from celery_durable.redis.keys import SHARDS
from celery_durable.redis.replies import ReleaseResult
from celery_durable.redis.runs import Claimed, Claims
from tests.integration.network import Waits
from tests.integration.runs import TASK, delivery, lapse, new_id, opened, state, store_at

DAY = 24 * 3600.0
LEASE = 30_000
MOST = 200
"""Runs that one look at a shard goes through."""


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    with store_at(redis_url) as store:
        yield store


@pytest.fixture
def shard(store: Store) -> Iterator[str]:
    """Ids of runs that share their sorted sets."""
    first = new_id()
    return (one for one in iter(new_id, "") if store.keys(one).leases == store.keys(first).leases)


def look(store: Store, *tasks: str) -> list[Claims]:
    return store.runs.claim(tasks or (TASK,))


def claimed(store: Store, *tasks: str) -> list[Claimed]:
    """Look once at all shards; return what was found."""
    return [run for claims in look(store, *tasks) for run in claims.runs]


def ids(store: Store, *tasks: str) -> list[str]:
    return [run.task_id for run in claimed(store, *tasks)]


def died(client: redis.Redis, store: Store, task_id: str, **facts: Any) -> RedisJournal:
    """Begin an attempt whose lease has lapsed."""
    journal = opened(store, task_id, **facts)
    lapse(client, store, task_id)
    return journal


def overdue(client: redis.Redis, store: Store, task_id: str) -> None:
    """Let the time of a run among those that wait come now."""
    assert client.zadd(store.keys(task_id).due, {task_id: 0}, xx=True, ch=True) == 1


def server_ms(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


def finished(store: Store, status: str = "succeeded", *, delivered: bool) -> RedisJournal:
    journal = opened(store, new_id())
    journal.finish(status, {"outcome": '{"value":1}'})
    if delivered:
        journal.deliver(DAY)
        journal.prove_lease()  # reads the replies
    return journal


def id_of(journal: RedisJournal) -> str:
    return journal._keys.task_id  # noqa: SLF001


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


def test_the_pause_begins_anew_with_each_attempt(store: Store, redis_client: redis.Redis) -> None:
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
    task_id = id_of(finished(store, delivered=False))
    assert ids(store) == [], "whoever ended it is delivering it"
    lapse(redis_client, store, task_id)

    assert ids(store) == [task_id]
    after = state(redis_client, store, task_id)
    assert (after["fields"]["status"], after["expires"]) == ("succeeded", False)


@pytest.mark.parametrize("status", ["succeeded", "failed", "revoked"])
def test_a_finished_run_that_was_delivered_is_dropped(store: Store, redis_client: redis.Redis, status: str) -> None:
    task_id = id_of(finished(store, status, delivered=True))
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


# -- giving a lease back


@pytest.mark.parametrize("by", ["fence", "owner"])
def test_a_lease_that_is_given_back_lets_others_go_on_at_once(store: Store, redis_client: redis.Redis, by: str) -> None:
    journal = opened(store, task_id := new_id())
    give_back(store, journal, by)

    after = state(redis_client, store, task_id)
    assert after["lease"] is None
    assert after["due"] <= server_ms(redis_client)
    assert after["fields"]["status"] == "running"
    assert ids(store) == [task_id]
    assert isinstance(store.journal(task_id).open(delivery(task_id, wake_up=True)), Opened)


def give_back(store: Store, journal: RedisJournal, by: str, result: ReleaseResult = ReleaseResult.JOURNALED) -> None:
    if by == "fence":
        journal.release(orderly=True)
    else:
        _, _, pid = owner_of(store, id_of(journal)).rpartition(":")
        assert store.runs.release(id_of(journal), owner_name(int(pid))) is result


def owner_of(store: Store, task_id: str) -> str:
    return store.runs.load(task_id)[b"owner"].decode()


def test_an_attempt_says_which_process_it_is_in(store: Store) -> None:
    opened(store, task_id := new_id())

    assert owner_of(store, task_id) == owner_name(os.getpid())


POOL = """
import sys
import billiard
from celery_durable.app.owner import owner_name

def tell():
    print(owner_name(1), flush=True)

if __name__ == "__main__":
    tell()
    child = billiard.get_context(sys.argv[1]).Process(target=tell)
    child.start()
    child.join()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_knows_the_names_of_its_processes_and_has_none_of_anothers(tmp_path: Path, method: str) -> None:
    """Containers may have equal host names, and equal process ids."""
    (script := tmp_path / "pool.py").write_text(POOL, encoding="utf-8")
    workers = [subprocess.check_output([sys.executable, script, method], text=True).split() for _ in range(2)]

    assert [parent for parent, child in workers] == [child for parent, child in workers]
    assert len({owner_name(1), *(parent for parent, _ in workers)}) == 3


def test_only_the_present_attempt_gives_its_lease_back(store: Store, redis_client: redis.Redis) -> None:
    stale = died(redis_client, store, task_id := new_id())
    opened(store, task_id)
    before = state(redis_client, store, task_id)

    stale.release(orderly=True)
    assert store.runs.release(task_id, owner_name(1)) is ReleaseResult.JOURNALED, "there is a run, of another process"

    assert state(redis_client, store, task_id) == before


@pytest.mark.parametrize("by", ["fence", "owner"])
def test_a_wait_goes_on_though_the_process_that_began_it_ends(store: Store, redis_client: redis.Redis, by: str) -> None:
    journal = opened(store, task_id := new_id())
    journal.suspend(60, {})
    before = state(redis_client, store, task_id)

    give_back(store, journal, by)

    assert state(redis_client, store, task_id) == before


@pytest.mark.parametrize("by", ["fence", "owner"])
def test_an_outcome_that_its_process_did_not_deliver_is_another_ones_at_once(
    store: Store, redis_client: redis.Redis, by: str
) -> None:
    journal = finished(store, delivered=False)

    give_back(store, journal, by)

    assert ids(store) == [id_of(journal)]
    assert isinstance(store.journal(id_of(journal)).open(delivery(id_of(journal), wake_up=True)), Finished)
    assert isinstance(store.journal(id_of(journal)).open(delivery(id_of(journal), wake_up=True)), Busy), (
        "delivered once"
    )


@pytest.mark.parametrize(
    ("status", "result"), [("succeeded", ReleaseResult.SUCCEEDED), ("failed", ReleaseResult.JOURNALED)]
)
@pytest.mark.parametrize("by", ["fence", "owner"])
def test_a_delivered_outcome_is_not_given_back(
    store: Store, redis_client: redis.Redis, by: str, status: str, result: ReleaseResult
) -> None:
    journal = finished(store, status, delivered=True)
    before = state(redis_client, store, id_of(journal))

    give_back(store, journal, by, result)

    assert state(redis_client, store, id_of(journal)) == before


def test_an_attempt_that_has_given_its_lease_back_does_not_take_it_again(
    store: Store, redis_client: redis.Redis
) -> None:
    """A renewal may be under way."""
    journal = opened(store, task_id := new_id())
    journal.release(orderly=True)
    before = state(redis_client, store, task_id)

    with pytest.raises(Fenced):
        journal.prove_lease()

    assert state(redis_client, store, task_id) == before


@pytest.mark.parametrize(("orderly", "recoveries"), [(True, 0), (False, 1)])
def test_an_orderly_end_of_a_process_is_no_death(store: Store, orderly: bool, recoveries: int) -> None:
    opened(store, task_id := new_id()).release(orderly=orderly)

    verdict = store.journal(task_id).open(delivery(task_id, wake_up=True))

    assert isinstance(verdict, Opened)
    assert verdict.recoveries == recoveries


def test_an_outcome_that_can_never_be_delivered_is_kept_and_not_sent_again(
    store: Store, redis_client: redis.Redis
) -> None:
    journal = finished(store, delivered=False)
    journal.deliver(DAY, arrived=False)
    journal.prove_lease()  # reads the replies

    after = state(redis_client, store, id_of(journal))
    assert after["expires"]
    assert "delivered" not in after["fields"]
    assert ids(store) == []


def test_there_is_nothing_to_give_back_of_a_run_that_has_not_begun(store: Store, redis_client: redis.Redis) -> None:
    assert store.runs.release(new_id(), owner_name(1)) is ReleaseResult.NO_RUN
    assert redis_client.dbsize() == 0


def test_a_process_that_ends_gives_all_its_leases_back_at_once(store: Store, redis_client: redis.Redis) -> None:
    journals = [opened(store, new_id()) for _ in range(20)]
    for journal in journals:
        store.leases.keep(journal.ownership)

    store.leases.give_back()

    assert sorted(ids(store)) == sorted(map(id_of, journals))
    for journal in journals:
        assert state(redis_client, store, id_of(journal))["lease"] is None


# -- ending a run from outside


@pytest.mark.parametrize("was", ["running", "suspended", "dead"])
def test_a_live_run_is_ended_from_outside_whatever_it_does(store: Store, redis_client: redis.Redis, was: str) -> None:
    journal = opened(store, task_id := new_id())
    if was == "suspended":
        journal.suspend(0, {})
    elif was == "dead":
        lapse(redis_client, store, task_id)
    before = server_ms(redis_client)

    assert store.runs.terminate(task_id, "revoked", DAY, '{"error":{}}')

    after = state(redis_client, store, task_id)
    fields = after["fields"]
    assert (fields["status"], fields["outcome"], fields["delivered"]) == ("revoked", '{"error":{}}', "1")
    assert before <= int(fields["ended"]) <= server_ms(redis_client)
    assert (after["lease"], after["due"]) == (None, None)
    assert 0 < redis_client.ttl(store.keys(task_id).run) <= DAY
    assert ids(store) == []
    assert isinstance(store.journal(task_id).open(delivery(task_id)), Finished)


def test_an_attempt_of_a_run_that_was_ended_from_outside_writes_nothing_more(
    store: Store, redis_client: redis.Redis
) -> None:
    journal = opened(store, task_id := new_id())
    store.runs.terminate(task_id, "revoked", DAY, "{}")
    before = state(redis_client, store, task_id)

    for write in (
        lambda: journal.suspend(0, {}),
        lambda: journal.finish("succeeded", {"outcome": "late"}),
        journal.prove_lease,
        lambda: (journal.send({"step:1": "late"}), journal.flush()),
    ):
        with pytest.raises(Fenced):
            write()
    journal.release(orderly=True)
    journal.deliver(DAY)
    with pytest.raises(Fenced):
        journal.prove_lease()

    assert state(redis_client, store, task_id) == before


@pytest.mark.parametrize("delivered", [True, False])
def test_a_run_that_has_ended_is_not_ended_again(store: Store, redis_client: redis.Redis, delivered: bool) -> None:
    task_id = id_of(finished(store, delivered=delivered))
    before = state(redis_client, store, task_id)

    assert not store.runs.terminate(task_id, "revoked", DAY, "{}")
    assert state(redis_client, store, task_id) == before


def test_a_run_that_has_not_begun_cannot_be_ended(store: Store, redis_client: redis.Redis) -> None:
    assert not store.runs.terminate(new_id(), "revoked", DAY, "{}")
    assert not store.runs.is_known(new_id())
    assert redis_client.dbsize() == 0


# -- cancelling


def test_a_running_attempt_hears_of_its_cancellation_with_its_next_write(
    store: Store, redis_client: redis.Redis
) -> None:
    journal = opened(store, task_id := new_id())
    before = state(redis_client, store, task_id)

    assert store.runs.cancel(task_id) == ("running", 0)

    before["fields"]["cancel"] = "requested"
    assert state(redis_client, store, task_id) == before
    assert not journal.cancel_requested
    journal.send({"step:1": "entry"})
    journal.flush()
    assert journal.cancel_requested


def test_a_running_attempt_hears_of_its_cancellation_with_its_next_renewal(store: Store) -> None:
    journal = opened(store, task_id := new_id())
    store.runs.cancel(task_id)

    journal.prove_lease()

    assert journal.cancel_requested


def test_the_next_attempt_knows_of_a_cancellation(store: Store, redis_client: redis.Redis) -> None:
    died(redis_client, store, task_id := new_id())
    assert store.runs.cancel(task_id) == ("running", 0)

    assert opened(store, task_id).cancel_requested


def test_a_run_that_waits_wakes_up_at_once_to_be_cancelled(store: Store, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id()).suspend(60, {})
    assert ids(store) == []

    assert store.runs.cancel(task_id) == ("suspended", 0)

    assert ids(store) == [task_id]
    assert opened(store, task_id, wake_up=True).cancel_requested


def test_to_cancel_twice_sends_a_run_once(store: Store, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id()).suspend(60, {})
    store.runs.cancel(task_id)
    assert ids(store) == [task_id]
    before = state(redis_client, store, task_id)

    assert store.runs.cancel(task_id) == ("suspended", 0)

    assert state(redis_client, store, task_id) == before


def test_a_run_that_is_to_be_cancelled_does_not_begin_a_wait(store: Store, redis_client: redis.Redis) -> None:
    journal = opened(store, task_id := new_id())
    store.runs.cancel(task_id)

    journal.suspend(60, {}, slack=30)

    assert ids(store) == [task_id]
    assert isinstance(store.journal(task_id).open(delivery(task_id, wake_up=True)), Opened)


def test_a_run_that_was_told_waits_again(store: Store) -> None:
    journal = opened(store, task_id := new_id())
    store.runs.cancel(task_id)
    journal.send({"cancel": "raised"})
    journal.flush()
    assert store.runs.cancel(task_id) == ("running", 0), "once"

    journal.suspend(60, {})

    assert ids(store) == []
    assert isinstance(store.journal(task_id).open(delivery(task_id)), Busy)


@pytest.mark.parametrize("delivered", [True, False])
def test_a_run_that_has_ended_is_not_cancelled(store: Store, redis_client: redis.Redis, delivered: bool) -> None:
    task_id = id_of(finished(store, delivered=delivered))
    before = state(redis_client, store, task_id)

    assert store.runs.cancel(task_id) == ("succeeded", int(before["fields"]["ended"]))
    assert state(redis_client, store, task_id) == before


def test_a_run_that_has_not_begun_is_not_cancelled(store: Store, redis_client: redis.Redis) -> None:
    assert store.runs.cancel(new_id()) == ("unknown", 0)
    assert redis_client.dbsize() == 0
