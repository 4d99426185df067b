"""Runs that a worker was told to revoke: who ends one says so, and nobody else does."""

import os
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest.mock import Mock, call

import pytest
import redis
from celery import Celery, signals
from celery.worker import state as worker_state

from celery_durable import DurableTask, TaskCancelled, TerminalError, cancel
from celery_durable.app.store import Store, store_of
from celery_durable.delivery.message import HEADER
from celery_durable.interrupts import Fenced
from celery_durable.journal.port import Finished
from celery_durable.worker.revocation import Revocations
from tests.integration.runs import (
    HINT,
    delivery,
    ended,
    execute,
    id_of,
    ids,
    lapse,
    new_id,
    opened,
    request_of,
    server_ms,
    state,
    task_of,
)
from tests.receivers import receiver
from tests.waiting import eventually

DAY = 24 * 3600.0


def sleeps(self: Any, *_: Any) -> None:
    self.ctx.sleep(3600)


def asleep(app: Celery, **options: Any) -> str:
    """Return the id of a run that sleeps."""
    task_id = new_id()
    assert execute(task_of(app, sleeps, **options), "bed", task_id=task_id) == "IGNORED"
    return task_id


@pytest.fixture
def worker() -> Mock:
    """Whose monitors listen."""
    return Mock(hostname="w1")


def events(worker: Mock) -> list[Any]:
    return worker.consumer.event_dispatcher.send.call_args_list


@pytest.fixture
def heard() -> Iterator[Mock]:
    """A receiver of the signal."""
    with receiver(signals.task_revoked) as listener:
        yield listener


@pytest.fixture
def revoke(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tell what revokes of ids, as remote control does, and let it find them twice."""

    def told(revocations: Revocations, *ids: str) -> None:
        monkeypatch.setattr(worker_state, "revoked", set(ids))
        for _ in range(2):
            revocations.end_revoked_runs()

    return told


def test_a_run_that_its_request_has_ended_is_not_announced_again(
    app: Celery, worker: Mock, heard: Mock, revoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are in the main process of a worker."""
    announced = Mock()
    task_id = asleep(app)
    monkeypatch.setattr(app.backend, "mark_as_revoked", announced)

    assert store_of(app).runs.terminate(task_id, "revoked", DAY, "{}")
    assert not store_of(app).runs.terminate(task_id, "revoked", DAY, "{}")
    revoke(Revocations(app, worker), task_id)

    assert announced.call_count == heard.call_count == len(events(worker)) == 0


def test_what_could_not_be_said_of_a_revoked_run_is_said_the_next_time(
    app: Celery, worker: Mock, heard: Mock, revoke: Any, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = Mock(side_effect=[ConnectionError("away"), None])
    task_id, revocations = asleep(app), Revocations(app, worker)
    monkeypatch.setattr(app.backend, "mark_as_revoked", announced)

    for _ in range(2):
        revoke(revocations, task_id)

    assert announced.call_count == 2
    assert heard.call_count == len(events(worker)) == 1
    assert redis_client.hget(store_of(app).keys(task_id).run, "status") == "revoked"


def test_a_sleeping_run_that_is_revoked_is_announced_as_celery_announces_its_own(
    app: Celery, worker: Mock, heard: Mock, revoke: Any
) -> None:
    app.conf.result_extended = True
    task_id = asleep(app)
    how = {"terminated": False, "signum": None, "expired": False}

    revoke(Revocations(app, worker), task_id)

    # The state, too: monitors would keep SUSPENDED otherwise.
    assert events(worker) == [call("task-revoked", uuid=task_id, state="REVOKED", **how)]
    [said] = [received.kwargs for received in heard.call_args_list]
    assert (said["sender"].name, {name: said[name] for name in how}) == ("shop.sleeps", how)
    request = said["request"]
    assert (request.id, request.args, request.kwargs, request.hostname) == (task_id, ["bed"], {}, "w1")
    stored = app.AsyncResult(task_id)
    assert (stored.state, stored.name, stored.args, stored.worker) == ("REVOKED", "shop.sleeps", ["bed"], "w1")


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_runs_that_wait_end_by_a_stamp_that_is_revoked_and_no_others(
    app: Celery, worker: Mock, heard: Mock, monkeypatch: pytest.MonkeyPatch, serializer: str
) -> None:
    app.conf.update(task_serializer=serializer, accept_content=["json", "pickle"])
    marks = {"first": {"order": "o-1"}, "second": {"order": ["o-0", "o-2"]}, "other": {"order": "o-9"}, "none": None}
    ids = {name: new_id() for name in marks}
    for name, stamps in marks.items():
        stamped = {"stamped_headers": ["order"], "stamps": stamps} if stamps else {}
        assert execute(task_of(app, sleeps), task_id=ids[name], **stamped) == "IGNORED"
    revocations = Revocations(app, worker)
    monkeypatch.setattr(worker_state, "revoked", set())

    for stamps in ({"order": "o-1"}, {"order": ["o-1", "o-2"], "customer": "c-1"}):
        monkeypatch.setattr(worker_state, "revoked_stamps", stamps)
        for _ in range(2):
            revocations.end_revoked_runs()

    assert {name: app.AsyncResult(task_id).state for name, task_id in ids.items()} == {
        "first": "REVOKED", "second": "REVOKED", "other": "SUSPENDED", "none": "SUSPENDED",
    }  # fmt: skip
    assert heard.call_count == len(events(worker)) == 2


@pytest.mark.parametrize("silent", ["worker", "task", "connection"])
def test_monitors_hear_of_a_revoked_run_only_where_they_are_to(
    app: Celery, worker: Mock, heard: Mock, revoke: Any, silent: str
) -> None:
    eventer = worker.consumer.event_dispatcher
    if silent == "worker":
        eventer.enabled = False
    elif silent == "connection":
        worker.consumer.event_dispatcher = None

    revoke(Revocations(app, worker), asleep(app, send_events=silent != "task"))

    assert eventer.send.call_count == 0
    assert heard.call_count == 1


def test_a_revoked_run_of_a_task_that_is_unknown_here_ends_unannounced(
    app: Celery, worker: Mock, heard: Mock, revoke: Any
) -> None:
    task_id = asleep(app)
    del app.tasks["shop.sleeps"]

    revoke(Revocations(app, worker), task_id)

    assert app.AsyncResult(task_id).state == "REVOKED"
    assert heard.call_count == len(events(worker)) == 0


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("by", ["revoke", "cancel"])
def test_an_error_is_stored_of_a_run_whose_result_is_ignored_where_errors_are_wanted(
    app: Celery, worker: Mock, revoke: Any, by: str, wanted: bool
) -> None:
    """As Celery's own request stores it."""
    task = task_of(app, sleeps, ignore_result=True, store_errors_even_if_ignored=wanted)
    execute(task, task_id=(task_id := new_id()))
    assert app.AsyncResult(task_id).state == "PENDING"

    if by == "revoke":
        revoke(Revocations(app, worker), task_id)
    else:
        cancel(task_id, app=app)
        assert execute(task, task_id=task_id, headers={HEADER: {"hint": 1}}) == "IGNORED"

    assert app.AsyncResult(task_id).state == ("REVOKED" if wanted else "PENDING")


class Hooked(DurableTask[Any, Any]):
    """Notes its hooks, of which one fails."""

    abstract = True
    heard: ClassVar[list[tuple[Any, ...]]] = []

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.heard.append(("on_failure", type(exc), task_id, args, kwargs, einfo.type))
        raise KeyError("a lock that is gone")

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.heard.append(("after_return", status, type(retval), task_id, args, kwargs))


def test_the_hooks_of_a_cancelled_run_are_called_when_its_end_is_delivered(
    app: Celery, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the attempt itself or, where that could not deliver it, by who does; a hook that fails is logged."""
    made = app.task(base=Hooked, bind=True, shared=False, name="shop.hooked")(sleeps)
    task, task_id, hint = app.tasks[made.name], new_id(), {HEADER: {"hint": 1}}
    execute(task, "bed", task_id=task_id)
    cancel(task_id, app=app)
    key = store_of(app).keys(task_id).run
    Hooked.heard.clear()
    with monkeypatch.context() as broken:
        broken.setattr(app.backend, "store_result", Mock(side_effect=ConnectionError("away")))
        assert execute(task, "bed", task_id=task_id, headers=hint) == "IGNORED"
    assert (redis_client.hmget(key, "status", "delivered"), Hooked.heard) == (["revoked", None], [])
    lapse(redis_client, store_of(app), task_id)

    for _ in range(2):
        assert execute(task, "bed", task_id=task_id, headers=hint) == "IGNORED"

    assert redis_client.hmget(key, "status", "delivered") == ["revoked", "1"]
    assert app.AsyncResult(task_id).state == "REVOKED"
    assert Hooked.heard == [
        ("on_failure", TaskCancelled, task_id, ("bed",), {}, TaskCancelled),
        ("after_return", "REVOKED", TaskCancelled, task_id, ("bed",), {}),
    ]
    assert f"task {task_id}: it was cancelled, and its on_failure failed" in caplog.text


# -- in the journal ----------------------------------------------------------------------------------------------------


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
    task_id = id_of(ended(store, delivered=delivered))
    before = state(redis_client, store, task_id)

    assert not store.runs.terminate(task_id, "revoked", DAY, "{}")
    assert state(redis_client, store, task_id) == before


def test_a_run_that_has_not_begun_cannot_be_ended(store: Store, redis_client: redis.Redis) -> None:
    assert not store.runs.terminate(new_id(), "revoked", DAY, "{}")
    assert not store.runs.is_known(new_id())
    assert redis_client.dbsize() == 0


@pytest.fixture
def untold(app: Celery, worker: Mock, revoke: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a sleeper that was revoked by a worker that was lost before it could tell the result backend."""
    made, task_id = app.task(base=Hooked, bind=True, shared=False, name="shop.sleeps")(sleeps), new_id()
    assert execute(app.tasks[made.name], "bed", task_id=task_id) == "IGNORED"
    Hooked.heard.clear()
    with monkeypatch.context() as patched:
        patched.setattr(app.backend, "mark_as_revoked", Mock(side_effect=ConnectionError("away")))
        revoke(Revocations(app, worker), task_id)
    return task_id


def test_a_revoked_run_is_told_by_another_worker_if_the_one_that_has_ended_it_is_lost(
    app: Celery, untold: str, redis_client: redis.Redis
) -> None:
    task_id, store = untold, store_of(app)
    assert redis_client.hget(store.keys(task_id).run, "status") == "revoked"
    assert app.AsyncResult(task_id).state == "SUSPENDED"

    lapse(redis_client, store, task_id)
    assert ids(store, "shop.sleeps") == [task_id]
    assert execute(app.tasks["shop.sleeps"], "bed", task_id=task_id, **HINT) == "IGNORED"

    assert app.AsyncResult(task_id).state == "REVOKED"
    eventually(lambda: redis_client.hget(store.keys(task_id).run, "delivered") == "1", what="the delivery")
    assert ids(store, "shop.sleeps") == []
    assert Hooked.heard == [], "as in plain Celery, none of its code runs any more"


def test_a_revoked_run_is_told_by_a_worker_that_knows_of_the_revocation(
    app: Celery, untold: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the message that recovery has sent, and throws it away."""
    task_id, store = untold, store_of(app)
    lapse(redis_client, store, task_id)

    request = request_of(app.tasks["shop.sleeps"], task_id, "bed", eventer=Mock())
    monkeypatch.setattr("celery.worker.request.revoked_tasks", {task_id})
    assert request.revoked()

    assert app.AsyncResult(task_id).state == "REVOKED"
    assert redis_client.hget(store.keys(task_id).run, "delivered") == "1"
    assert ids(store, "shop.sleeps") == []


@pytest.mark.parametrize("status", ["failed", "failed, untold", "none"])
def test_a_retry_of_a_revoked_id_is_thrown_away_and_the_run_stays_failed(
    app: Celery,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: str,
) -> None:
    def fails(self: Any) -> None:
        self.ctx.run("charge", lambda: 1)
        raise TerminalError("declined")

    task, task_id = task_of(app, fails), new_id()
    if status != "none":
        assert execute(task, task_id=task_id) == "FAILURE"
    if status == "failed, untold":
        redis_client.hdel(store_of(app).keys(task_id).run, "delivered")

    eventer = Mock()
    request = request_of(task, task_id, eventer=eventer)
    monkeypatch.setattr("celery.worker.request.revoked_tasks", {task_id})
    assert request.revoked()

    stays = status == "failed"
    assert app.AsyncResult(task_id).state == ("FAILURE" if stays else "REVOKED")
    assert eventer.send.call_args.args == ("task-revoked",)
    assert eventer.send.call_args.kwargs.get("state") == ("FAILURE" if stays else None)
    assert (f"durable restart {task_id}" in caplog.text) == stays


@pytest.mark.parametrize(("has_it", "state", "status"), [(True, "FAILURE", "failed"), (False, "PENDING", "running")])
def test_a_hard_time_limit_ends_no_run_that_another_process_has_taken_over(
    app: Celery, monkeypatch: pytest.MonkeyPatch, state: str, status: str, *, has_it: bool
) -> None:
    """The first process has hung for so long that its lease has lapsed."""
    pid = os.getpid() if has_it else 1
    task, store = task_of(app, sleeps), store_of(app)
    opened(store, task_id := new_id(), task=task.name)
    request = request_of(task, task_id, "bed", eventer=Mock())
    monkeypatch.setattr(type(request), "worker_pid", pid)

    request.on_timeout(False, 5)

    assert (app.AsyncResult(task_id).state, store.runs.load(task_id)[b"status"].decode()) == (state, status)
