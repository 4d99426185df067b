"""Restart: a new run does again what an old one has done, from its beginning or from one of its steps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import Ignore

from celery_durable import (
    JournalUnreadableError,
    RunNotPurgeableError,
    RunNotRestartableError,
    RunNotRetryableError,
    Runs,
    TerminalError,
    current_step,
)
from celery_durable.app.store import Store, store_of
from celery_durable.delivery.call import Call
from celery_durable.journal.port import Finished
from tests.integration.runs import HINT, claimed, deliver, delivery, new_id, opened, overdue, sent, task_of

pytestmark = pytest.mark.usefixtures("empty_broker")


def order(self: Any, number: int) -> list[Any]:
    """Draw and record, and fail unless it is mended."""

    def act(name: str) -> str:
        self.ran[name] += 1
        self.keys.append(str(current_step().idempotency_key))
        if name == "charge" and not self.mended:
            raise TerminalError("declined")
        return f"{name} {number}"

    first = [self.ctx.time(), str(self.ctx.uuid()), self.ctx.random().random()]
    self.ctx.run("reserve", act, "reserve")
    second = [self.ctx.time()]
    self.ctx.run("charge", act, "charge")
    third = [self.ctx.time(), str(self.ctx.uuid()), self.ctx.random().random()]
    self.ctx.run("ship", act, "ship")
    self.drawn.append((first, second, third))
    return third


def made(app: Celery, body: Any, *, mended: bool = False) -> Any:
    task = task_of(app, body)
    task.ran, task.mended, task.drawn, task.keys = Counter(), mended, [], []
    return task


def began(app: Celery, body: Any = order, *, mended: bool = False, **options: Any) -> tuple[Any, str]:
    """Execute a run to its end; return the task and the id."""
    task, task_id = made(app, body, mended=mended), new_id()
    task.apply_async((7,), task_id=task_id, **options)
    [message] = sent(app)
    message.accept = {"application/json", "application/x-python-serialize"}
    deliver(task, message, **message.payload[2])
    task.mended = True
    return task, task_id


def failed_again(app: Celery, runs: Runs) -> tuple[Any, str, str]:
    """A run that has failed, and its restart, which has failed, too; return the task and both ids."""
    task, old = began(app)
    task.mended = False
    new = runs.restart(old)
    assert deliver(task, sent(app)[0]) == "FAILURE"
    return task, old, new


def fields(client: redis.Redis, store: Store, task_id: str) -> dict[str, str]:
    found: Any = client.hgetall(store.keys(task_id).run)
    return found


def test_a_restart_does_all_again_under_a_new_id(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis
) -> None:
    task, old = began(app, headers={"tenant": "a"}, link=[task_of(app, linked).s()])
    before = fields(redis_client, store, old)

    new = runs.restart(old, by="ann")

    waiting = runs.get(new)
    assert (waiting.state, waiting.restarted_from, waiting.args, waiting.attempts) == ("RETRY", old, [7], ())
    assert runs.counts() == {"RETRY": 1, "FAILURE": 1}
    [message] = sent(app)
    assert (message.headers["id"], message.headers["root_id"], message.headers["tenant"]) == (new, new, "a")
    assert message.payload[2]["callbacks"][0]["task"] == "shop.linked"
    assert deliver(task, message) == "SUCCESS"
    assert task.ran == {"reserve": 2, "charge": 2, "ship": 1}
    assert len(set(task.keys)) == 5
    run = runs.get(new)
    assert [attempt.how for attempt in run.attempts] == ["SUCCESS"]
    assert run.build == run.attempts[0].build != ""
    after, now = fields(redis_client, store, old), fields(redis_client, store, new)
    assert {name: text for name, text in after.items() if name != "actions"} == before
    assert now["seed"] != before["seed"]
    assert "attempt.0" not in now
    assert not any('"build"' in text for name, text in now.items() if name.startswith("step:"))
    assert [(action.what, action.by, action.run) for action in runs.get(old).actions] == [("restart", "ann", new)]
    assert [(action.what, action.by, action.run) for action in run.actions] == [("restart", "ann", "")]


def linked(self: Any, value: Any) -> None:
    """Follow."""


@pytest.mark.parametrize(
    ("step", "ran"),
    [
        ("reserve", {"reserve": 2, "charge": 2, "ship": 2}),
        ("charge", {"reserve": 1, "charge": 2, "ship": 2}),
        ("3", {"reserve": 1, "charge": 1, "ship": 2}),
    ],
)
def test_a_restart_from_a_step_replays_what_stands_before_it(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis, step: str, ran: dict[str, int]
) -> None:
    task, old = began(app, mended=True)

    new = runs.restart(old, from_step=step)
    assert deliver(task, sent(app)[0]) == "SUCCESS"

    assert task.ran == ran
    assert len(set(task.keys)) == len(task.keys), "each execution has a key of its own"
    (first, second, third), (first_again, second_again, third_again) = task.drawn
    assert first_again == first
    assert (second_again == second) is (step != "reserve")
    assert third_again[1:] == third[1:], "the seed is the same"
    assert (third_again[0] == third[0]) is (step == "3"), "the time is drawn again behind the step"
    seeds = [fields(redis_client, store, task_id)["seed"] for task_id in (old, new)]
    assert seeds[0] == seeds[1]


def test_what_a_restart_has_drawn_is_the_same_in_its_later_attempts(app: Celery, runs: Runs) -> None:
    def body(self: Any, number: int) -> None:
        self.drawn.append(self.ctx.time())
        self.ctx.run("a", lambda: 1)
        self.drawn.append(self.ctx.time())
        self.ctx.run("b", lambda: 1)
        if self.request.retries < 1 and len(self.drawn) > 2:
            raise self.retry(countdown=0)

    task, old = began(app, body)
    runs.restart(old, from_step="b")
    assert deliver(task, sent(app)[0]) == "RETRY"
    assert deliver(task, sent(app)[0]) == "SUCCESS"

    old_draws, first, second = task.drawn[:2], task.drawn[2:4], task.drawn[4:]
    assert first == second
    assert first == old_draws, "both stand before the step"


def test_a_restart_of_a_restart_knows_what_the_first_one_has_drawn(app: Celery, runs: Runs) -> None:
    task, old = began(app)
    second = runs.restart(old, from_step="charge")
    task.mended = False
    assert deliver(task, sent(app)[0]) == "FAILURE"
    task.mended = True

    third = runs.restart(second, from_step="charge")
    assert deliver(task, sent(app)[0]) == "SUCCESS"

    assert task.ran == {"reserve": 1, "charge": 3, "ship": 1}
    assert runs.get(third).restarted_from == second


def test_code_that_does_not_follow_what_was_taken_over_is_refused_at_once(app: Celery, runs: Runs) -> None:
    def body(self: Any, number: int) -> None:
        if not self.mended:
            self.ctx.run("a", lambda: 1)
            self.ctx.run("b", lambda: 1)

    task, old = began(app, body)
    new = runs.restart(old, from_step="b")

    assert deliver(task, sent(app)[0]) == "FAILURE"
    assert "took another path than the journal recorded" in runs.get(new).error


@pytest.mark.parametrize("lost", [True, False], ids=["its sender dies", "the broker is away"])
def test_a_restart_that_is_not_sent_is_found(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    task, old = began(app)
    with monkeypatch.context() as patched:
        patched.setattr(Call, "send", dies if lost else fails_to_connect)
        if lost:
            with pytest.raises(SystemExit):
                runs.restart(old)
        else:
            runs.restart(old)
    assert claimed(store, task.name) == [], "its message is given a lease to arrive"
    [new] = [run.id for run in runs.list(state="RETRY")]

    overdue(redis_client, store, new)
    [found] = claimed(store, task.name)

    assert found.task_id == new
    Call.load(found.call, frozenset(["json"])).send(app, found.task, HINT["headers"]["celery_durable"])
    assert deliver(task, sent(app)[0]) == "SUCCESS"
    assert task.ran == {"reserve": 2, "charge": 2, "ship": 1}


@pytest.mark.parametrize("act", ["note_restart", "unpause"])
def test_nobody_begins_a_restart_that_broke_off(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    task, old = began(app)
    with monkeypatch.context() as patched:
        patched.setattr(store.runs, act, dies)
        with pytest.raises(SystemExit):
            runs.restart(old)
    [broken] = [run.id for run in runs.list(state="PAUSED")]
    assert redis_client.zscore(store.keys(broken).due, broken) is None
    assert 23 * 3600 < redis_client.ttl(store.keys(broken).run) <= 24 * 3600

    if act == "note_restart":
        new = runs.restart(old)
        with pytest.raises(RunNotRetryableError, match=f"does the same work as {new}, which has not ended"):
            runs.retry(broken)
    else:
        with pytest.raises(RunNotRestartableError, match=f"was restarted as {broken}, which is paused: retry it, or"):
            runs.restart(old)
        runs.retry(broken)
        assert claimed(store, task.name)[0].task_id == broken
        assert redis_client.ttl(store.keys(broken).run) == -1


@pytest.mark.parametrize("act", ["note_restart", "unpause"])
def test_a_restart_that_broke_off_begins_when_its_request_is_delivered_again(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    task, old = began(app)
    restart = app.tasks["celery_durable.restart"]
    with monkeypatch.context() as patched:
        patched.setattr(store.runs, act, dies)
        with pytest.raises(SystemExit):
            restart.apply((old,), task_id="request")

    new = restart.apply((old,), task_id="request").get()["task_id"]

    assert runs.counts() == {"RETRY": 1, "FAILURE": 1}
    overdue(redis_client, store, new)
    assert [found.task_id for found in claimed(store, task.name)] == [new]


def dies(*_: Any, **__: Any) -> None:
    raise SystemExit


def fails_to_connect(*_: Any, **__: Any) -> None:
    raise OSError("no broker")


def test_copies_of_the_message_of_a_restart_begin_nothing(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis
) -> None:
    task, old = began(app)
    new = runs.restart(old)
    [message] = sent(app)
    assert deliver(task, message) == "SUCCESS"
    assert deliver(task, message) == "IGNORED"

    runs.purge(new)
    assert deliver(task, message) == "IGNORED", "it begins no run, though there is no journal any more"
    assert task.ran == {"reserve": 2, "charge": 2, "ship": 1}


def test_a_request_that_is_delivered_twice_restarts_once(app: Celery, runs: Runs) -> None:
    task, old = began(app)
    restart = app.tasks["celery_durable.restart"]

    first = restart.apply((old,), {"from_step": "charge", "by": "ann"}, task_id="request").get()
    [message] = sent(app)
    second = restart.apply((old,), {"from_step": "charge", "by": "ann"}, task_id="request").get()

    assert first == second == {"task_id": first["task_id"], "restarted_from": old}
    assert sent(app) == []
    assert deliver(task, message) == "SUCCESS"
    assert len(runs.get(old).actions) == 1
    assert restart.apply((old,), task_id="another").get()["task_id"] != first["task_id"]


def test_nothing_is_done_twice_at_once(app: Celery, runs: Runs) -> None:
    task, old = began(app)
    new = runs.restart(old)

    with pytest.raises(RunNotRestartableError, match=f"was restarted as {new}, which has not ended: wait for it"):
        runs.restart(old)
    with pytest.raises(RunNotRetryableError, match=f"was restarted as {new}, which has not ended"):
        runs.retry(old)
    with pytest.raises(RunNotRestartableError, match=r"has not ended, it is [A-Z]+: cancel it first"):
        runs.restart(new)

    task.mended = False
    assert deliver(task, sent(app)[0]) == "FAILURE"
    assert "finished steps are replayed" in runs.retry(old)


def test_of_two_restarts_at_once_one_is_refused(
    app: Celery, runs: Runs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read the journal before the other one has done anything."""
    _, old = began(app)
    before, load = store.runs.load(old), store.runs.load
    first = runs.restart(old)

    with monkeypatch.context() as patched:
        patched.setattr(store.runs, "load", lambda task_id: before if task_id == old else load(task_id))
        with pytest.raises(RunNotRestartableError, match="has restarted or retried it just now: look at it again"):
            runs.restart(old)

    assert runs.counts() == {"RETRY": 1, "FAILURE": 1}
    assert [message.headers["id"] for message in sent(app)] == [first]
    assert [action.run for action in runs.get(old).actions] == [first]


def test_a_restart_that_is_slower_than_a_retry_is_refused(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, old = began(app)
    before = store.runs.load(old)
    redis_client.hset(store.keys(old).run, "status", "running")

    monkeypatch.setattr(store.runs, "load", lambda _task_id: before)
    with pytest.raises(RunNotRestartableError, match="somebody has restarted or retried it just now"):
        runs.restart(old)

    assert sent(app) == []
    assert redis_client.exists(store.keys(old).run) == 1
    assert [run.id for run in runs.list(state="RETRY")] == []


def test_a_retry_that_arrives_after_a_restart_begins_nothing(app: Celery, runs: Runs) -> None:
    """Its message was on the way when somebody lost patience."""
    task, old = began(app)
    runs.retry(old)
    [late] = sent(app)
    new = runs.restart(old)
    [message] = sent(app)

    assert deliver(task, late) == "IGNORED"

    assert runs.get(old).state == "FAILURE"
    task.mended = False
    assert deliver(task, message) == "FAILURE"
    assert deliver(task, late) == "IGNORED", "it does not know of the restart"
    task.mended = True
    runs.retry(old)
    assert deliver(task, sent(app)[0]) == "SUCCESS"
    assert task.ran == {"reserve": 2, "charge": 3, "ship": 1}
    assert runs.get(new).state == "FAILURE"


def test_a_retry_that_arrives_after_the_restart_of_its_restart_begins_nothing(app: Celery, runs: Runs) -> None:
    task, old, new = failed_again(app, runs)
    runs.retry(old)
    [late] = sent(app)
    runs.restart(new)
    [message] = sent(app)

    assert deliver(task, late) == "IGNORED"

    assert runs.get(old).state == "FAILURE"
    task.mended = True
    assert deliver(task, message) == "SUCCESS"
    assert task.ran == {"reserve": 3, "charge": 3, "ship": 1}


def test_a_retry_that_arrives_after_a_purge_begins_nothing(app: Celery, runs: Runs) -> None:
    """Without its journal it would do all steps once more."""
    task, old = began(app)
    runs.retry(old)
    runs.purge(old)

    assert deliver(task, sent(app)[0]) == "IGNORED"

    assert task.ran == {"reserve": 1, "charge": 1}
    assert runs.counts() == {}


@pytest.mark.parametrize("late", [{"delivery_info": {"redelivered": True}}, {"retries": 1}, {}], ids=str)
def test_no_message_of_a_run_that_was_purged_begins_it_again(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis, late: dict[str, Any]
) -> None:
    """A retry that the broker has kept, or a copy, which not every broker marks."""
    task, task_id = made(app, order, mended=True), new_id()
    task.apply_async((7,), task_id=task_id)
    [message] = sent(app)
    assert deliver(task, message) == "SUCCESS"
    runs.purge(task_id)

    assert deliver(task, message, **late) == "IGNORED"

    assert task.ran == {"reserve": 1, "charge": 1, "ship": 1}
    assert (runs.counts(), list(runs.list())) == ({}, [])
    assert 0 < redis_client.ttl(store.keys(task_id).run) <= 24 * 3600


def test_an_id_that_was_purged_can_be_sent_again(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis
) -> None:
    task, task_id = made(app, order, mended=True), new_id()
    for number in (1, 2):
        task.apply_async((7,), task_id=task_id)
        assert deliver(task, sent(app)[0]) == "SUCCESS"
        assert task.ran == {"reserve": number, "charge": number, "ship": number}
        assert "purged" not in fields(redis_client, store, task_id)
        runs.purge(task_id)
        with pytest.raises(RunNotPurgeableError, match="has no journal"):
            runs.purge(task_id)


def test_a_new_message_does_not_retry_a_run_whose_restart_is_alive(app: Celery, runs: Runs) -> None:
    task, old = began(app)
    runs.restart(old)
    sent(app)

    task.apply_async((7,), task_id=old)
    assert deliver(task, sent(app)[0]) == "IGNORED"

    assert runs.get(old).state == "FAILURE"
    assert task.ran == {"reserve": 1, "charge": 1}


def test_a_restart_that_comes_while_a_retry_is_decided_is_seen(store: Store) -> None:
    """The journal is read, then the Retry is decided, then the run is reopened."""
    journal = opened(store, old := new_id())
    journal.finish("failed", {"outcome": "{}"})
    journal.deliver(24 * 3600)
    journal.flush()
    journal.close()
    asked: list[bool] = []

    def reserve(_fields: Any, _token: str) -> str | None:
        asked.append(True)
        if len(asked) > 1:
            return None
        assert store.runs.note_restart(old, None, "another", "")
        return ""

    verdict = store.journal(old).open(delivery(old, reopen="again"), reserve)

    assert (len(asked), isinstance(verdict, Finished)) == (2, True), verdict


def test_a_restart_that_broke_off_and_is_retried_is_known_to_the_run_that_it_restarts(
    app: Celery, runs: Runs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, old = began(app)
    with monkeypatch.context() as patched:
        patched.setattr(store.runs, "note_restart", dies)
        with pytest.raises(SystemExit):
            runs.restart(old)
    [broken] = runs.list(state="PAUSED")

    runs.retry(broken.id, by="ann")

    assert [action.run for action in runs.get(old).actions] == [broken.id]
    with pytest.raises(RunNotRetryableError, match=f"was restarted as {broken.id}, which has not ended"):
        runs.retry(old)
    with pytest.raises(RunNotRestartableError, match=f"was restarted as {broken.id}, which has not ended"):
        runs.restart(old)


def test_a_run_knows_the_restart_of_its_restart_though_the_one_between_is_gone(app: Celery, runs: Runs) -> None:
    task, first, second = failed_again(app, runs)
    third = runs.restart(second, by="ann")
    assert deliver(task, sent(app)[0]) == "FAILURE"
    fourth = runs.restart(third)
    for between in (second, third):
        runs.purge(between)

    for act, error in ((runs.retry, RunNotRetryableError), (runs.restart, RunNotRestartableError)):
        with pytest.raises(error, match=f"was restarted as {fourth}, which has not ended"):
            act(first)

    task.mended = True
    assert deliver(task, sent(app)[0]) == "SUCCESS"
    assert [action.run for action in runs.get(first).actions] == [second, third, fourth]


def test_a_restart_begins_nothing_if_the_first_run_was_retried_meanwhile(
    app: Celery, runs: Runs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, first, second = failed_again(app, runs)
    note_restart = store.runs.note_restart

    def retried_first(*args: Any) -> bool:
        monkeypatch.undo()
        fingerprint = store.runs.load(first)[b"fingerprint"].decode()
        opened(store, first, reopen="again", task=task.name, fingerprint=fingerprint)
        return note_restart(*args)

    monkeypatch.setattr(store.runs, "note_restart", retried_first)
    with pytest.raises(RunNotRestartableError, match="somebody has restarted or retried it just now"):
        runs.restart(second)

    assert runs.counts() == {"STARTED": 1, "FAILURE": 1}


def test_a_retry_whose_request_is_delivered_again_says_that_it_was_done(app: Celery, runs: Runs) -> None:
    task, old = began(app)
    retry = app.tasks["celery_durable.retry"]
    assert "replayed" in retry.apply((old,), task_id="request").get()["note"]
    assert deliver(task, sent(app)[0]) == "SUCCESS"

    assert retry.apply((old,), task_id="request").get()["note"] == "that was done before"
    assert sent(app) == []


def test_a_restart_whose_task_is_replaced_still_says_what_it_restarts(app: Celery, runs: Runs) -> None:
    def replaces(self: Any, number: int) -> None:
        self.ctx.run("charge", lambda: 1)
        if not self.mended:
            raise TerminalError("declined")
        self.replace(task_of(app, linked).si(number))

    task, old = began(app, replaces)
    new = runs.restart(old, by="ann")
    assert deliver(task, sent(app)[0]) == "IGNORED"
    opened(store_of(app), new, nesting=1, task="shop.linked")

    run = runs.get(new)
    assert (run.task, run.state, run.restarted_from, run.steps) == ("shop.linked", "STARTED", old, ())
    assert [(action.what, action.by) for action in run.actions] == [("restart", "ann")]


def replaced(app: Celery, runs: Runs) -> tuple[str, str, Any]:
    """A failed run, its restart, which another task has replaced, and the message of that task."""

    def goes_on(self: Any, number: int) -> None:
        self.ctx.run("charge", lambda: number)

    def replaces(self: Any, number: int) -> None:
        self.ctx.run("reserve", lambda: number)
        if self.mended:
            self.replace(task_of(app, goes_on).si(number))
        raise TerminalError("declined")

    task, old = began(app, replaces)
    new = runs.restart(old)
    assert deliver(task, sent(app)[0]) == "IGNORED"
    [message] = sent(app)
    return old, new, message


def test_a_restart_does_not_begin_beside_the_task_that_has_replaced_the_run(app: Celery, runs: Runs) -> None:
    old, new, message = replaced(app, runs)

    said = r"was replaced by another task \(Task.replace\), which has its id now: if that is durable, wait until it has"
    with pytest.raises(RunNotRestartableError, match=f"task {new} {said}"):
        runs.restart(new)
    for verb, refusal in ((runs.restart, RunNotRestartableError), (runs.retry, RunNotRetryableError)):
        with pytest.raises(refusal, match=f"task {old} was restarted as {new}, which {said}"):
            verb(old)
    assert sent(app) == []

    assert deliver(app.tasks["shop.goes_on"], message) == "SUCCESS"
    assert runs.get(new).state == "SUCCESS"
    runs.restart(old)
    assert len(sent(app)) == 1


def test_a_run_that_ignores_itself_can_be_restarted(app: Celery, runs: Runs) -> None:
    def ignores(self: Any, number: int) -> None:
        self.ctx.run("charge", lambda: number)
        raise Ignore

    _, old = began(app, ignores)
    assert runs.get(old).state == "IGNORED"
    runs.restart(old)
    assert len(sent(app)) == 1


def test_a_run_does_not_go_on_beside_the_restart_of_its_restart(app: Celery, runs: Runs) -> None:
    _, old, new = failed_again(app, runs)
    newer = runs.restart(new)

    with pytest.raises(RunNotRetryableError, match=f"task {old} was restarted as {newer}, which has not ended"):
        runs.retry(old)
    with pytest.raises(RunNotRestartableError, match=f"was restarted as {newer}, which has not ended"):
        runs.restart(old)


def test_a_restart_does_not_go_on_beside_the_run_that_it_restarts(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis
) -> None:
    _, old, new = failed_again(app, runs)
    redis_client.hset(store.keys(old).run, "status", "running")  # as after a Retry

    with pytest.raises(RunNotRetryableError, match=f"task {new} does the same work as {old}, which has not ended"):
        runs.retry(new)
    with pytest.raises(RunNotRestartableError, match=f"does the same work as {old}, which has not ended"):
        runs.restart(new)


def test_a_restart_is_no_member_of_its_group_and_chord(app: Celery, runs: Runs) -> None:
    body = task_of(app, linked)
    follower = {**body.si(1), "options": {"task_id": "f", "group_id": "g", "chord": body.s()}}
    options = {"group_id": "g", "group_index": 1, "chord": body.s(), "root_id": "root", "parent_id": "parent"}
    _, old = began(app, **options, chain=[follower])
    sent(app)

    runs.restart(old)

    [message] = sent(app)
    headers, (_, _, embedded) = message.headers, message.payload
    assert (headers["group"], headers["group_index"], embedded["chord"]) == (None, None, None)
    assert (headers["root_id"], headers["parent_id"]) == ("root", "parent")
    assert embedded["chain"][0]["options"] == {"task_id": "f"}


def test_the_arguments_of_another_serializer_are_sent_with_it(app: Celery, runs: Runs) -> None:
    app.conf.accept_content = ["json", "pickle"]
    _, old = began(app, serializer="pickle")

    new = runs.restart(old)

    [message] = sent(app)
    message.accept = {"application/x-python-serialize"}
    assert (message.headers["id"], message.content_type) == (new, "application/x-python-serialize")
    assert deliver(app.tasks["shop.order"], message) == "SUCCESS"
    app.conf.accept_content = ["json"]
    with pytest.raises(RunNotRestartableError, match="its saved call cannot be read by this app"):
        runs.restart(old)


def test_a_run_whose_arguments_were_changed_is_restarted_with_the_newest(app: Celery, runs: Runs) -> None:
    def body(self: Any, number: int) -> int:
        self.ctx.run("a", lambda: 1)
        self.seen.append(number)
        if number == 7:
            raise self.retry(args=[8], countdown=0)
        return number

    task, task_id = made(app, body), new_id()
    task.seen = []
    task.apply_async((7,), task_id=task_id)
    assert deliver(task, sent(app)[0]) == "RETRY"
    assert deliver(task, sent(app)[0]) == "SUCCESS"

    runs.restart(task_id)

    assert deliver(task, sent(app)[0]) == "SUCCESS"
    assert task.seen == [7, 8, 8]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("running", "has not ended, it is STARTED: cancel it first"),
        (None, "has no journal: is the id right"),
    ],
)
def test_what_has_not_ended_is_not_restarted(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis, status: str | None, said: str
) -> None:
    task_id = new_id()
    if status:
        opened(store, task_id)
    before = redis_client.dbsize()

    with pytest.raises(RunNotRestartableError, match=f"^task {task_id} {said}"):
        runs.restart(task_id)

    assert redis_client.dbsize() == before
    assert sent(app) == []


def test_a_step_that_is_not_there_is_refused_and_nothing_begins(app: Celery, runs: Runs) -> None:
    _, old = began(app)

    with pytest.raises(RunNotRestartableError, match=r"no such step; there are: 'reserve' \(1\), 'charge' \(2\)$"):
        runs.restart(old, from_step="ship")

    assert runs.counts() == {"FAILURE": 1}
    assert runs.get(old).actions == ()
    assert sent(app) == []


def test_a_journal_of_a_newer_layout_is_left_alone(
    app: Celery, runs: Runs, store: Store, redis_client: redis.Redis
) -> None:
    _, old = began(app)
    redis_client.hset(store.keys(old).run, "v", "9")

    with pytest.raises(JournalUnreadableError, match="has layout '9'"):
        runs.restart(old)


def test_a_restart_that_is_cancelled_before_it_begins_compensates_nothing(app: Celery, runs: Runs) -> None:
    task, old = began(app)
    new = runs.restart(old)

    runs.cancel(new)

    assert deliver(task, sent(app)[0]) == "IGNORED"
    assert runs.get(new).state == "REVOKED"
    assert task.ran == {"reserve": 1, "charge": 1}


def test_a_restart_that_has_failed_is_retried(app: Celery, runs: Runs) -> None:
    task, old = began(app)
    task.mended = False
    new = runs.restart(old, from_step="charge")
    assert deliver(task, sent(app)[0]) == "FAILURE"
    task.mended = True

    runs.retry(new)

    assert deliver(task, sent(app)[0]) == "SUCCESS"
    assert task.ran == {"reserve": 1, "charge": 3, "ship": 1}
    assert [attempt.how for attempt in runs.get(new).attempts] == ["FAILURE", "SUCCESS"]
