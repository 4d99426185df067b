"""Leases: renewed as long as their attempt lives, taken over when it does not, asked for when in doubt."""

import gc
import logging
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from celery.exceptions import SoftTimeLimitExceeded

from celery_durable import RetryPolicy, RunOptions, durable_task
from celery_durable.app.store import Store, store_of
from celery_durable.exceptions import JournalUnavailableError
from celery_durable.interrupts import Fenced
from celery_durable.journal.port import Busy, Opened
from celery_durable.redis import lease as lease_module
from celery_durable.redis.journal import RedisJournal
from celery_durable.redis.lease import RENEWALS_PER_LEASE
from celery_durable.redis.ownership import Ownership
from celery_durable.rounds import Rounds
from celery_durable.steps.context import DurableContext
from tests.integration.runs import app_at, app_for, delivery, execute, lapse, new_id, opened, state, store_at
from tests.servers import RedisServer
from tests.waiting import eventually

SHORT = 1
"""Seconds: the shortest lease that can be set."""


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    with store_at(redis_url, durable_lease=SHORT) as store:
        yield store


def lease(client: redis.Redis, store: Store, task_id: str) -> float:
    """Return when the lease of a run ends; 0 without one."""
    return client.zscore(store.keys(task_id).leases, task_id) or 0.0


def test_a_lease_is_renewed_as_long_as_it_is_held(store: Store, redis_client: redis.Redis) -> None:
    journal = opened(store, task_id := new_id())
    first = lease(redis_client, store, task_id)
    store.leases.keep(journal.ownership)

    eventually(lambda: lease(redis_client, store, task_id) > first + 2 * SHORT * 1000)

    assert isinstance(store.journal(task_id).open(delivery(task_id)), Busy)
    assert not journal.lease_in_doubt
    journal.prove_lease()
    store.leases.drop(journal.ownership)


def test_one_thread_renews_the_leases_of_all_attempts(store: Store, redis_client: redis.Redis) -> None:
    ids = [new_id() for _ in range(20)]
    journals = [opened(store, task_id) for task_id in ids]
    before = [lease(redis_client, store, task_id) for task_id in ids]
    for journal in journals:
        store.leases.keep(journal.ownership)

    eventually(
        lambda: all(lease(redis_client, store, one) > old for one, old in zip(ids, before, strict=True)),
        what="20 renewals",
    )

    for journal in journals:
        store.leases.drop(journal.ownership)


def test_a_released_lease_is_not_renewed_any_more(store: Store, redis_client: redis.Redis) -> None:
    ids = [new_id(), new_id()]
    released, kept = (opened(store, task_id) for task_id in ids)
    store.leases.keep(kept.ownership)
    store.leases.keep(released.ownership)
    store.leases.drop(released.ownership)
    before = [lease(redis_client, store, task_id) for task_id in ids]

    eventually(lambda: lease(redis_client, store, ids[1]) > before[1] + 2 * SHORT * 1000)

    assert lease(redis_client, store, ids[0]) == before[0]
    store.leases.drop(kept.ownership)


def test_the_renewal_of_a_stale_attempt_does_not_touch_the_lease_of_the_newer_one(
    store: Store, redis_client: redis.Redis
) -> None:
    stale = opened(store, task_id := new_id())
    witness = opened(store, other := new_id())
    lapse(redis_client, store, task_id)
    opened(store, task_id)
    before = state(redis_client, store, task_id)
    seen = lease(redis_client, store, other)
    for journal in (stale, witness):
        store.leases.keep(journal.ownership)

    eventually(lambda: lease(redis_client, store, other) > seen + SHORT * 1000)

    assert state(redis_client, store, task_id) == before
    for journal in (stale, witness):
        store.leases.drop(journal.ownership)


@pytest.mark.parametrize("ending", ["suspended", "finished"])
def test_a_renewal_that_comes_late_gives_no_lease_to_a_run_that_has_none(
    store: Store, redis_client: redis.Redis, ending: str
) -> None:
    journal = opened(store, task_id := new_id())
    if ending == "suspended":
        journal.suspend(60, {})
    else:
        journal.finish("succeeded", {})
        journal.deliver(60)

    journal.prove_lease()

    assert lease(redis_client, store, task_id) == 0


def test_renewals_go_on_after_the_server_was_away(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(appendonly=True) as server, store_at(server.url(), durable_lease=SHORT) as store:
        journal = opened(store, task_id := new_id())
        store.leases.keep(journal.ownership)
        with server.client() as client:
            before = lease(client, store, task_id)
        server.stop()
        eventually(lambda: "cannot renew the leases of 1 attempts" in caplog.text)

        server.start()

        with server.client() as client:
            eventually(lambda: lease(client, store, task_id) > before)
        store.leases.drop(journal.ownership)
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_renewal_that_fails_is_left_to_the_next_one_which_leaves_out_who_was_dropped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    journals = [opened(store, new_id()) for _ in range(2)]
    asked: list[tuple[int, float | None]] = []
    usual = store.pool.execute

    def execute(*commands: bytes, timeout: float | None = None) -> list[Any]:
        asked.append((len(commands), timeout))
        if len(asked) > 1:
            return usual(*commands, timeout=timeout)
        store.leases.drop(journals[0].ownership)
        raise JournalUnavailableError("away")

    monkeypatch.setattr(store.pool, "execute", execute)
    for journal in journals:
        store.leases.keep(journal.ownership)

    eventually(lambda: len(asked) > 1)

    assert asked[:2] == [(2, SHORT / RENEWALS_PER_LEASE), (1, SHORT / RENEWALS_PER_LEASE)]
    store.leases.drop(journals[1].ownership)


def test_a_damaged_journal_does_not_cost_the_others_their_leases(
    store: Store, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [new_id() for _ in range(3)]
    journals = [opened(store, task_id) for task_id in ids]
    before = [lease(redis_client, store, task_id) for task_id in ids]
    damaged = store.keys(ids[0]).run
    redis_client.delete(damaged)
    redis_client.set(damaged, "something else")
    for journal in journals:
        store.leases.keep(journal.ownership)

    for position in (1, 2):
        eventually(lambda at=position: lease(redis_client, store, ids[at]) > before[at] + 2 * SHORT * 1000)

    assert lease(redis_client, store, ids[0]) == before[0]
    assert "cannot renew a lease" in caplog.text
    for journal in journals:
        store.leases.drop(journal.ownership)


def test_renewals_go_on_after_an_error_that_nobody_expected(
    store: Store, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(store, task_id := new_id())
    before = lease(redis_client, store, task_id)
    renew, failures = store.leases._renew, []  # noqa: SLF001

    def fail_twice(held: list[Ownership]) -> None:
        if len(failures) < 2:
            failures.append(MemoryError())
            raise failures[-1]
        renew(held)

    monkeypatch.setattr(store.leases, "_renew", fail_twice)
    store.leases.keep(journal.ownership)

    eventually(lambda: lease(redis_client, store, task_id) > before + SHORT * 1000)

    assert len(failures) == 2
    assert caplog.text.count("leases could not be renewed") == 2
    store.leases.drop(journal.ownership)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_is_gone_is_started_again(
    store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = lease_module._rounds  # noqa: SLF001
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_make_round", sys.exit)
        rounds.expect(0.0)
        eventually(lambda: not rounds._runs)  # noqa: SLF001
    journal = opened(store, task_id := new_id())
    before = lease(redis_client, store, task_id)

    store.leases.keep(journal.ownership)

    eventually(lambda: lease(redis_client, store, task_id) > before)
    store.leases.drop(journal.ownership)


def test_an_app_that_nobody_uses_any_more_frees_its_store(redis_url: str) -> None:
    app = app_for(redis_url)
    kept = [weakref.ref(one) for one in (app, store_of(app), store_of(app).pool, store_of(app).leases)]

    app.close()
    del app
    gc.collect()

    assert [one() for one in kept] == [None] * 4


def test_threads_that_ask_at_the_same_time_get_one_store(redis_url: str) -> None:
    app, together = app_for(redis_url), threading.Barrier(8)

    def ask(_: int) -> Store:
        together.wait(10)
        return store_of(app)

    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(ask, range(8)))
    assert len({id(one) for one in stores}) == 1


def test_a_lease_is_in_doubt_when_nothing_was_acknowledged_for_as_long_as_it_lasts(store: Store) -> None:
    journal = opened(store, new_id())
    assert not journal.lease_in_doubt
    eventually(lambda: journal.lease_in_doubt)

    journal.prove_lease()

    assert not journal.lease_in_doubt


def test_an_attempt_in_doubt_that_was_taken_over_is_fenced(store: Store) -> None:
    journal = opened(store, task_id := new_id())
    eventually(lambda: journal.lease_in_doubt)
    # In doubt from when the opening was sent; in Redis the lease lapses a little later.
    eventually(lambda: isinstance(store.journal(task_id).open(delivery(task_id)), Opened))

    with pytest.raises(Fenced):
        journal.prove_lease()


# -- what a step makes of it

executed: list[str] = []
between: list[Callable[[str], None]] = []


@durable_task(name="lease.two_steps", task_retry_policy=RetryPolicy(max_attempts=1))
def two_steps(ctx: DurableContext, limited: bool) -> None:
    """Lose the lease between two steps, if the test says so in between."""
    ctx.run("first", executed.append, "first")
    between[-1](ctx.task_id)
    options = (RunOptions(max_attempts=3),) if limited else ()
    ctx.run("second", executed.append, *options, "second")


@pytest.mark.parametrize("limited", [False, True])
def test_no_action_starts_in_an_attempt_that_was_frozen_and_taken_over(
    redis_url: str, redis_client: redis.Redis, limited: bool
) -> None:
    executed.clear()
    task_id = new_id()
    with app_at(redis_url, durable_lease=SHORT) as app, store_at(redis_url, durable_lease=SHORT) as other:
        mine = store_of(app)

        def freeze_and_lose(_: str) -> None:
            (ownership,) = mine.leases._held  # noqa: SLF001
            mine.leases.drop(ownership)
            eventually(lambda: ownership.in_doubt)
            lapse(redis_client, other, task_id)
            opened(
                other,
                task_id,
                task=two_steps.name,
                fingerprint=redis_client.hget(other.keys(task_id).run, "fingerprint"),
            )

        between.append(freeze_and_lose)
        assert execute(app.tasks[two_steps.name], limited, task_id=task_id) == "IGNORED"
        entries = redis_client.hgetall(other.keys(task_id).run)

    assert executed == ["first"]
    assert [name for name in entries if name.startswith("step:")] == ["step:1"]
    assert (entries["attempt"], entries["status"]) == ("2", "running")


def test_an_attempt_that_was_frozen_but_not_taken_over_goes_on(redis_url: str, redis_client: redis.Redis) -> None:
    executed.clear()
    task_id = new_id()
    with app_at(redis_url, durable_lease=SHORT) as app:
        store = store_of(app)

        def freeze(_: str) -> None:
            (ownership,) = store.leases._held  # noqa: SLF001
            store.leases.drop(ownership)
            eventually(lambda: ownership.in_doubt)

        between.append(freeze)
        assert execute(app.tasks[two_steps.name], False, task_id=task_id) == "SUCCESS"
        assert redis_client.hget(store.keys(task_id).run, "attempt") == "1"

    assert executed == ["first", "second"]


# -- the threads of a process


def lease_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "celery-durable-leases"]


def test_a_start_that_a_time_limit_cuts_off_makes_no_second_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thread begins to run only when another one was started in its place."""
    made: list[str] = []
    rounds = Rounds("celery-durable-leases", lambda: made.append(threading.current_thread().name) or math.inf)
    start, late = threading.Thread.start, []

    def cut_off(thread: threading.Thread) -> None:
        monkeypatch.undo()
        late.append(thread)
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(threading.Thread, "start", cut_off)
    with pytest.raises(SoftTimeLimitExceeded):
        rounds.expect(0.0)
    rounds.expect(0.0)
    eventually(lambda: made, what="a round of the second thread")

    start(late[0])
    late[0].join(10)

    assert not late[0].is_alive()
    assert len(made) == 1


def test_attempts_that_begin_at_the_same_time_start_one_thread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_rounds", Rounds("celery-durable-leases", lease_module._begin_rounds))  # noqa: SLF001
    before, started, entered = set(lease_threads()), [], []
    start = threading.Thread.start

    def start_slowly(thread: threading.Thread) -> None:
        started.append(thread.name)
        if thread.name == "celery-durable-leases":
            eventually(lambda: len(entered) == 8, what="all to have come")
        start(thread)

    journals, together = [opened(store, new_id()) for _ in range(8)], threading.Barrier(8)

    def keep(journal: RedisJournal) -> None:
        together.wait(10)
        entered.append(journal)
        store.leases.keep(journal.ownership)

    with ThreadPoolExecutor(8) as threads:
        monkeypatch.setattr(threading.Thread, "start", start_slowly)
        kept = [threads.submit(keep, journal) for journal in journals]
        [one.result() for one in kept]
    monkeypatch.undo()

    assert started.count("celery-durable-leases") == 1
    assert len(set(lease_threads()) - before) == 1
    for journal in journals:
        store.leases.drop(journal.ownership)


def test_one_thread_keeps_the_leases_of_all_apps(redis_url: str, redis_client: redis.Redis) -> None:
    with ExitStack() as stack:
        stores = [stack.enter_context(store_at(redis_url, durable_lease=SHORT)) for _ in range(30)]
        before = set(lease_threads())
        held = [(store, opened(store, task_id := new_id()), task_id) for store in stores]
        for store, journal, _ in held:
            store.leases.keep(journal.ownership)
        first = [lease(redis_client, store, task_id) for store, _, task_id in held]

        eventually(
            lambda: all(
                lease(redis_client, store, task_id) > old + 2 * SHORT * 1000
                for (store, _, task_id), old in zip(held, first, strict=True)
            ),
            what="renewals of all apps",
        )

        assert len(set(lease_threads()) | before) <= 1 + len(before)
        eventually(lambda: not [one for one in threading.enumerate() if one.name == "celery-durable-silent-redis"])
        for store, journal, _ in held:
            store.leases.drop(journal.ownership)


def test_a_redis_that_is_silent_keeps_no_other_waiting(redis_url: str, redis_client: redis.Redis) -> None:
    with RedisServer() as silent, store_at(redis_url, durable_lease=SHORT) as store, ExitStack() as stack:
        dead = [stack.enter_context(store_at(silent.url(), durable_lease=SHORT)) for _ in range(8)]
        kept = [
            (store.leases, opened(store, task_id := new_id())),
            *((one.leases, opened(one, new_id())) for one in dead),
        ]
        for keeper, journal in kept:
            keeper.keep(journal.ownership)
        with silent.client() as client:
            eventually(lambda: all(one.pool._idle for one in dead))  # noqa: SLF001
            assert client.ping()
        silent.freeze()
        try:
            for _ in range(4):
                journal, before = kept[0][1], lease(redis_client, store, task_id)
                eventually(lambda old=before: lease(redis_client, store, task_id) > old, deadline=5)
                assert isinstance(store.journal(task_id).open(delivery(task_id)), Busy), "it has never lapsed"
                assert not journal.lease_in_doubt
        finally:
            silent.thaw()
        for keeper, journal in kept:
            keeper.drop(journal.ownership)
        eventually(lambda: not [one for one in threading.enumerate() if one.name == "celery-durable-silent-redis"])
