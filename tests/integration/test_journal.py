"""The journal of a run in a real Redis: who may open it, the fence, lost acknowledgements, TTLs, and how it reads."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery.signals import before_task_publish

from celery_durable import ConfigurationError, JournalUnreadableError, RunOptions, TerminalError
from celery_durable.app.store import Store, store_of
from celery_durable.delivery.call import Call
from celery_durable.delivery.message import HEADER
from celery_durable.interrupts import Fenced
from celery_durable.journal.entries import done_entry, open_entry, started_entry
from celery_durable.journal.port import Busy, Finished, IdConflict, JournalGone, Opened, Outdated
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
    server_ms,
    state,
    store_at,
    task_of,
    text,
    written,
)
from tests.servers import RedisServer
from tests.waiting import eventually

DAY = 24 * 3600.0


def finished(store: Store, status: str = "succeeded", keep: float = DAY, task_id: str = "", **fields: str) -> str:
    """Make a run that has ended, delivered; return its id."""
    journal = opened(store, task_id := task_id or new_id())
    written(journal, fields) if fields else None
    journal.finish(status, {"outcome": '{"value":1}'})
    journal.deliver(keep)
    journal.prove_lease() if keep > 0 else None  # reads the replies
    journal.close()
    return task_id


# -- beginning


def test_the_first_attempt_creates_the_run(store: Store, redis_client: redis.Redis) -> None:
    verdict = store.journal(task_id := new_id()).open(delivery(task_id, call='{"args":[1]}', build="b1"))

    assert isinstance(verdict, Opened)
    assert (verdict.number, verdict.recoveries, verdict.reopened) == (1, 0, False)
    fields = redis_client.hgetall(store.keys(task_id).run)
    assert text(verdict.fields) == {"seed": fields["seed"], "build": "b1"}, "nothing else is there to be loaded"
    assert fields["build"] == "b1"
    assert fields["v"] == "1"
    assert (fields["task"], fields["fingerprint"], fields["call"]) == (TASK, "f1", '{"args":[1]}')
    assert (fields["status"], fields["attempt"], fields["recoveries"]) == ("running", "1", "0")
    assert re.fullmatch("[0-9a-f]{32}", fields["seed"])
    assert redis_client.ttl(store.keys(task_id).run) == -1


def test_a_new_run_has_nothing_left_of_an_older_one(store: Store, redis_client: redis.Redis) -> None:
    """Its journal was deleted while it waited; an old due time would keep recovery from finding the new one."""
    waiting = opened(store, task_id := new_id())
    waiting.suspend(3600, {})
    redis_client.delete(store.keys(task_id).run)

    opened(store, task_id)

    assert redis_client.zscore(store.keys(task_id).due, task_id) is None


def test_runs_have_seeds_of_their_own(store: Store) -> None:
    seeds = [store.journal(one).open(delivery(one)).fields[b"seed"] for one in (new_id(), new_id())]

    assert seeds[0] != seeds[1]


def test_a_second_delivery_of_a_live_run_is_told_how_long_the_lease_lasts(
    store: Store, redis_client: redis.Redis
) -> None:
    opened(store, task_id := new_id())
    before = state(redis_client, store, task_id)

    verdict = store.journal(task_id).open(delivery(task_id))

    assert isinstance(verdict, Busy)
    assert 29 < verdict.wait <= 30
    assert "another attempt" in verdict.reason
    assert state(redis_client, store, task_id) == before


def test_a_suspended_run_is_early_until_its_time_has_come(store: Store, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id()).suspend(60, {})
    before = state(redis_client, store, task_id)

    verdict = store.journal(task_id).open(delivery(task_id))

    assert isinstance(verdict, Busy)
    assert 59 < verdict.wait <= 60
    assert "due" in verdict.reason
    assert state(redis_client, store, task_id) == before


def test_a_suspended_run_goes_on_when_its_time_has_come(store: Store, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id()).suspend(0.2, {"failures": "1"})
    due = int(redis_client.hget(store.keys(task_id).run, "due"))

    verdict = eventually(
        lambda: found if isinstance(found := store.journal(task_id).open(delivery(task_id)), Opened) else None
    )

    assert verdict.now >= due
    assert (verdict.number, verdict.recoveries) == (2, 0)
    assert verdict.fields[b"failures"] == b"1"
    after = state(redis_client, store, task_id)
    assert after["due"] is None
    assert "due" not in after["fields"]
    assert after["lease"] == verdict.now + 30_000


def test_a_finished_run_is_not_opened_again(store: Store, redis_client: redis.Redis) -> None:
    task_id = finished(store)
    before = state(redis_client, store, task_id)

    for fresh in (True, False):
        verdict = store.journal(task_id).open(delivery(task_id, fresh=fresh))
        assert isinstance(verdict, Finished)
        assert verdict.fields[b"outcome"] == b'{"value":1}'
    assert state(redis_client, store, task_id) == before


@pytest.mark.parametrize("facts", [{"task": "shop.refund"}, {"fingerprint": "f2"}])
@pytest.mark.parametrize("status", ["running", "suspended", "succeeded", "failed"])
def test_an_id_that_belongs_to_another_run_is_refused(
    store: Store, redis_client: redis.Redis, facts: dict[str, str], status: str
) -> None:
    journal = opened(store, task_id := new_id())
    if status == "suspended":
        journal.suspend(0, {})
    elif status != "running":
        journal.finish(status, {})
    before = state(redis_client, store, task_id)

    verdict = store.journal(task_id).open(delivery(task_id, **facts))

    assert isinstance(verdict, IdConflict)
    assert verdict.task == TASK
    assert state(redis_client, store, task_id) == before


def test_arguments_that_were_changed_on_purpose_are_taken_over(store: Store, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id()).suspend(0, {})

    opened(store, task_id, fingerprint="f2", call='{"args":[2]}', changed=1, fresh=False)

    fields = redis_client.hgetall(store.keys(task_id).run)
    assert (fields["fingerprint"], fields["call"], fields["attempt"]) == ("f2", '{"args":[2]}', "2")


def test_arguments_older_than_the_newest_change_are_refused(store: Store, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id()).suspend(0, {})
    opened(store, task_id, fingerprint="f3", changed=2, fresh=False).suspend(0, {})
    before = state(redis_client, store, task_id)

    for outdated in ({"fingerprint": "f1"}, {"fingerprint": "f2", "changed": 1}):
        verdict = store.journal(task_id).open(delivery(task_id, fresh=False, **outdated))
        assert verdict == Outdated("a newer message has other arguments")
    for other in ({"fingerprint": "f4", "changed": 2, "fresh": False}, {"fingerprint": "f1"}):
        assert isinstance(store.journal(task_id).open(delivery(task_id, **other)), IdConflict)

    assert state(redis_client, store, task_id) == before


@pytest.mark.parametrize("layout", ["0", "", "none"])
def test_what_has_no_layout_is_left_alone(store: Store, redis_client: redis.Redis, layout: str) -> None:
    opened(store, task_id := new_id()).suspend(0, {})
    key = store.keys(task_id).run
    redis_client.hset(key, "v", layout)
    before = state(redis_client, store, task_id)

    with pytest.raises(JournalUnreadableError, match=f"{re.escape(key)} has layout '{layout}'.*upgrade"):
        store.journal(task_id).open(delivery(task_id))

    assert state(redis_client, store, task_id) == before


# -- the fence


ENDINGS: dict[str, Callable[[RedisJournal], None]] = {
    "record": lambda journal: written(journal, {"step:1": "stale", "progress": "1"}),
    "suspend": lambda journal: journal.suspend(5, {"step:1": "stale"}),
    "finish": lambda journal: journal.finish("failed", {"outcome": "stale"}),
    "prove_lease": lambda journal: journal.prove_lease(),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("later", ["running", "suspended", "succeeded"])
def test_a_stale_attempt_is_refused_and_changes_nothing(
    store: Store, redis_client: redis.Redis, ending: str, later: str
) -> None:
    stale = opened(store, task_id := new_id())
    lapse(redis_client, store, task_id)
    newer = opened(store, task_id)
    written(newer, {"step:1": done_entry("charge", 1, 1, 1, {}, "1"), "progress": "2"})
    if later == "suspended":
        newer.suspend(60, {})
    elif later == "succeeded":
        newer.finish("succeeded", {"outcome": '{"value":1}'})
    before = state(redis_client, store, task_id)

    with pytest.raises(Fenced):
        ENDINGS[ending](stale)

    assert state(redis_client, store, task_id) == before


@pytest.mark.parametrize("keep", [DAY, 0])
def test_a_stale_attempt_cannot_mark_or_delete_the_outcome_of_another(
    store: Store, redis_client: redis.Redis, keep: float
) -> None:
    stale = opened(store, task_id := new_id())
    lapse(redis_client, store, task_id)
    opened(store, task_id).finish("succeeded", {"outcome": '{"value":1}'})
    before = state(redis_client, store, task_id)

    stale.deliver(60 if keep else 0)
    with pytest.raises(Fenced):
        stale.prove_lease()

    assert state(redis_client, store, task_id) == before
    assert "delivered" not in before["fields"]


def test_an_attempt_that_was_fenced_once_stays_fenced(store: Store, redis_client: redis.Redis) -> None:
    stale = opened(store, task_id := new_id())
    lapse(redis_client, store, task_id)
    opened(store, task_id)

    for _ in range(2):
        with pytest.raises(Fenced):
            written(stale, {"step:1": "stale"})


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_write_to_a_journal_that_is_gone_says_so_and_makes_no_new_one(
    store: Store, redis_client: redis.Redis, ending: str
) -> None:
    journal = opened(store, task_id := new_id())
    redis_client.delete(key := store.keys(task_id).run)

    with pytest.raises(JournalGone, match=f"{re.escape(key)} is gone"):
        ENDINGS[ending](journal)

    assert not redis_client.exists(key)


def test_an_attempt_that_begins_where_a_journal_was_lost_fences_those_before(
    store: Store, redis_client: redis.Redis
) -> None:
    stale = opened(store, task_id := new_id())
    redis_client.flushdb()
    opened(store, task_id)
    before = state(redis_client, store, task_id)
    assert before["fields"]["attempt"] == "1"

    with pytest.raises(Fenced):
        written(stale, {"step:1": "stale"})

    assert state(redis_client, store, task_id) == before


def test_terminating_a_run_fences_its_attempt(store: Store, redis_client: redis.Redis) -> None:
    journal = opened(store, task_id := new_id())

    store.runs.terminate(task_id, "failed", DAY, '{"error":{}}')

    with pytest.raises(Fenced):
        written(journal, {"step:1": "stale"})
    after = state(redis_client, store, task_id)
    assert (after["fields"]["status"], after["fields"]["delivered"]) == ("failed", "1")
    assert (after["lease"], after["due"], after["expires"]) == (None, None, True)


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_terminating_a_run_that_has_ended_changes_nothing(store: Store, redis_client: redis.Redis, status: str) -> None:
    task_id = finished(store, status)
    before = state(redis_client, store, task_id)

    store.runs.terminate(task_id, "failed", DAY, '{"error":{}}')

    assert state(redis_client, store, task_id) == before


# -- attempts that died


def test_a_run_whose_lease_has_lapsed_is_taken_over(store: Store, redis_client: redis.Redis) -> None:
    opened(store, task_id := new_id())
    lapse(redis_client, store, task_id)

    verdict = store.journal(task_id).open(delivery(task_id, fresh=False))

    assert isinstance(verdict, Opened)
    assert (verdict.number, verdict.recoveries, verdict.reopened) == (2, 1, False)


def test_attempts_that_die_are_counted_until_one_records_something(store: Store, redis_client: redis.Redis) -> None:
    task_id = new_id()
    recoveries = []
    for records in (False, False, True, False, False):
        journal = store.journal(task_id)
        verdict = journal.open(delivery(task_id, fresh=False))
        assert isinstance(verdict, Opened)
        recoveries.append(verdict.recoveries)
        if records:
            written(journal, {"step:1": done_entry("a", 1, 1, 1, {}, "1"), "progress": str(verdict.number)})
        lapse(redis_client, store, task_id)

    assert recoveries == [0, 1, 2, 0, 1]


def test_attempts_that_die_are_counted_again_after_one_that_was_suspended(
    store: Store, redis_client: redis.Redis
) -> None:
    task_id = new_id()
    recoveries = []
    for suspends in (False, False, True, False, False):
        journal = store.journal(task_id)
        verdict = journal.open(delivery(task_id, fresh=False))
        assert isinstance(verdict, Opened)
        recoveries.append(verdict.recoveries)
        if suspends:
            journal.suspend(0, {})
        else:
            lapse(redis_client, store, task_id)

    assert recoveries == [0, 1, 2, 0, 1]


def test_the_lease_lasts_as_long_as_it_is_set(redis_url: str, redis_client: redis.Redis) -> None:
    with store_at(redis_url, durable_lease=1) as store:
        began = opened(store, task_id := new_id())
        opened_at = int(redis_client.hget(store.keys(task_id).run, "opened"))
        assert isinstance(store.journal(task_id).open(delivery(task_id)), Busy)

        verdict = eventually(
            lambda: found if isinstance(found := store.journal(task_id).open(delivery(task_id)), Opened) else None
        )

        assert verdict.now - opened_at >= 1000
        with pytest.raises(Fenced):
            written(began, {"step:1": "stale"})


# -- lost acknowledgements


def test_an_opening_whose_reply_was_lost_is_recognised(
    proxy: Proxy, far_store: Store, redis_client: redis.Redis
) -> None:
    far_store.runs.load(new_id())  # connects
    proxy.lose_replies()

    verdict = far_store.journal(task_id := new_id()).open(delivery(task_id))

    assert proxy.lost == 1
    assert isinstance(verdict, Opened)
    assert (verdict.number, verdict.recoveries) == (1, 0)
    assert redis_client.hget(far_store.keys(task_id).run, "attempt") == "1"


def test_a_reopening_whose_reply_was_lost_is_recognised(
    proxy: Proxy, far_store: Store, redis_client: redis.Redis
) -> None:
    task_id = finished(far_store, "failed", **{"step:1": open_entry("charge", "failed", 3)})
    proxy.lose_replies()

    verdict = far_store.journal(task_id).open(delivery(task_id))

    assert proxy.lost == 1
    assert isinstance(verdict, Opened)
    assert verdict.number == 2
    assert b"step:1" not in verdict.fields


def test_a_record_whose_reply_was_lost_is_recognised(proxy: Proxy, far_store: Store, redis_client: redis.Redis) -> None:
    journal = opened(far_store, task_id := new_id())
    proxy.lose_replies()

    written(journal, {"step:1": "first"})

    assert proxy.lost == 1
    assert redis_client.hget(far_store.keys(task_id).run, "step:1") == "first"
    written(journal, {"step:2": "second"})


def test_a_suspension_whose_reply_was_lost_is_recognised(
    proxy: Proxy, far_store: Store, redis_client: redis.Redis
) -> None:
    journal = opened(far_store, task_id := new_id())
    proxy.lose_replies()

    journal.suspend(60, {"failures": "1"})

    assert proxy.lost == 1
    after = state(redis_client, far_store, task_id)
    assert (after["fields"]["status"], after["fields"]["failures"], after["lease"]) == ("suspended", "1", None)
    assert after["due"] == float(after["fields"]["due"])


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_an_end_whose_reply_was_lost_is_recognised(
    proxy: Proxy, far_store: Store, redis_client: redis.Redis, status: str
) -> None:
    journal = opened(far_store, task_id := new_id())
    proxy.lose_replies()

    journal.finish(status, {"outcome": '{"value":1}'})
    journal.deliver(60)
    journal.prove_lease()

    assert proxy.lost == 1
    after = state(redis_client, far_store, task_id)
    assert (after["fields"]["status"], after["fields"]["delivered"]) == (status, "1")
    assert (after["lease"], after["expires"]) == (None, True)


def test_every_reply_of_a_run_may_be_lost(proxy: Proxy, far_store: Store, redis_client: redis.Redis) -> None:
    far_store.runs.load(new_id())
    journal = far_store.journal(task_id := new_id())
    proxy.lose_replies()
    journal.open(delivery(task_id))
    for position in range(1, 6):
        proxy.lose_replies()
        written(journal, {f"step:{position}": done_entry("a", 1, 1, 1, {}, str(position))})
    proxy.lose_replies()
    journal.finish("succeeded", {})

    assert proxy.lost == 7
    fields = redis_client.hgetall(far_store.keys(task_id).run)
    assert (fields["attempt"], fields["status"]) == ("1", "succeeded")
    assert sum(name.startswith("step:") for name in fields) == 5


def test_a_lost_reply_to_a_fenced_write_does_not_hide_the_fence(
    proxy: Proxy, far_store: Store, redis_client: redis.Redis
) -> None:
    stale = opened(far_store, task_id := new_id())
    lapse(redis_client, far_store, task_id)
    opened(far_store, task_id)
    before = state(redis_client, far_store, task_id)
    proxy.lose_replies()

    with pytest.raises(Fenced):
        written(stale, {"step:1": "stale"})

    assert proxy.lost == 1
    assert state(redis_client, far_store, task_id) == before


# -- reopening after a failure


def test_retry_forgets_what_the_budgets_counted_and_reopens_the_last_failure(
    store: Store, redis_client: redis.Redis
) -> None:
    kept = {
        "step:1": done_entry("reserve", 1, 1, 1, {}, '{"state":"failed"}'),
        "step:2": done_entry('a "state":"failed" name', 1, 1, 1, {}, "1"),
        "uuid:1": "1f0c8e1e-0000-4000-8000-000000000000",
        "time:1": "1700000000000",
    }
    journal = opened(store, task_id := new_id())
    written(journal, {**kept, "step:3": open_entry("charge", "failed", 6, error={"message": "away"})})
    journal.finish("failed", {"outcome": "{}", "failures": "70", "failing_since": "1"})
    seed = redis_client.hget(store.keys(task_id).run, "seed")

    verdict = store.journal(task_id).open(delivery(task_id))

    assert isinstance(verdict, Opened)
    assert (verdict.number, verdict.recoveries, verdict.reopened) == (2, 0, True)
    fields = redis_client.hgetall(store.keys(task_id).run)
    assert fields.pop("attempt.1").startswith("failed ")
    assert {name: value for name, value in fields.items() if ":" in name} == kept
    assert fields["seed"] == seed
    assert fields.keys() & {"outcome", "ended", "delivered", "failures", "failing_since", "due"} == set()
    assert redis_client.ttl(store.keys(task_id).run) == -1


@pytest.mark.parametrize("unfinished", [started_entry("charge", 3, 1), open_entry("charge", "retrying", 3, first=1)])
def test_retry_forgets_executions_that_did_not_end(store: Store, redis_client: redis.Redis, unfinished: str) -> None:
    task_id = finished(store, "failed", **{"step:1": done_entry("a", 1, 1, 1, {}, "1"), "step:2": unfinished})

    opened(store, task_id)

    assert redis_client.hexists(store.keys(task_id).run, "step:1")
    assert not redis_client.hexists(store.keys(task_id).run, "step:2")


def test_retry_keeps_a_failure_that_other_steps_followed(store: Store, redis_client: redis.Redis) -> None:
    entries = {
        "step:9": open_entry("charge", "failed", 3),
        "step:10": done_entry("release", 1, 1, 1, {}, "1"),
    }
    task_id = finished(store, "failed", **entries)

    opened(store, task_id)

    fields = redis_client.hgetall(store.keys(task_id).run)
    assert {name: value for name, value in fields.items() if name.startswith("step:")} == entries


@pytest.mark.parametrize(("status", "fresh"), [("failed", False), ("succeeded", True), ("ignored", True)])
def test_nothing_but_a_new_message_for_a_failed_run_reopens_it(
    store: Store, redis_client: redis.Redis, status: str, fresh: bool
) -> None:
    task_id = finished(store, status)
    before = state(redis_client, store, task_id)

    assert isinstance(store.journal(task_id).open(delivery(task_id, fresh=fresh)), Finished)

    assert state(redis_client, store, task_id) == before


def test_only_one_of_two_retries_reopens_a_run(store: Store) -> None:
    task_id = finished(store, "failed")

    verdicts = [store.journal(task_id).open(delivery(task_id)) for _ in range(2)]

    assert [type(verdict) for verdict in verdicts] == [Opened, Busy]


def test_a_message_that_was_here_before_the_failure_reopens_nothing(store: Store, redis_client: redis.Redis) -> None:
    """It was held up, and delivered again: its copy has begun the run, and ended it."""
    received = time.monotonic() - 1
    task_id = finished(store, "failed")
    before = state(redis_client, store, task_id)

    assert isinstance(store.journal(task_id).open(delivery(task_id, received=received)), Finished)

    assert state(redis_client, store, task_id) == before
    eventually(lambda: server_ms(redis_client) > int(before["fields"]["ended"]) + 1)
    assert opened(store, task_id, received=time.monotonic()), "one that has come since"


def test_a_message_that_has_waited_for_redis_reopens_no_failure_of_meanwhile(
    store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = store.journal(task_id := new_id())
    held_up, ended = journal.connection.send, []

    def send(*commands: bytes, **options: Any) -> None:
        if not ended:
            since = time.monotonic()
            finished(store, "failed", task_id=task_id)
            ended.append(redis_client.hget(store.keys(task_id).run, "ended"))
            eventually(lambda: time.monotonic() > since + 0.2, what="what is no quick reply any more")
        held_up(*commands, **options)

    monkeypatch.setattr(journal.connection, "send", send)

    received = time.monotonic() - 0.01  # Redis counts in milliseconds
    assert isinstance(journal.open(delivery(task_id, received=received)), Finished)

    assert redis_client.hmget(store.keys(task_id).run, "attempt", "ended") == ["1", *ended]


def test_a_retry_that_asks_to_reopen_does_so_once_whoever_delivers_it_again(store: Store) -> None:
    task_id = finished(store, "failed")

    verdicts = []
    for nonce in ("first", "first", "second", "first"):
        journal = store.journal(task_id)
        verdicts.append(journal.open(delivery(task_id, reopen=nonce)))
        if isinstance(verdicts[-1], Opened):
            assert verdicts[-1].reopened
            journal.finish("failed", {"outcome": "{}"})
            journal.deliver(DAY)
            journal.prove_lease()
        journal.close()

    assert [type(verdict) for verdict in verdicts] == [Opened, Finished, Opened, Finished]


def test_a_retry_that_found_no_redis_reopens_the_run_when_it_is_sent_again() -> None:
    endings: list[Any] = [ValueError("first"), None]
    sent: list[dict[str, Any]] = []

    def end(self: Any) -> None:
        self.ctx.run("step", lambda: 1)
        if ending := endings.pop(0):
            raise ending

    def publish(headers: dict[str, Any], **_: Any) -> None:
        sent.append(headers)

    with RedisServer(appendonly=True) as server, app_at(server.url(), durable_lease=1) as app:
        task, task_id = task_of(app, end), new_id()
        assert execute(task, task_id=task_id) == "FAILURE"
        server.stop()
        before_task_publish.connect(publish)
        try:
            assert execute(task, task_id=task_id) == "RETRY"
        finally:
            before_task_publish.disconnect(publish)
        server.start()
        [headers] = sent
        message = {"retries": headers["retries"], "headers": {HEADER: headers[HEADER]}}

        assert execute(task, task_id=task_id, **message) == "SUCCESS"

        with server.client() as client:
            fields = client.hgetall(store_of(app).keys(task_id).run)
    assert (fields["status"], fields["attempt"], endings) == ("succeeded", "2", [])


# -- time


def test_only_the_clock_of_redis_counts(
    store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall_clock = time.time
    monkeypatch.setattr(time, "time", lambda: wall_clock() + 10 * DAY)
    task_id, key = new_id(), store.keys
    before = server_ms(redis_client)

    journal = opened(store, task_id)
    lease = redis_client.zscore(key(task_id).leases, task_id)
    journal.suspend(60, {})
    due = redis_client.zscore(key(task_id).due, task_id)
    journal.finish("succeeded", {})

    after = server_ms(redis_client)
    fields = redis_client.hgetall(key(task_id).run)
    assert all(before <= int(fields[name]) <= after for name in ("created", "opened", "ended"))
    assert before + 30_000 <= lease <= after + 30_000
    assert before + 60_000 <= due <= after + 60_000


# -- how long journals are kept


@pytest.mark.parametrize(("status", "keep"), [("succeeded", DAY), ("failed", 7 * DAY), ("succeeded", 100.0)])
def test_the_journal_of_a_finished_run_is_kept_as_long_as_it_is_set(
    store: Store, redis_client: redis.Redis, status: str, keep: float
) -> None:
    task_id = finished(store, status, keep)

    assert keep - 10 < redis_client.pttl(store.keys(task_id).run) / 1000 <= keep
    assert state(redis_client, store, task_id)["lease"] is None


def test_a_live_journal_has_no_ttl(store: Store, redis_client: redis.Redis) -> None:
    journal = opened(store, task_id := new_id())
    written(journal, {"step:1": "{}"})
    assert redis_client.ttl(store.keys(task_id).run) == -1
    journal.suspend(3600, {})

    assert redis_client.ttl(store.keys(task_id).run) == -1


def test_an_outcome_that_is_not_to_be_kept_lives_until_it_is_delivered(store: Store, redis_client: redis.Redis) -> None:
    journal = opened(store, task_id := new_id())
    journal.finish("succeeded", {"outcome": '{"value":1}'})
    before = state(redis_client, store, task_id)
    assert before["lease"] is not None
    assert redis_client.ttl(store.keys(task_id).run) == -1

    journal.deliver(0)

    gone = {"fields": {}, "lease": None, "due": None, "expires": False}
    eventually(lambda: state(redis_client, store, task_id) == gone)
    assert redis_client.keys() == [f"{store.shards.of(task_id).prefix}index"], "the name of its task stays"
    journal.close()


@pytest.mark.parametrize("keep", [0.0, 300.0])
def test_a_run_that_ended_undelivered_is_not_begun_again_though_its_retention_is_short(
    store: Store, redis_client: redis.Redis, keep: float
) -> None:
    journal = opened(store, task_id := new_id())
    journal.finish("succeeded", {"outcome": '{"value":1}'})
    journal.close()
    lapse(redis_client, store, task_id)

    assert redis_client.ttl(store.keys(task_id).run) == -1
    redelivered = store.journal(task_id)
    verdict = redelivered.open(delivery(task_id, fresh=False))

    assert isinstance(verdict, Finished)
    assert b"delivered" not in verdict.fields
    redelivered.close()


def test_an_outcome_that_is_not_delivered_can_be_found_when_its_lease_lapses(
    store: Store, redis_client: redis.Redis
) -> None:
    journal = opened(store, task_id := new_id())
    lapse(redis_client, store, task_id)
    journal.finish("succeeded", {})

    after = state(redis_client, store, task_id)

    assert after["lease"] == int(after["fields"]["ended"]) + 30_000


# -- layout


def test_all_keys_of_a_run_share_a_hash_tag_and_the_journal_ends_in_the_task_id(
    store: Store, redis_client: redis.Redis
) -> None:
    ids = [new_id() for _ in range(40)] + ["daily-report", "tägliche Übersicht/ü", "with{braces}in:it"]
    tags = set()
    for task_id in ids:
        opened(store, task_id)
        keys = store.keys(task_id)
        tag = re.fullmatch(r"durable:\{(\d+)\}:run:(.*)", keys.run)
        assert tag is not None
        assert tag[2] == task_id
        assert keys.leases == f"durable:{{{tag[1]}}}:leases"
        assert keys.due == f"durable:{{{tag[1]}}}:due"
        assert redis_client.exists(keys.run) == 1
        tags.add(tag[1])
    assert 10 < len(tags) <= 16


def test_the_prefix_of_all_keys_can_be_set(redis_url: str, redis_client: redis.Redis) -> None:
    with store_at(redis_url, durable_key_prefix="shop/") as store:
        opened(store, new_id()).suspend(60, {})
        opened(store, new_id())

    assert len(keys := redis_client.keys()) >= 4
    assert all(key.startswith("shop/{") for key in keys)


def order(self: Any, number: int) -> str:
    """Use everything that leaves a trace in the journal."""
    ctx = self.ctx
    ctx.uuid()
    ctx.time()
    ctx.now()
    ctx.run("reserve ☃", lambda: {"seats": [1, 2], "who": "Zoë"})
    ctx.run("compressed", lambda: "x" * 100, RunOptions(compression="zlib"))
    ctx.run("limited", lambda: None, RunOptions(max_attempts=3))
    ctx.run("undone", fail_for_good)
    return f"order {number}"


def fail_for_good() -> None:
    raise TerminalError("card declined", 402, {"bank": "b"})


def test_a_journal_reads_as_text_with_hgetall(redis_url: str, redis_server: RedisServer) -> None:
    task_id = new_id()
    with app_at(redis_url) as app, redis.Redis.from_url(redis_server.url()) as raw:
        assert execute(task_of(app, order), 7, task_id=task_id) == "FAILURE"
        fields = text(raw.hgetall(store_of(app).keys(task_id).run))

    assert {name for name in fields if ":" not in name} == {
        "v", "status", "task", "attempt", "fingerprint", "fence", "owner", "call", "created", "opened", "ended", "seed",
        "progress", "nesting", "recoveries", "outcome", "delivered", "build", "executed",
    }  # fmt: skip
    steps = [json.loads(fields[f"step:{position}"]) for position in (1, 2, 3, 4)]
    assert [(step["name"], step["state"], step["attempts"]) for step in steps] == [
        ("reserve ☃", "done", 1),
        ("compressed", "done", 1),
        ("limited", "done", 1),
        ("undone", "failed", 1),
    ]
    assert steps[0]["value"] == {"seats": [1, 2], "who": "Zoë"}
    assert steps[1]["compression"] == "application/x-gzip"  # as kombu calls zlib
    assert "value" in steps[2]
    assert steps[2]["value"] is None
    error = steps[3]["error"]
    assert (error["type"], error["message"], error["status_code"]) == ("TerminalError", "card declined", 402)
    assert re.fullmatch("[0-9a-f]{8}-[0-9a-f]{4}-4.*", fields["uuid:1"])
    assert int(fields["time:1"]) == pytest.approx(time.time() * 1000, abs=60_000)
    call = json.loads(fields["call"])
    assert (call["args"], call["kwargs"]) == ([7], {})
    assert json.loads(fields["outcome"])["error"]["message"] == "card declined"


# -- many fields at once


@pytest.mark.parametrize("count", [1_000, 1_001, 12_345])
def test_any_number_of_fields_is_written_at_once(store: Store, redis_client: redis.Redis, count: int) -> None:
    journal = opened(store, task_id := new_id())
    fields = {f"time:{n}": str(n) for n in range(1, count + 1)}

    written(journal, fields)

    stored = redis_client.hgetall(store.keys(task_id).run)
    assert {name: value for name, value in stored.items() if name.startswith("time:")} == fields
    lapse(redis_client, store, task_id)
    opened(store, task_id)
    with pytest.raises(Fenced):
        written(journal, fields)


@pytest.mark.parametrize("then", ["ends", "records", "is retried", "fails"])
def test_any_number_of_draws_reaches_the_journal(redis_url: str, redis_client: redis.Redis, then: str) -> None:
    def draws(self: Any) -> None:
        for _ in range(5_000):
            self.ctx.uuid()
            self.ctx.time()
        if then == "records":
            self.ctx.run("step", lambda: 1)
        elif then == "is retried":
            self.ctx.run("step", lambda: 1 / 0, RunOptions(max_attempts=2, initial_retry_interval=60))
        elif then == "fails":
            raise ValueError

    expected = {"ends": "SUCCESS", "records": "SUCCESS", "is retried": "RETRY", "fails": "FAILURE"}

    task_id = new_id()
    with app_at(redis_url) as app:
        assert execute(task_of(app, draws), task_id=task_id) == expected[then]
        names = redis_client.hkeys(store_of(app).keys(task_id).run)

    assert sum(name.startswith("uuid:") for name in names) == 5_000
    assert sum(name.startswith("time:") for name in names) == 5_000


def test_a_call_that_the_default_serializer_does_not_take_is_kept_by_another_that_the_app_accepts(
    redis_url: str, redis_client: redis.Redis
) -> None:
    """The message itself was sent by `apply_async(..., serializer="pickle")`."""

    def count(self: Any, skus: set[str]) -> int:
        return self.ctx.run("count", lambda: len(skus))

    with app_at(redis_url, accept_content=["json", "pickle"]) as app:
        task = task_of(app, count)
        task_id = new_id()
        assert execute(task, {"a", "b"}, task_id=task_id) == "SUCCESS"
        call = redis_client.hget(store_of(app).keys(task_id).run, "call")

    assert Call.load(call, frozenset({"pickle"})).args == ({"a", "b"},)
    with pytest.raises(ConfigurationError, match="accept_content"):
        Call.load(call, frozenset({"json"}))


def test_a_late_word_of_a_delivery_does_not_end_a_run_that_goes_on(store: Store, redis_client: redis.Redis) -> None:
    """The server that has recorded the outcome is gone, and the one that took over has not heard of it."""
    journal = opened(store, task_id := new_id())
    before = state(redis_client, store, task_id)

    journal.deliver(DAY)
    journal.flush()

    assert state(redis_client, store, task_id) == before


def test_a_task_that_replaces_a_cancelled_one_is_told_that_it_is_cancelled(store: Store) -> None:
    journal = opened(store, task_id := new_id())
    store.runs.cancel(task_id)
    journal.finish("ignored", {"outcome": "{}"})
    journal.close()

    replacing = opened(store, task_id, nesting=1, task="shop.refund")

    assert replacing.cancel_requested or store.runs.load(task_id)[b"cancel"] == b"requested"
