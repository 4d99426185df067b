"""The index of all runs: each is in one heading, and leaves with its journal."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import redis

from celery_durable import JournalUnavailableError
from celery_durable.app.store import Store
from celery_durable.journal.headings import HEADINGS
from celery_durable.journal.layout import Wait
from celery_durable.journal.port import NO_RESULT
from celery_durable.redis import index as index_module
from celery_durable.redis.client.pool import SHORT_TIMEOUT
from celery_durable.redis.index import Index, Indexed, Range, Sieve
from celery_durable.redis.journal import RedisJournal
from celery_durable.redis.keys import shard_of
from celery_durable.redis.shards import Shards
from tests.integration.runs import TASK, executions, lapse, new_id, opened, store_at
from tests.servers import RedisServer
from tests.waiting import eventually

DAY = 86400.0
OTHER = "tests.other"


@pytest.fixture
def index(store: Store) -> Index:
    return store.index


def headings(index: Index, task_id: str) -> list[str]:
    """Under which headings a run is; under one, if all is well."""
    return [run.heading for run in index.page(1_000, Range(), HEADINGS) if run.task_id == task_id]


def ids(page: list[Indexed]) -> list[str]:
    return [run.task_id for run in page]


MOVES: dict[str, Callable[[RedisJournal], Any]] = {
    "retry": lambda journal: journal.suspend(60, {}),
    "sleep": lambda journal: journal.suspend(60, {}, waits=Wait.SLEEP),
    "stall": lambda journal: journal.suspend(60, {}, waits=Wait.STALL),
    "pause": lambda journal: journal.suspend(60, {}, waits=Wait.PAUSE),
    "succeeded": lambda journal: journal.conclude({"outcome": "{}"}, DAY, NO_RESULT),
    "failed": lambda journal: journal.finish("failed", {"outcome": "{}"}),
    "ignored": lambda journal: journal.finish("ignored", {}),
    "revoked": lambda journal: journal.finish("revoked", {"outcome": "{}"}),
}


@pytest.mark.parametrize("heading", MOVES)
def test_an_end_of_an_attempt_moves_the_run(store: Store, index: Index, heading: str) -> None:
    journal = opened(store, task_id := new_id())
    assert headings(index, task_id) == ["running"]

    MOVES[heading](journal)
    assert headings(index, task_id) == [heading]
    assert index.counts() == {(heading, TASK): 1}

    MOVES[heading](journal) if heading == "succeeded" else None  # its reply was lost
    assert headings(index, task_id) == [heading]


@pytest.mark.parametrize("waits", [Wait.RETRY, Wait.SLEEP, Wait.STALL, Wait.PAUSE])
def test_a_run_that_goes_on_is_running_again(store: Store, index: Index, redis_client: redis.Redis, waits: str) -> None:
    opened(store, task_id := new_id()).suspend(0, {}, waits=waits)

    journal = opened(store, task_id)

    assert headings(index, task_id) == ["running"]
    fields = redis_client.hgetall(store.keys(task_id).run)
    assert "waits" not in fields
    assert fields["attempt.1"].split(" ")[0] == waits
    journal.finish("failed", {"outcome": "{}"})
    assert headings(index, task_id) == ["failed"]


def test_a_run_whose_attempt_died_stays_where_it_is(store: Store, index: Index, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id())
    lapse(redis_client, store, task_id)

    opened(store, task_id)

    assert headings(index, task_id) == ["running"]
    how, _began, left, *_ = redis_client.hget(store.keys(task_id).run, "attempt.1").split(" ")
    assert (how, left) == ("running", ""), "it has left no word"


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("heading", MOVES)
def test_a_run_whose_process_only_seemed_to_be_lost_is_under_one_heading(
    store: Store, index: Index, redis_client: redis.Redis, heading: str, sent: bool
) -> None:
    """It was frozen, say. A worker has claimed the run, and its message has found the lease renewed."""
    journal = opened(store, task_id := new_id())
    lapse(redis_client, store, task_id)
    claimed = [run for claims in store.runs.claim([TASK]) for run in claims.runs]
    assert [run.task_id for run in claimed] == [task_id]
    assert headings(index, task_id) == ["running"]
    if not sent:
        store.runs.unclaim(claimed)

    MOVES[heading](journal)

    assert headings(index, task_id) == [heading]


def test_the_newest_hundred_attempts_are_kept(store: Store, redis_client: redis.Redis) -> None:
    task_id = new_id()
    for _ in range(103):
        opened(store, task_id).suspend(0, {})

    kept = {name for name in redis_client.hkeys(store.keys(task_id).run) if name.startswith("attempt.")}

    assert kept == {f"attempt.{number}" for number in range(4, 103)}, "the fields of the run tell of the newest one"


def test_an_end_after_a_suspension_moves_the_run(store: Store, index: Index) -> None:
    """The message of its retry could not be sent, say."""
    journal = opened(store, task_id := new_id())
    journal.suspend(60, {})

    journal.finish("failed", {"outcome": "{}"})

    assert headings(index, task_id) == ["failed"]


@pytest.mark.parametrize("waits", [None, Wait.SLEEP])
def test_a_run_that_is_terminated_moves(store: Store, index: Index, waits: str | None) -> None:
    journal = opened(store, task_id := new_id())
    if waits is not None:
        journal.suspend(60, {}, waits=waits)

    assert store.runs.terminate(task_id, "revoked", DAY, "{}")

    assert headings(index, task_id) == ["revoked"]


def test_a_run_that_is_not_kept_leaves_at_once(store: Store, index: Index, redis_client: redis.Redis) -> None:
    journal = opened(store, task_id := new_id())
    journal.finish("succeeded", {"outcome": "{}"})

    journal.deliver(0)

    eventually(lambda: not redis_client.exists(store.keys(task_id).run), what="the deletion")
    assert headings(index, task_id) == []
    assert index.counts() == {}


def test_a_run_in_place_of_another_one_is_of_its_own_task(store: Store, index: Index) -> None:
    opened(store, task_id := new_id()).conclude({"outcome": "{}"}, DAY, NO_RESULT)

    opened(store, task_id, task=OTHER, nesting=1)

    assert index.counts() == {("running", OTHER): 1}


def test_expired_journals_are_not_counted(store: Store, index: Index, redis_client: redis.Redis) -> None:
    kept, *expired = (new_id() for _ in range(5))
    for task_id in (*expired, kept):
        opened(store, task_id).conclude({"outcome": "{}"}, DAY, NO_RESULT)
    for task_id in expired:
        redis_client.delete(store.keys(task_id).run)

    assert index.counts() == {("succeeded", TASK): 1}


def test_journals_that_have_expired_behind_one_that_is_kept_are_swept(
    store: Store, index: Index, redis_client: redis.Redis
) -> None:
    """The run that has slept for long is the oldest, and is kept longer than those that were created after it."""
    slept, expired = new_id(), [new_id() for _ in range(40)]
    for task_id in (slept, *expired):
        opened(store, task_id).conclude({"outcome": "{}"}, DAY, NO_RESULT)
    for shard in store.shards:
        redis_client.zadd(f"{shard.prefix}index:succeeded:{TASK}", {slept: 0}, xx=True)
    for task_id in expired:
        redis_client.delete(store.keys(task_id).run)

    index.sweep()

    assert ids(index.page(100, Range(), HEADINGS)) == [slept]


def in_one_shard(number: int) -> list[str]:
    return list(islice((task_id for task_id in iter(new_id, "") if shard_of(task_id) == 3), number))


def test_a_sweep_goes_on_at_once_while_many_runs_leave(
    store: Store, index: Index, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_LOOKS_OF_SWEEP", 10)
    monkeypatch.setattr(index_module, "_MANY_MOVED", 5)
    slept, *expired = in_one_shard(61)
    for task_id in (slept, *expired):
        opened(store, task_id).conclude({"outcome": "{}"}, DAY, NO_RESULT)
    redis_client.zadd(f"durable:{{3}}:index:succeeded:{TASK}", {slept: 0}, xx=True)
    redis_client.delete(*(store.keys(task_id).run for task_id in expired))

    index.sweep()

    assert ids(index.page(100, Range(), HEADINGS)) == [slept]


def test_each_sweep_looks_at_another_part_of_a_large_index(
    store: Store, index: Index, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_LOOKS_OF_SWEEP", 10)
    runs = in_one_shard(41)
    for number, task_id in enumerate(runs):
        opened(store, task_id, task=(TASK, OTHER)[number % 2]).conclude({"outcome": "{}"}, DAY, NO_RESULT)
    for task_id in (runs[20], runs[31]):
        redis_client.delete(store.keys(task_id).run)

    for _ in range(5):
        index.sweep()

    assert sorted(ids(index.page(100, Range(), HEADINGS))) == sorted({*runs} - {runs[20], runs[31]})


@pytest.mark.parametrize("waits", [Wait.SLEEP, None])
def test_a_run_that_a_version_without_the_index_has_suspended_enters(
    store: Store, index: Index, redis_client: redis.Redis, waits: str | None
) -> None:
    """An older one does not say what the run waits for."""
    opened(store, task_id := new_id()).suspend(60, {}, waits=Wait.SLEEP)
    redis_client.delete(*redis_client.keys("*index*"))
    if waits is None:
        redis_client.hdel(store.keys(task_id).run, "waits")
    assert index.counts() == {}

    index.sweep()
    index.sweep()

    heading = waits or "suspended"
    assert headings(index, task_id) == [heading]
    assert index.counts() == {(heading, TASK): 1}


def test_a_run_that_a_version_without_the_index_has_moved_is_swept_to_its_heading(
    store: Store, index: Index, redis_client: redis.Redis
) -> None:
    opened(store, task_id := new_id()).suspend(60, {}, waits=Wait.SLEEP)
    redis_client.hset(store.keys(task_id).run, mapping={"status": "failed", "outcome": "{}"})
    redis_client.zrem(store.keys(task_id).due, task_id)

    index.sweep()

    assert index.counts() == {("failed", TASK): 1}


def test_a_redis_that_is_away_does_not_keep_a_sweep_from_the_others(store: Store, redis_client: redis.Redis) -> None:
    [task_id] = in_one_shard(1)
    opened(store, task_id).suspend(60, {}, waits=Wait.SLEEP)
    redis_client.delete(*redis_client.keys("*index*"))
    answering, away = store.shards.of(task_id).pool, Mock()
    away.execute.side_effect = JournalUnavailableError("away")
    some_away = Shards("durable:", lambda prefix: answering if "{3}" in prefix else away)

    with pytest.raises(JournalUnavailableError, match="away"):
        Index(some_away).sweep()

    assert headings(store.index, task_id) == ["sleep"]
    assert [told.kwargs for told in away.execute.call_args_list] == [{"timeout": SHORT_TIMEOUT}]


def test_all_that_waits_enters_though_one_call_looks_at_a_few(
    store: Store, index: Index, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_LOOKS_OF_SWEEP", 10)
    for task_id in in_one_shard(35):
        opened(store, task_id).suspend(60, {}, waits=Wait.SLEEP)
    redis_client.delete(*redis_client.keys("*index*"))

    for _ in range(4):
        index.sweep()

    assert index.counts() == {("sleep", TASK): 35}


def test_a_journal_that_does_not_say_when_it_was_created_stops_nothing(
    store: Store, index: Index, redis_client: redis.Redis
) -> None:
    damaged, whole = in_one_shard(2)
    for task_id in (damaged, whole):
        opened(store, task_id)
        lapse(redis_client, store, task_id)
    redis_client.hdel(store.keys(damaged).run, "created")
    assert {run.task_id for run in index.page(10, Range(), HEADINGS)} == {damaged, whole}

    found = [run.task_id for claims in store.runs.claim([TASK]) for run in claims.runs]

    assert sorted(found) == sorted([damaged, whole])
    assert index.counts() == {("running", TASK): 2}


@pytest.mark.parametrize("heading", MOVES)
def test_an_attempt_ends_though_its_journal_does_not_say_when_it_was_created(
    store: Store, index: Index, redis_client: redis.Redis, heading: str
) -> None:
    journal = opened(store, task_id := new_id())
    redis_client.hdel(store.keys(task_id).run, "created")

    MOVES[heading](journal)

    assert headings(index, task_id) == [heading]


def test_pages_are_read_from_the_newest_run_to_the_oldest(
    store: Store, index: Index, redis_client: redis.Redis
) -> None:
    """Many are created in one millisecond."""
    runs = []
    for number in range(60):
        task_id, created = new_id(), 1_000 + number // 7
        opened(store, task_id, task=(TASK, OTHER)[number % 2])
        keys, heading = store.keys(task_id), ("running", "failed")[number // 2 % 2]
        redis_client.hset(keys.run, mapping={"created": created})
        if heading == "failed":
            assert store.runs.terminate(task_id, "failed", DAY, "{}")
        runs.append((created, task_id, heading))
    runs.sort(reverse=True)
    expected = [task_id for _, task_id, _ in runs]

    for size in (1, 4, 25, 60, 100):
        read, span = [], Range()
        while page := index.page(size, span, HEADINGS):
            read += page
            span = span.behind(page[-1])
        assert ids(read) == expected

    some = index.page(100, Range(newest=1_005, oldest=1_002), ["running"])
    assert [run[:3] for run in some] == [run for run in runs if 1_002 <= run[0] <= 1_005 and run[2] == "running"]
    assert len(index.page(100, Range(), HEADINGS, [OTHER])) == 30
    assert index.page(100, Range(), ["revoked"]) == []


def call_with(*args: Any, **options: Any) -> str:
    """A call as a journal keeps it."""
    return json.dumps({"args": args, "kwargs": {}, "options": {"queue": "celery", **options}})


@pytest.mark.parametrize("looks", [1, 7, 1_000])
def test_a_search_reads_a_few_journals_at_a_time_and_misses_none(
    store: Store, index: Index, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """Many are created in one millisecond; some are running."""
    monkeypatch.setattr(index_module, "_LOOKS", looks)
    wanted = []
    for number in range(90):
        created = 1_000 + number // 40
        said, task_id = "other" if number % 3 else "THIRD", new_id()
        opened(store, task_id, call=call_with(said), task=(TASK, OTHER)[number % 2]).close()
        redis_client.hset(store.keys(task_id).run, mapping={"created": created})
        if number % 5:
            assert store.runs.terminate(task_id, ("failed", "revoked")[number % 4 // 2], DAY, "{}")
        if not number % 3:
            wanted.append((created, task_id))
    wanted.sort(reverse=True)
    expected = [task_id for _, task_id in wanted]

    for size in (1, 4, 30, 100):
        read, span = [], Range()
        while page := index.page(size, span, HEADINGS, (), Sieve("third")):
            read += page
            span = span.behind(page[-1])
        assert ids(read) == expected
    assert index.page(100, Range(), HEADINGS, (), Sieve("neither")) == []


@pytest.fixture
def english_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server that compares texts as people do who write English: "a" comes before "B"."""
    made = ["localedef", "-i", "en_US", "-f", "UTF-8", tmp_path / "en_US.UTF-8"]
    if not shutil.which("localedef") or subprocess.run(made, check=False, capture_output=True).returncode:
        pytest.skip("no locale can be made here")
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    with RedisServer() as server:
        yield server.url()


def test_the_order_of_texts_does_not_depend_on_the_language_of_the_server(
    english_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_LOOKS", 1)
    texts = ["B", "B1", "a", "a-1", "a1", "C", "_"]
    runs = sorted((f"{text}{number}", f"shop.{text}") for text in texts for number in range(8))
    with store_at(english_url) as store, redis.Redis.from_url(english_url) as client:
        assert client.eval("return {'B' < 'a'}", 0) == [None], "a script of this server compares so"
        for task_id, task in runs:
            opened(store, task_id, call=call_with("it"), task=task).close()
            client.hset(store.keys(task_id).run, mapping={"created": 1_000})
            assert store.runs.terminate(task_id, "failed", DAY, "{}")
        for sieve in (Sieve(), Sieve("it")):
            read, span = [], Range()
            while page := store.index.page(5, span, HEADINGS, (), sieve):
                read += page
                span = span.behind(page[-1])
            assert ids(read) == [task_id for task_id, _ in reversed(runs)]


def test_a_search_looks_at_large_arguments_in_more_calls(store: Store, index: Index, redis_client: redis.Redis) -> None:
    """A call reads about 500 journals of 1 KiB."""
    for task_id in in_one_shard(20):
        opened(store, task_id, call=call_with("x" * 200_000)).close()
        assert store.runs.terminate(task_id, "failed", DAY, "{}")
    before = executions(redis_client, "evalsha")

    assert index.page(10, Range(), HEADINGS, (), Sieve("y")) == []

    assert executions(redis_client, "evalsha") - before == 15 + math.ceil(20 / 3)


BASKET = {"basket": 1, "options": {"late": "o1"}}


@pytest.mark.parametrize(
    ("needle", "call", "is_found"),
    [
        ("o1", call_with(BASKET), True),
        ("basket", call_with(BASKET), True),
        ("late", call_with(BASKET), True),
        ("o1", call_with("O1"), True),
        ("o1", call_with("o", 1), False),
        ("celery", call_with("o1"), False),
        ("later", call_with(link=[{"args": [], "options": {"queue": "later"}}]), False),
        ("o1", call_with({"__type__": "datetime", "__value__": "2026-01-02T03:04:05"}), True),
        ("o1", '{"content_type": "application/x-yaml", "data": "..."}', True),
        ("o1", '{"args": [2]}', False),
        ("o1", "", True),
    ],
)
def test_a_sieve_leaves_out_what_certainly_has_no_such_argument(
    store: Store, index: Index, needle: str, call: str, is_found: bool
) -> None:
    opened(store, "the-run", call=call).conclude({"outcome": "{}"}, DAY, NO_RESULT)

    assert ids(index.page(10, Range(), HEADINGS, (), Sieve(needle))) == (["the-run"] if is_found else [])


def test_a_run_that_seemed_to_be_lost_and_has_its_lease_again_is_there_once(
    store: Store, index: Index, redis_client: redis.Redis
) -> None:
    journal = opened(store, task_id := new_id())
    lapse(redis_client, store, task_id)
    assert [run for claims in store.runs.claim([TASK]) for run in claims.runs]

    journal.prove_lease()

    assert headings(index, task_id) == ["running"]
    assert index.counts() == {("running", TASK): 1}


def test_the_index_keeps_no_names_of_what_is_empty(store: Store, index: Index, redis_client: redis.Redis) -> None:
    journal = opened(store, task_id := new_id())
    journal.suspend(60, {})
    journal.finish("failed", {"outcome": "{}"})
    journal.deliver(0)
    eventually(lambda: not redis_client.exists(store.keys(task_id).run), what="the deletion")

    index.sweep()

    assert redis_client.keys("*index*") == []


def test_a_run_that_was_met_under_another_heading_is_put_under_its_own(
    store: Store, index: Index, redis_client: redis.Redis
) -> None:
    """A worker of an older version has moved it without the index."""
    opened(store, task_id := new_id())
    redis_client.hset(store.keys(task_id).run, mapping={"status": "suspended", "waits": "sleep"})

    index.refile([Indexed(0, task_id, "running", TASK)])
    assert headings(index, task_id) == ["sleep"]
    index.refile([Indexed(0, task_id, "sleep", TASK)])
    assert headings(index, task_id) == ["sleep"]

    redis_client.delete(store.keys(task_id).run)
    index.refile([Indexed(0, task_id, "sleep", TASK)])
    assert headings(index, task_id) == []


def test_a_run_that_stands_under_two_headings_is_swept_from_the_wrong_one(
    store: Store, index: Index, redis_client: redis.Redis
) -> None:
    """A version without the index has reopened a failed run, and a newer one has ended it."""
    opened(store, task_id := new_id()).conclude({"outcome": "{}"}, DAY, NO_RESULT)
    shard = store.keys(task_id).leases.removesuffix("leases")
    redis_client.zadd(f"{shard}index:failed:{TASK}", {task_id: 1})
    redis_client.zadd(f"{shard}index", {f"failed:{TASK}": 0})
    assert index.counts() == {("succeeded", TASK): 1, ("failed", TASK): 1}

    index.sweep()

    assert index.counts() == {("succeeded", TASK): 1}
