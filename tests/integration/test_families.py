"""Runs that do the same work, because one restarts the other: only one of them is at it, whoever begins when."""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import redis
from celery import Celery

from celery_durable import (
    JournalUnavailableError,
    JournalUnreadableError,
    RunNotRestartableError,
    RunNotRetryableError,
    Runs,
)
from celery_durable.app.store import Store, store_of
from celery_durable.journal.port import Busy, Finished, Opened, OpenResult
from celery_durable.operate.verbs.restarting import restart_run
from celery_durable.redis.family import Families, Relative, Standing
from tests.integration.runs import app_at, deliver, delivery, new_id, opened, sent
from tests.integration.test_restart import began, failed_again
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("empty_broker")


@pytest.fixture
def family(store: Store, redis_client: redis.Redis) -> list[str]:
    """A run and two that restart it, all of which have failed; the smallest id first."""
    first, *others = ids = sorted(new_id() for _ in range(3))
    for task_id in ids:
        journal = opened(store, task_id)
        journal.finish("failed", {"outcome": "{}"})
        journal.deliver(24 * 3600)
        journal.flush()
        journal.close()
    for other in others:
        store.runs.note(first, "restart", None, other, other)
        redis_client.hset(store.keys(other).run, "ancestors", json.dumps([first]))
    return ids


def retried(store: Store, task_id: str, families: Families | None = None) -> OpenResult:
    """What a worker is answered to the message of a Retry."""
    reserve = partial((families or store.families).reserve, task_id)
    journal = store.journal(task_id)
    try:
        return journal.open(delivery(task_id, reopen=f"again {task_id}"), reserve)
    finally:
        journal.close()


def fields(store: Store, task_id: str) -> dict[bytes, bytes]:
    return store.runs.load(task_id)


@pytest.mark.parametrize("pair", [(0, 1), (1, 2)], ids=["a run and its restart", "two restarts"])
def test_of_two_retries_at_the_same_moment_one_begins(
    store: Store, family: list[str], monkeypatch: pytest.MonkeyPatch, pair: tuple[int, int]
) -> None:
    """Both have said so before either looks."""
    smaller, larger = (family[number] for number in pair)
    both_have_said_so = threading.Barrier(2)
    looks: set[str] = set()
    look = Families.nearest

    def nearest(self: Families, task_id: str, known: Any) -> Relative | None:
        if task_id not in looks:
            looks.add(task_id)
            both_have_said_so.wait(10)
        return look(self, task_id, known)

    monkeypatch.setattr(Families, "nearest", nearest)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(partial(retried, store), (smaller, larger)))

    assert [type(answer) for answer in answers] == [Opened, Finished]
    assert [fields(store, task_id)[b"status"] for task_id in (smaller, larger)] == [b"running", b"failed"]
    assert not any(b"reserved" in fields(store, task_id) for task_id in family)


def test_two_messages_that_retry_one_run_begin_one_attempt(store: Store, family: list[str]) -> None:
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(partial(retried, store), [family[0]] * 2))

    assert {type(answer) for answer in answers} == {Opened, Busy}
    assert fields(store, family[0])[b"attempt"] == b"2"


def test_a_retry_whose_reservation_has_lapsed_looks_again(
    store: Store, redis_client: redis.Redis, family: list[str]
) -> None:
    """Its process stood still, say, and a restart has begun meanwhile."""
    tokens: list[str | None] = []

    def reserve(known: Any, token: str) -> str | None:
        tokens.append(store.families.reserve(family[1], known, token))
        if len(tokens) == 1:
            redis_client.hset(store.keys(family[1]).run, "reserved", f"1 {tokens[0]}")
            assert isinstance(retried(store, family[2]), Opened)
        return tokens[-1]

    answer = store.journal(family[1]).open(delivery(family[1], reopen="again"), reserve)

    assert isinstance(answer, Finished)
    assert [token is None for token in tokens] == [False, True]


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_restart_waits_for_what_becomes_of_a_retry(
    store: Store, redis_client: redis.Redis, family: list[str], goes_on: bool
) -> None:
    token = store.families.reserve(family[2], fields(store, family[2]))
    new = {b"ancestors": json.dumps(family[:2]).encode()}
    other = store.families.nearest("new", new)
    assert other is not None
    assert (other.standing, other.task_id) == (Standing.RESERVED, family[2])

    with ThreadPoolExecutor(1) as thread:
        may_begin = thread.submit(store.families.may_begin, "new", new)
        eventually(lambda: not may_begin.done(), what="the restart that looks")
        if goes_on:
            known = delivery(family[2], reopen="again")
            assert isinstance(store.journal(family[2]).open(known, lambda *_: token), Opened)
        else:
            redis_client.hset(store.keys(family[2]).run, "reserved", f"1 {token}")
        assert may_begin.result(10) is not goes_on


def test_a_retry_makes_way_for_a_restart(
    store: Store, redis_client: redis.Redis, family: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    redis_client.hset(store.keys(family[1]).run, mapping={"status": "suspended", "waits": "pause"})

    assert isinstance(retried(store, family[2]), Finished)

    assert f"task {family[2]}: its Retry begins nothing, {family[1]} does the same work" in caplog.text

    assert b"reserved" not in fields(store, family[2])


def test_runs_of_one_family_that_are_retried_together_do_the_work_once(app: Celery, runs: Runs) -> None:
    """`celery durable retry --state FAILURE --yes`."""
    task, old, new = failed_again(app, runs)
    task.mended = True
    for task_id in (old, new):
        runs.retry(task_id)

    assert [deliver(task, message) for message in sent(app)] == ["SUCCESS", "IGNORED"]

    assert task.ran == {"reserve": 2, "charge": 3, "ship": 1}
    assert [runs.get(task_id).state for task_id in (old, new)] == ["SUCCESS", "FAILURE"]
    with pytest.raises(RunNotRetryableError, match=f"does the same work as {old}, which has succeeded since"):
        runs.retry(new)


def test_what_a_restart_has_done_is_not_retried(app: Celery, runs: Runs) -> None:
    task, old = began(app)
    runs.retry(old)
    [late] = sent(app)
    new = runs.restart(old)
    assert deliver(task, sent(app)[0]) == "SUCCESS"

    with pytest.raises(RunNotRetryableError, match=f"was restarted as {new}, which has succeeded since"):
        runs.retry(old)
    assert deliver(task, late) == "IGNORED"
    assert task.ran == {"reserve": 2, "charge": 2, "ship": 1}

    again = runs.restart(old)
    assert deliver(task, sent(app)[0]) == "SUCCESS", "somebody wants it once more"
    assert runs.get(again).restarted_from == old


def test_a_restart_of_what_has_succeeded_can_be_retried(app: Celery, runs: Runs) -> None:
    """The success is older than the wish to do the work once more."""
    task, old = began(app)
    runs.retry(old)
    assert deliver(task, sent(app)[0]) == "SUCCESS"
    task.mended = False
    new = runs.restart(old)
    assert deliver(task, sent(app)[0]) == "FAILURE"

    task.mended = True
    runs.retry(new)

    assert deliver(task, sent(app)[0]) == "SUCCESS"


def test_a_retry_does_not_wait_for_its_own_reservation(store: Store, family: list[str]) -> None:
    """Somebody has noted something meanwhile, so the script sends it back to look once more."""
    looks: list[str] = []

    def reserve(known: Any, token: str) -> str | None:
        looks.append(token)
        if len(looks) == 1:
            reserved = store.families.reserve(family[1], known, token)
            store.runs.note(family[1], "retry", "ann", "r1")
            return reserved
        return store.families.reserve(family[1], known, token)

    assert isinstance(store.journal(family[1]).open(delivery(family[1], reopen="again"), reserve), Opened)
    assert [token != "" for token in looks] == [False, True]


def test_a_reservation_that_never_lapses_holds_no_worker_for_ever(redis_url: str, redis_client: redis.Redis) -> None:
    with app_at(redis_url, durable_lease=1) as app:
        families, key = store_of(app).families, store_of(app).keys("a").run
        redis_client.hset(key, mapping={"status": "failed", "reserved": "99999999999999 another"})
        with pytest.raises(JournalUnavailableError, match="another Retry is about to reopen it, and does not"):
            families.reserve("a", {b"ancestors": b'["x"]'})


@pytest.mark.parametrize(
    "damage", [{"reserved": ""}, {"reserved": "x y"}, {"status": "succeeded", "ended": "soon"}], ids=str
)
def test_a_damaged_relative_stops_nobody(
    store: Store, redis_client: redis.Redis, family: list[str], damage: dict[str, str]
) -> None:
    redis_client.hset(store.keys(family[0]).run, mapping=damage)

    assert isinstance(retried(store, family[1]), Opened)


def test_a_relative_whose_actions_are_no_actions_is_told(
    store: Store, redis_client: redis.Redis, family: list[str]
) -> None:
    redis_client.hset(store.keys(family[0]).run, "actions", "7\n")

    with pytest.raises(JournalUnreadableError, match="actions is damaged"):
        retried(store, family[1])


def test_a_success_after_a_cancellation_is_not_the_work(
    store: Store, redis_client: redis.Redis, family: list[str]
) -> None:
    """Its body has caught the error, and has returned."""
    later = int(fields(store, family[1])[b"ended"]) + 1
    redis_client.hset(store.keys(family[0]).run, mapping={"status": "succeeded", "ended": later, "cancel": "raised"})

    assert isinstance(retried(store, family[1]), Opened)


def test_a_restart_that_is_asked_for_again_looks_again(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first delivery has broken off before it could look, and a Retry has begun since."""
    _, old, new = failed_again(app, runs)
    with monkeypatch.context() as patched:
        patched.setattr(Families, "may_begin", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            restart_run(app, old, "third")
    redis_client.hset(store.keys(new).run, "status", "running")

    with pytest.raises(RunNotRestartableError, match="somebody has restarted or retried it just now"):
        restart_run(app, old, "third")
    assert runs.get("third").state == "PAUSED"

    redis_client.hset(store.keys(new).run, "status", "failed")
    assert restart_run(app, old, "third") == "third"
    assert runs.get("third").state == "RETRY"


def test_a_restart_is_known_to_a_run_that_was_purged_a_moment_ago(app: Celery, runs: Runs, store: Store) -> None:
    _, old, new = failed_again(app, runs)
    runs.purge(old)

    assert store.runs.note_restart(old, "ann", "third", new)

    other = store.families.nearest(new, fields(store, new))
    assert other is None, "the third has no journal yet"
    opened(store, "third")
    other = store.families.nearest(new, fields(store, new))
    assert other is not None
    assert (other.standing, other.task_id) == (Standing.AT_WORK, "third")


def test_a_run_that_is_brought_back_knows_what_has_restarted_it_since(app: Celery, runs: Runs) -> None:
    _, old = began(app)
    document = runs.export(old)
    new = runs.restart(old)
    runs.purge(old)
    runs.import_(document)

    with pytest.raises(RunNotRetryableError, match=f"was restarted as {new}, which has not ended"):
        runs.retry(old)
    assert [action.what for action in runs.get(old).actions] == ["restart", "import"]


def test_a_run_whose_actions_are_damaged_is_purged(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis
) -> None:
    _, old, new = failed_again(app, runs)
    key = store.keys(old).run
    redis_client.hset(key, "actions", f'7\n{{"what":\n{redis_client.hget(key, "actions")}')

    runs.purge(old)

    [line] = str(redis_client.hget(key, "actions")).splitlines()
    assert json.loads(line)["run"] == new


def test_a_run_that_was_purged_still_tells_its_restarts_of_each_other(app: Celery, runs: Runs) -> None:
    task, old, first = failed_again(app, runs)
    task.mended = False
    second = runs.restart(old)
    assert deliver(task, sent(app)[0]) == "FAILURE"
    runs.purge(old, by="ann")
    third = runs.restart(second)
    alive = f"does the same work as {third}, which has not ended"

    with pytest.raises(RunNotRetryableError, match=alive):
        runs.retry(first)
    with pytest.raises(RunNotRestartableError, match=alive):
        runs.restart(first)
