"""A process that ends gives its leases back, so that others go on at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from celery_durable.app.owner import owner_name
from celery_durable.app.store import Store
from celery_durable.interrupts import Fenced
from celery_durable.journal.port import Busy, Finished, Opened
from celery_durable.redis.journal import RedisJournal
from celery_durable.redis.replies import ReleaseResult
from tests.integration.runs import (
    delivery,
    died,
    ended,
    id_of,
    ids,
    new_id,
    opened,
    server_ms,
    state,
)

DAY = 24 * 3600.0


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
    journal = ended(store, delivered=False)

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
    journal = ended(store, status, delivered=True)
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
    journal = ended(store, delivered=False)
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
