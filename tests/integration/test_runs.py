"""Runs: what an operator finds, sees and counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
import redis
from celery import Celery

from celery_durable import RunOptions
from celery_durable.app.store import store_of
from celery_durable.exceptions import (
    ConfigurationError,
    RunNotCancellableError,
    RunNotFound,
    RunNotPurgeableError,
    RunNotRestartableError,
    RunNotRetryableError,
    RunNotWakeableError,
)
from celery_durable.journal.entries import open_entry
from celery_durable.journal.layout import Kind, State, Wait
from celery_durable.operate.runs import Runs
from celery_durable.redis.client.scripts import Dated
from tests.integration.network import Waits
from tests.integration.runs import decline, execute, ids, lapse, new_id, opened, task_of
from tests.planting import Garden
from tests.waiting import eventually


def sells(self: Any, number: int) -> int:
    self.ctx.run("charge", lambda: {"id": f"ch_{number}"})
    return number


def sleeps(self: Any) -> None:
    self.ctx.run("charge", lambda: 1)
    self.ctx.sleep(timedelta(hours=1), name="until tomorrow")


def waits(self: Any) -> None:
    self.ctx.run("charge", lambda: 1 / 0, RunOptions(initial_retry_interval=60, max_attempts=3))


def fails(self: Any) -> None:
    self.ctx.run("charge", decline)


def executed(app: Celery, body: Any, *args: Any) -> str:
    """Execute a task as a worker does that knows it; return its id."""
    task, task_id = task_of(app, body), new_id()
    execute(task, *args, task_id=task_id)
    return task_id


def newest_first(runs: Runs, ids: Iterable[str]) -> list[str]:
    """As a list has them: those that were created in the same millisecond are in the order of their ids."""
    return sorted(ids, key=lambda task_id: (runs.get(task_id).created, task_id), reverse=True)


def test_a_run_that_has_succeeded(app: Celery, runs: Runs) -> None:
    task_id = executed(app, sells, 7)

    run = runs.get(task_id)

    assert (run.id, run.task, run.state, run.args, run.kwargs) == (task_id, "shop.sells", "SUCCESS", [7], {})
    assert run.created == run.began <= (run.ended or run.began) <= datetime.now(timezone.utc) + timedelta(seconds=5)
    assert (run.lease, run.waits_for, run.until, run.error) == (None, "", None, "")
    [step] = run.steps
    assert (step.kind, step.name, step.place, step.state, step.executions) == ("step", "charge", "1", "done", 1)
    assert step.preview == '{"id": "ch_7"}'
    [attempt] = run.attempts
    assert (attempt.number, attempt.began, attempt.ended, attempt.how) == (1, run.began, run.ended, "SUCCESS")
    assert (attempt.worker, attempt.build) == (run.worker, run.build)


def test_a_run_that_sleeps(app: Celery, runs: Runs) -> None:
    run = runs.get(executed(app, sleeps))

    assert (run.state, run.ended, run.lease) == ("SUSPENDED", None, None)
    assert run.waits_for == "the end of a sleep: 'until tomorrow'"
    assert run.until is not None
    assert timedelta(minutes=59) < run.until - run.began < timedelta(minutes=61)
    assert [(step.kind, step.name, step.state) for step in run.steps] == [
        ("step", "charge", "done"),
        ("sleep", "until tomorrow", "sleeping"),
    ]
    assert run.attempts[-1].how == "SUSPENDED"


def test_a_sleep_that_is_over_is_done(app: Celery, runs: Runs, redis_client: redis.Redis) -> None:
    def body(self: Any) -> None:
        self.ctx.sleep(60, name="first")
        self.ctx.sleep(3600, name="second")

    task, task_id = task_of(app, body), new_id()
    execute(task, task_id=task_id)
    key = store_of(app).keys(task_id).run
    entry = json.loads(redis_client.hget(key, "step:1"))
    redis_client.hset(key, mapping={"step:1": json.dumps({**entry, "until": entry["until"] - 61_000}), "due": 0})
    execute(task, task_id=task_id, delivery_info={"redelivered": True})

    run = runs.get(task_id)

    assert [(step.name, step.state) for step in run.steps] == [("first", "done"), ("second", "sleeping")]
    assert run.waits_for == "the end of a sleep: 'second'"
    assert [(attempt.number, attempt.how) for attempt in run.attempts] == [(1, "SUSPENDED"), (2, "SUSPENDED")]


def test_a_run_that_is_retried_later(app: Celery, runs: Runs) -> None:
    run = runs.get(executed(app, waits))

    assert (run.state, run.waits_for) == ("RETRY", "its next attempt: 'charge'")
    [step] = run.steps
    assert (step.state, step.error) == ("retrying", "ZeroDivisionError: division by zero")
    assert step.first is not None


def test_a_run_that_has_failed(app: Celery, runs: Runs) -> None:
    run = runs.get(executed(app, fails))

    assert (run.state, run.error) == ("FAILURE", "TerminalError: declined")
    assert [(step.state, step.error) for step in run.steps] == [("failed", "TerminalError: declined")]


def test_an_attempt_that_died_is_told(app: Celery, runs: Runs, redis_client: redis.Redis) -> None:
    store, task_id = store_of(app), new_id()
    opened(store, task_id)
    lapse(redis_client, store, task_id)
    opened(store, task_id)

    run = runs.get(task_id)

    assert run.state == "STARTED"
    assert run.lease is not None
    assert [(attempt.number, attempt.how, attempt.ended) for attempt in run.attempts] == [
        (1, "DIED", None),
        (2, "STARTED", None),
    ]
    assert [(attempt.executed, attempt.replayed) for attempt in run.attempts] == [(None, None)] * 2


@pytest.mark.parametrize(("orderly", "how"), [(True, "RELEASED"), (False, "DIED")])
def test_an_attempt_whose_process_gave_the_run_back_is_told(app: Celery, runs: Runs, orderly: bool, how: str) -> None:
    opened(store_of(app), task_id := new_id()).release(orderly=orderly)
    [given_back] = runs.get(task_id).attempts
    assert (given_back.how, given_back.ended is not None) == (("RELEASED", True) if orderly else ("STARTED", False))

    opened(store_of(app), task_id)

    first, second = runs.get(task_id).attempts
    assert (first.how, first.ended, second.how) == (how, given_back.ended, "STARTED")


def test_the_arguments_of_another_serializer_are_left_out(app: Celery, runs: Runs, redis_client: redis.Redis) -> None:
    task_id = executed(app, sells, 7)
    redis_client.hset(store_of(app).keys(task_id).run, "call", '{"content_type": "application/x-python-serialize"}')

    run = runs.get(task_id)

    assert (run.state, run.args, run.kwargs) == ("SUCCESS", None, None)


def test_an_unknown_run_is_not_found(runs: Runs) -> None:
    with pytest.raises(RunNotFound, match=r"^task nowhere has no journal: is the id right\? .* or was purged$"):
        runs.get("nowhere")


def test_runs_are_counted_and_listed_by_state_and_task(app: Celery, runs: Runs) -> None:
    sold = [executed(app, sells, number) for number in range(5)]
    asleep, failed = executed(app, sleeps), executed(app, fails)

    assert runs.counts() == {"SUSPENDED": 1, "SUCCESS": 5, "FAILURE": 1}
    assert runs.counts(task="shop.sells") == {"SUCCESS": 5}
    assert runs.counts(task=["shop.sleeps", "shop.fails"]) == {"SUSPENDED": 1, "FAILURE": 1}
    assert runs.counts(task="nobody") == {}
    assert [run.id for run in runs.list()] == newest_first(runs, [failed, asleep, *sold])
    assert [run.id for run in runs.list(state="FAILURE")] == [failed]
    assert [run.id for run in runs.list(state=["FAILURE", "SUSPENDED"])] == newest_first(runs, [failed, asleep])
    assert [run.id for run in runs.list(task="shop.sleeps")] == [asleep]
    assert [run.id for run in runs.list(task="shop.sleeps", state="FAILURE")] == []
    created = {task_id: runs.get(task_id).created for task_id in [failed, asleep, *sold]}
    since = [task_id for task_id, at in created.items() if at >= created[asleep]]
    until = [task_id for task_id, at in created.items() if at <= created[asleep]]
    assert [run.id for run in runs.list(since=created[asleep])] == newest_first(runs, since)
    assert [run.id for run in runs.list(until=created[asleep], limit=2)] == newest_first(runs, until)[:2]


def test_a_list_goes_on_behind_its_cursor(app: Celery, runs: Runs) -> None:
    sold = [executed(app, sells, number) for number in range(7)]

    first = runs.list(limit=3)
    second = runs.list(limit=3, cursor=first.cursor)
    third = runs.list(limit=3, cursor=second.cursor)

    assert [run.id for page in (first, second, third) for run in page] == newest_first(runs, sold)
    assert [len(first), len(second), len(third)] == [3, 3, 1]
    assert third.cursor is None


def test_a_full_page_that_is_the_last_one_says_so(app: Celery, runs: Runs) -> None:
    for number in range(3):
        executed(app, sells, number)

    assert runs.list(limit=3).cursor is None
    assert runs.list(limit=2).cursor is not None


def test_runs_are_found_by_what_is_shown_of_them(app: Celery, runs: Runs) -> None:
    seven, eight = (executed(app, sells, number) for number in (7_000, 8_000))
    asleep = executed(app, sleeps)

    assert [run.id for run in runs.list(text="7000")] == [seven]
    assert [run.id for run in runs.list(text="[7000]")] == [seven]
    assert [run.id for run in runs.list(text="SHOP.SLEEPS")] == [asleep]
    assert [run.id for run in runs.list(text=seven[:13])] == [seven]
    assert [run.id for run in runs.list(text="shop.", limit=1)] == newest_first(runs, [seven, eight, asleep])[:1]
    assert list(runs.list(text="nothing of that")) == []
    assert list(runs.list(text="celery")) == [], "the queue is shown nowhere"


@pytest.mark.parametrize(
    "text", ["2026-01-02", "7E1F-4D2C", "Grüße", "ÄPFEL", 'say "hi"', "a\\b", "日本", '": 0.50', "null"]
)
def test_any_text_of_the_arguments_finds_a_run(app: Celery, runs: Runs, text: str) -> None:
    def takes(self: Any, *args: Any, **kwargs: Any) -> str:
        return self.ctx.task_id  # type: ignore[no-any-return]

    task, task_id = task_of(app, takes), new_id()
    values = datetime(2026, 1, 2, tzinfo=timezone.utc), UUID("5d3c0f6e-7e1f-4d2c-9b7a-0123456789ab"), "Grüße", "äpfel"
    execute(task, *values, 'say "hi"', "a\\b", "日本", None, task_id=task_id, kwargs={"price": 0.5, "share": "0.50"})
    executed(app, sells, 8)

    found = [run.id for run in runs.list(text=text)]

    assert found == ([] if text == '": 0.50' else [task_id])


def test_a_state_of_a_newer_version_is_counted(app: Celery, runs: Runs, redis_client: redis.Redis) -> None:
    garden = Garden(store_of(app), redis_client, 0)
    garden.plant("good")
    garden.plant("newer", status="suspended", waits="tide")

    assert runs.counts() == {"SUCCESS": 1, "tide": 1}
    assert [run.id for run in runs.list()] == ["good"]
    assert runs.get("newer").state == "tide"


def test_the_steps_of_each_attempt_are_counted(app: Celery, runs: Runs, redis_client: redis.Redis) -> None:
    acts = iter([1 / 1, OSError("away"), OSError("away again"), 2])

    def act() -> Any:
        result = next(acts)
        if isinstance(result, OSError):
            raise result
        return result

    def body(self: Any) -> None:
        self.ctx.run("first", act)
        self.ctx.sleep(0)
        self.ctx.run("second", act, RunOptions(initial_retry_interval=60))
        self.ctx.run("third", lambda: 3)

    task, task_id = task_of(app, body), new_id()
    execute(task, task_id=task_id)
    for _ in range(2):
        runs.wake(task_id)
        execute(task, task_id=task_id, delivery_info={"redelivered": True})

    attempts = runs.get(task_id).attempts
    assert [(attempt.how, attempt.executed, attempt.replayed) for attempt in attempts] == [
        ("RETRY", 2, 0),
        ("RETRY", 1, 1),
        ("SUCCESS", 2, 1),
    ]


def test_an_attempt_without_a_step_has_executed_none(app: Celery, runs: Runs, redis_client: redis.Redis) -> None:
    def body(self: Any) -> str:
        return self.ctx.task_id  # type: ignore[no-any-return]

    task_id = executed(app, body)

    [attempt] = runs.get(task_id).attempts
    assert (attempt.executed, attempt.replayed) == (0, 0)
    assert not redis_client.hexists(store_of(app).keys(task_id).run, "executed"), "it costs nothing"


def test_the_steps_of_an_async_task_are_counted_in_all_branches(app: Celery, runs: Runs) -> None:
    async def body(self: Any) -> None:
        async def branch(number: int) -> None:
            await self.ctx.run(f"branch {number}", lambda: number)
            await self.ctx.sleep(3600)

        await self.ctx.run("first", lambda: 1)
        await asyncio.gather(branch(1), branch(2))

    task, task_id = task_of(app, body), new_id()
    execute(task, task_id=task_id)
    runs.wake(task_id)
    assert execute(task, task_id=task_id, delivery_info={"redelivered": True}) == "SUCCESS"

    attempts = runs.get(task_id).attempts
    assert [(attempt.executed, attempt.replayed) for attempt in attempts] == [(3, 0), (0, 3)]


def test_expired_runs_are_passed_over_and_leave_the_index(app: Celery, runs: Runs, redis_client: redis.Redis) -> None:
    sold = [executed(app, sells, number) for number in range(6)]
    for task_id in sold[1:5]:
        redis_client.delete(store_of(app).keys(task_id).run)

    page = runs.list(limit=2)

    assert [run.id for run in page] == newest_first(runs, [sold[5], sold[0]])
    assert runs.counts() == {"SUCCESS": 2}


def test_a_page_lets_all_expired_runs_leave_in_one_round_trip(
    app: Celery, runs: Runs, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits().install(monkeypatch)
    sold = [executed(app, sells, number) for number in range(8)]
    redis_client.delete(*(store_of(app).keys(task_id).run for task_id in sold))

    with waits.counted(3):  # the page, its journals, and those that leave
        assert list(runs.list()) == []

    assert runs.counts() == {}


@pytest.mark.parametrize("body", [sells, sleeps])
def test_a_key_that_holds_something_else_hides_no_other_run(
    app: Celery, runs: Runs, redis_client: redis.Redis, body: Any
) -> None:
    bad, good = executed(app, body, *[1][: body is sells]), executed(app, sells, 2)
    redis_client.set(store_of(app).keys(bad).run, "of another program")

    for _ in range(2):
        shown = {run.id: run.error for run in runs.list()}
        assert shown.keys() == {bad, good}
        assert "holds no journal; look at it, and delete it" in str(shown[bad])
    assert list(runs.list(text="charge")) == []
    assert runs.states([bad, good, new_id()]) == {good: "SUCCESS"}


def test_a_run_that_an_older_worker_has_moved_is_shown_as_it_is(
    app: Celery, runs: Runs, redis_client: redis.Redis
) -> None:
    """It changes the journal, and does not know the index."""
    task_id = executed(app, sleeps)
    redis_client.hset(store_of(app).keys(task_id).run, mapping={"status": "failed", "outcome": "{}", "ended": 1})

    assert list(runs.list(state="SUSPENDED")) == []
    assert [run.id for run in runs.list(state="FAILURE")] == [task_id]
    assert runs.counts() == {"FAILURE": 1}


@pytest.mark.parametrize("created", ["soon", "1e300", "inf", "9" * 17])
def test_a_time_that_cannot_be_meant_hides_no_other_run(
    app: Celery, runs: Runs, redis_client: redis.Redis, created: str
) -> None:
    good, damaged = executed(app, sells, 7), executed(app, sleeps)
    redis_client.hset(store_of(app).keys(damaged).run, "created", created)
    for name in redis_client.scan_iter("*index:sleep:shop.sleeps"):
        redis_client.zadd(name, {damaged: float(created) if created == "9" * 17 else 1})

    assert {run.id: run.state for run in runs.list()} == {good: "SUCCESS", damaged: "SUSPENDED"}
    [run] = runs.list(state="SUSPENDED")
    assert f"the journal of task {damaged} is damaged" in run.error


def test_what_was_revoked_while_it_waited_has_not_slept_to_the_end(app: Celery, runs: Runs) -> None:
    task_id = executed(app, sleeps)
    before = runs.get(task_id)

    assert store_of(app).runs.terminate(task_id, "revoked", 60.0, "{}")

    run = runs.get(task_id)
    assert run.state == "REVOKED"
    assert (run.attempts, run.steps) == (before.attempts, before.steps)
    assert [attempt.how for attempt in run.attempts] == ["SUSPENDED"]
    assert [step.state for step in run.steps] == ["done", "sleeping"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"state": "DONE"}, "state must be one of STARTED, RETRY, SUSPENDED, STALLED, .*, got DONE"),
        ({"limit": 0}, "limit must be from 1 to 1,000, got 0"),
        ({"limit": 1001}, "limit must be from 1 to 1,000, got 1001"),
        ({"limit": "5"}, "limit must be from 1 to 1,000, got '5'"),
        ({"state": 5}, "state must be a text or several, got 5"),
        ({"task": [b"shop"]}, "task must be a text or several, got"),
        ({"attributes": "order=o1"}, "attributes must be a dict of texts, got 'order=o1'"),
        ({"until": "2030-01-01"}, "until must be an aware datetime, got '2030-01-01'"),
        ({"cursor": 5}, "cursor must be that of a page of runs, got 5"),
        ({"cursor": "x"}, "cursor must be that of a page of runs, got 'x'"),
        ({"since": datetime(2026, 1, 1)}, "since must be an aware datetime, got .*: say its time zone"),  # noqa: DTZ001
    ],
)
def test_a_wrong_filter_is_refused(runs: Runs, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        runs.list(**wrong)


# -- what an operator does


def test_a_sleeper_that_is_woken_goes_on(app: Celery, runs: Runs, redis_client: redis.Redis) -> None:
    task_id = executed(app, sleeps)

    runs.wake(task_id, by="ann")

    assert execute(app.tasks["shop.sleeps"], task_id=task_id, delivery_info={"redelivered": True}) == "SUCCESS"
    run = runs.get(task_id)
    assert [(step.name, step.state) for step in run.steps] == [("charge", "done"), ("until tomorrow", "done")]
    [action] = run.actions
    assert (action.what, action.by) == ("wake", "ann")
    assert run.created <= action.at <= (run.ended or run.created)


def naps(self: Any) -> None:
    self.ctx.sleep(3600, name="short")
    self.ctx.sleep(timedelta(days=30), name="long")


def test_one_wake_ends_one_wait_though_its_command_is_sent_twice(
    app: Celery, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reply was lost, and meanwhile the run has come to its next sleep."""
    task_id = executed(app, naps)
    ask = store_of(app).runs._ask  # noqa: SLF001

    def ask_twice(asked: str, *commands: Any, **options: Any) -> list[Any]:
        if isinstance(commands[0], Dated):
            ask(asked, *commands, **options)
            again = execute(app.tasks["shop.naps"], task_id=task_id, delivery_info={"redelivered": True})
            assert again == "IGNORED"
        return ask(asked, *commands, **options)

    with monkeypatch.context() as patched:
        patched.setattr(store_of(app).runs, "_ask", ask_twice)
        runs.wake(task_id)

    assert [(step.name, step.state) for step in runs.get(task_id).steps] == [("short", "done"), ("long", "sleeping")]
    assert [action.what for action in runs.get(task_id).actions] == ["wake"]


def test_to_wake_a_run_that_waits_for_a_retry_ends_no_sleep_beside_it(app: Celery, runs: Runs) -> None:
    store, until = store_of(app), 2**42
    journal = opened(store, task_id := new_id())
    journal.send({"step:2": open_entry("three days", State.SLEEPING, 0, Kind.SLEEP, until=until)})
    journal.suspend(60, {}, waits=Wait.RETRY)

    runs.wake(task_id)

    assert json.loads(store.runs.load(task_id)[b"step:2"])["until"] == until
    assert ids(store) == [task_id]


def test_one_wake_ends_one_wait_though_its_request_is_delivered_twice(app: Celery, runs: Runs) -> None:
    """Its worker died before the broker heard that it was dealt with. An id of a task may have any characters."""
    task_id = executed(app, naps)
    for _ in range(2):
        app.tasks["celery_durable.wake"].apply((task_id,), {"by": "ann"}, task_id='a/"b"').get()
        assert execute(app.tasks["shop.naps"], task_id=task_id, delivery_info={"redelivered": True}) == "IGNORED"

    assert [(step.name, step.state) for step in runs.get(task_id).steps] == [("short", "done"), ("long", "sleeping")]
    assert [(action.what, action.by) for action in runs.get(task_id).actions] == [("wake", "ann")]


@pytest.mark.parametrize(
    "by", ["ann\u2028\x85\r\nbob", "\ud800", {"name": "ann"}, 7], ids=["lines", "bytes", "dict", "7"]
)
def test_any_name_of_who_has_done_it_is_kept(app: Celery, runs: Runs, by: Any) -> None:
    task_id = executed(app, sleeps)

    runs.wake(task_id, by=by)

    [action] = runs.get(task_id).actions
    assert action.by == ("?" if by == "\ud800" else str(by))


def test_a_run_that_waits_for_its_retry_is_woken(app: Celery, runs: Runs, redis_client: redis.Redis) -> None:
    task_id = executed(app, waits)
    keys = store_of(app).keys(task_id)

    runs.wake(task_id)

    due, now = redis_client.zscore(keys.due, task_id), redis_client.time()
    assert due <= now[0] * 1000 + now[1] / 1000
    assert execute(app.tasks["shop.waits"], task_id=task_id, delivery_info={"redelivered": True}) == "RETRY"
    assert [attempt.how for attempt in runs.get(task_id).attempts] == ["RETRY", "RETRY"]


def test_who_has_cancelled_a_run_is_kept(app: Celery, runs: Runs) -> None:
    task_id = executed(app, sleeps)

    runs.cancel(task_id, by="ann")

    assert execute(app.tasks["shop.sleeps"], task_id=task_id, delivery_info={"redelivered": True}) == "IGNORED"
    run = runs.get(task_id)
    assert run.state == "REVOKED"
    assert [(action.what, action.by) for action in run.actions] == [("cancel", "ann")]
    assert run.ended is not None
    sleep = run.steps[-1]
    assert (sleep.kind, sleep.state) == ("sleep", "cancelled")
    assert sleep.at is not None
    assert sleep.at <= run.ended, "it is not the time when it would have ended"


def test_a_failed_run_is_retried(app: Celery, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(app, "send_task", lambda name, *_, **options: sent.append(options["task_id"]))
    task_id = executed(app, fails)

    note = runs.retry(task_id, by="ann")

    assert note == "finished steps are replayed, the rest runs again"
    assert sent == [task_id]
    assert [(action.what, action.by) for action in runs.get(task_id).actions] == [("retry", "ann")]


def test_a_run_that_is_purged_leaves_nothing(app: Celery, runs: Runs, redis_client: redis.Redis) -> None:
    task_id = executed(app, sells, 7)
    eventually(lambda: redis_client.hget(store_of(app).keys(task_id).run, "delivered") == "1", what="the delivery")

    runs.purge(task_id)

    assert redis_client.hgetall(store_of(app).keys(task_id).run).keys() == {"purged", "seed"}
    assert runs.counts() == {}
    with pytest.raises(RunNotFound):
        runs.get(task_id)


@pytest.mark.parametrize(
    ("verb", "body", "error", "said"),
    [
        ("wake", sells, RunNotWakeableError, "does not wait, it is SUCCESS"),
        ("cancel", sells, RunNotCancellableError, "has ended already"),
        ("retry", sells, RunNotRetryableError, "has not ended in FAILURE, it is SUCCESS"),
        ("purge", sleeps, RunNotPurgeableError, "has not ended, it is SUSPENDED: cancel it first"),
        ("wake", None, RunNotWakeableError, "has no journal"),
        ("cancel", None, RunNotCancellableError, "has no journal"),
        ("retry", None, RunNotRetryableError, "has no journal"),
        ("purge", None, RunNotPurgeableError, "has no journal"),
    ],
)
def test_what_the_state_of_a_run_forbids_is_refused_and_changes_nothing(
    app: Celery, runs: Runs, redis_client: redis.Redis, verb: str, body: Any, error: type[Exception], said: str
) -> None:
    args = (7,) if body is sells else ()
    task_id = executed(app, body, *args) if body else "nowhere"
    if body:
        key = store_of(app).keys(task_id).run
        eventually(lambda: _is_settled(redis_client.hgetall(key)), what="the delivery")
    before = redis_client.hgetall(store_of(app).keys(task_id).run)

    with pytest.raises(error, match=f"^task {task_id} {said}"):
        getattr(runs, verb)(task_id)

    assert redis_client.hgetall(store_of(app).keys(task_id).run) == before


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("get", RunNotFound),
        ("export", RunNotFound),
        ("retry", RunNotRetryableError),
        ("restart", RunNotRestartableError),
        ("cancel", RunNotCancellableError),
        ("wake", RunNotWakeableError),
        ("purge", RunNotPurgeableError),
    ],
)
def test_an_id_that_is_no_text_is_told_in_a_sentence(runs: Runs, name: str, error: type[Exception]) -> None:
    for wrong in (None, b"an-id", 7, ""):
        with pytest.raises(error, match=f"^the id of a task is a text, got {wrong!r}$"):
            getattr(runs, name)(wrong)


def _is_settled(fields: dict[str, str]) -> bool:
    return fields["status"] == "suspended" or "delivered" in fields
