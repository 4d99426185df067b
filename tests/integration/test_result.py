"""A result that is kept beside the journal: written with the outcome, as Celery's backend would have written it."""

import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar
from unittest import mock

import pytest
import redis
from celery import Celery, signals
from celery.backends.redis import RedisBackend
from celery.canvas import Signature
from celery.exceptions import Retry, SoftTimeLimitExceeded
from celery.result import EagerResult, GroupResult
from kombu.exceptions import EncodeError

from celery_durable import RunOptions
from celery_durable.app.store import Store, store_of
from celery_durable.delivery import outcome
from celery_durable.delivery.backend import SuppressingBackend
from celery_durable.exceptions import JournalUnavailableError
from celery_durable.interrupts import Fenced
from celery_durable.journal.port import NO_RESULT, JournalGone, Result
from celery_durable.redis.client.protocol import pack
from celery_durable.redis.journal import RedisJournal
from tests.integration.network import Waits
from tests.integration.runs import (
    app_at,
    execute,
    execute_sent,
    executions,
    lapse,
    new_id,
    opened,
    server_ms,
    state,
    store_at,
    task_of,
)
from tests.servers import RedisServer, free_port
from tests.waiting import eventually

DAY = 86400.0

AT_ONCE, BY_CELERY = 2, 3
"""Scripts that an attempt needs: to open, to end, and if Celery delivers the outcome, to say that it has."""

VALUE = {"order": 7, "lines": [1.5, "é", None]}


pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's


def sell(_self: Any, *_args: Any) -> dict[str, Any]:
    return VALUE


def sell_durably(self: Any, *_args: Any) -> dict[str, Any]:
    self.ctx.uuid()
    return VALUE


@contextmanager
def app_with_results(url: str, **conf: Any) -> Iterator[Celery]:
    """Yield an app that keeps its results beside its journals."""
    with app_at(url) as app:
        app.conf.update({"result_backend": url, **conf})
        yield app


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with app_with_results(redis_url) as app:
        yield app


def key_of(task_id: str) -> str:
    return f"celery-task-meta-{task_id}"


# -- what is written


CONFS: dict[str, dict[str, Any]] = {
    "json": {},
    "pickle": {"result_serializer": "pickle", "result_accept_content": ["pickle"]},
    "compressed": {"result_compression": "gzip"},
    "extended": {"result_extended": True},
    "kept for ever": {"result_expires": 0},
    "kept for an hour": {"result_expires": 3600},
    "under a prefix": {"result_backend_transport_options": {"global_keyprefix": "shop:"}},
}


@pytest.mark.parametrize("conf", CONFS)
def test_it_is_what_celery_writes(redis_url: str, redis_client: redis.Redis, conf: str) -> None:
    request = {"group": "g1", "parent_id": "p1", "stamps": {"by": ["me"]}, "stamped_headers": ["by"]}
    metas, kept = [], []
    with app_with_results(redis_url, **CONFS[conf]) as app:
        durable = task_of(app, sell_durably)
        plain = app.task(bind=True, shared=False, name="plain")(sell)
        for task in (durable, app.tasks[plain.name]):
            task_id = new_id()
            assert execute(task, 1, "two", task_id=task_id, **request) == "SUCCESS"
            backend = app.backend
            metas.append(backend.decode_result(backend.get(backend.get_key_for_task(task_id))))
            kept.append(redis_client.ttl(backend.get_key_for_task(task_id)))
            assert metas[-1].pop("task_id") == task_id
            assert metas[-1].pop("date_done")
            metas[-1].pop("name", None)

    assert metas[0] == metas[1]
    assert metas[0]["result"] == VALUE
    assert kept[0] == pytest.approx(kept[1], abs=5)


# No others: these connect to nothing when they are forgotten.
CHILD = EagerResult("child", None, "SUCCESS")
CHILDREN = GroupResult("children", [EagerResult(name, None, "SUCCESS") for name in ("one", "two")])


@pytest.mark.parametrize("beside", [True, False], ids=["beside the journal", "elsewhere"])
@pytest.mark.parametrize("sent", [CHILD, CHILDREN], ids=["one", "many"])
def test_what_stands_for_other_tasks_is_written_as_what_finds_them(redis_url: str, sent: Any, beside: bool) -> None:
    def sends(self: Any) -> Any:
        self.ctx.uuid()
        return sent

    task_id = new_id()
    with app_with_results(redis_url, **({} if beside else {"result_backend": "cache+memory://"})) as app:
        task = task_of(app, sends)
        assert execute(task, task_id=task_id) == "SUCCESS"

        stored = task.AsyncResult(task_id).result
        assert stored == json.loads(json.dumps(sent.as_tuple()))
        assert outcome.read(store_of(app).runs.load(task_id), frozenset()).value == stored


def test_who_waits_for_it_is_told(app: Celery, redis_client: redis.Redis) -> None:
    with redis_client.pubsub() as subscription:
        subscription.subscribe(key_of(task_id := new_id()))
        subscription.get_message(timeout=5)
        execute(task_of(app, sell_durably), task_id=task_id)
        message = subscription.get_message(timeout=5)

    assert message["data"] == redis_client.get(key_of(task_id))
    assert json.loads(message["data"])["result"] == VALUE


def test_the_task_waits_for_redis_twice_in_all(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits().install(monkeypatch)
    with app_with_results(redis_url) as app:
        task, untouched = task_of(app, sell_durably), task_of(app, sell)
        execute(task, task_id=new_id())
        redis_client.config_resetstat()
        with waits.counted(AT_ONCE):
            assert execute(task, task_id=new_id()) == "SUCCESS"
        assert executions(redis_client, "evalsha") == AT_ONCE
        execute(untouched, task_id=new_id())
        with waits.counted(2):  # to look for an older result, and to store this one
            assert execute(untouched, task_id=new_id()) == "SUCCESS"


# -- when it is written


def test_no_worker_can_die_between_the_outcome_and_its_result(app: Celery, redis_client: redis.Redis) -> None:
    """When Celery is about to say that the task is done, all is said."""
    task, task_id, seen = task_of(app, sell_durably), new_id(), []

    def look(*_: Any) -> None:
        seen.append((state(redis_client, store_of(app), task_id), task.AsyncResult(task_id).result))

    with mock.patch.object(SuppressingBackend, "mark_as_done", look):
        execute(task, task_id=task_id)

    [(run, result)] = seen
    assert result == VALUE
    assert (run["fields"]["status"], run["fields"]["delivered"]) == ("succeeded", "1")
    assert (run["lease"], run["due"], run["expires"]) == (None, None, True)


def test_a_time_limit_that_strikes_after_that_makes_no_failure_of_it(app: Celery) -> None:
    task, task_id = task_of(app, sell_durably), new_id()

    with (
        mock.patch.object(SuppressingBackend, "mark_as_done", side_effect=SoftTimeLimitExceeded),
        pytest.warns(RuntimeWarning, match="Exception raised outside body"),
    ):
        execute(task, task_id=task_id)

    assert task.AsyncResult(task_id).result == VALUE
    # Of another task it would be one.
    task.backend.mark_as_failure("another", ValueError("refused"))
    assert task.AsyncResult("another").state == "FAILURE"


def test_the_settings_of_a_backend_hold(app: Celery, redis_url: str, redis_client: redis.Redis) -> None:
    own = RedisBackend(app=app, url=redis_url, expires=60)
    task, task_id = task_of(app, sell_durably, backend=own), new_id()

    execute(task, task_id=task_id)

    assert 0 < redis_client.ttl(key_of(task_id)) <= 60


def test_bytes_of_any_kind_are_written_as_they_are(app: Celery, redis_client: redis.Redis) -> None:
    class Bytes(bytes):
        """As a library may have them."""

    task, task_id = task_of(app, sell_durably), new_id()
    encode = app.backend.encode
    with mock.patch.object(app.backend, "encode", lambda data: Bytes(encode(data).encode())):
        execute(task, task_id=task_id)

    assert json.loads(redis_client.get(key_of(task_id)))["result"] == VALUE


def test_an_app_that_nobody_uses_any_more_is_freed(redis_url: str) -> None:
    with app_with_results(redis_url) as app:
        execute(task_of(app, sell_durably), task_id=new_id())
        app.close()
    freed = weakref.ref(app)
    del app

    gc.collect()

    assert freed() is None


def test_the_result_of_the_next_task_is_another_affair(app: Celery) -> None:
    """Of one that did not come to say that it was done, say; the next has its id, and uses no context."""
    task, untouched, task_id = task_of(app, sell_durably), task_of(app, sell), new_id()
    with mock.patch.object(SuppressingBackend, "mark_as_done"):
        execute(task, task_id=task_id)
    app.backend.forget(task_id)

    execute(untouched, task_id=task_id)

    assert untouched.AsyncResult(task_id).result == VALUE


class OwnBackend(RedisBackend):
    """It may do anything with a result."""

    told: ClassVar[list[str]] = []

    def mark_as_done(self, task_id: Any, *args: Any, **kwargs: Any) -> None:
        self.told.append(task_id)
        super().mark_as_done(task_id, *args, **kwargs)


@pytest.mark.parametrize("ignored", [True, False])
def test_a_backend_of_its_own_kind_hears_of_every_end(
    app: Celery, monkeypatch: pytest.MonkeyPatch, ignored: bool
) -> None:
    app.loader.override_backends = {"redis": f"{__name__}:OwnBackend"}
    monkeypatch.delattr(RedisJournal, "conclude")
    task, task_id = task_of(app, sell_durably), new_id()

    execute(task, task_id=task_id, ignore_result=ignored)

    assert OwnBackend.told.pop() == task_id
    assert task.AsyncResult(task_id).state == ("PENDING" if ignored else "SUCCESS")


def test_of_an_ignored_result_there_is_nothing_to_write(app: Celery, redis_client: redis.Redis) -> None:
    task, task_id = task_of(app, sell_durably), new_id()

    execute(task, task_id=new_id(), ignore_result=True)
    redis_client.config_resetstat()
    assert execute(task, task_id=task_id, ignore_result=True) == "SUCCESS"

    assert executions(redis_client, "evalsha") == AT_ONCE
    assert redis_client.exists(key_of(task_id)) == 0
    assert state(redis_client, store_of(app), task_id)["fields"]["delivered"] == "1"


def handle(*_: Any) -> None: ...


SIGNATURE = {"task": "none", "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": True}
ON_IT: dict[str, dict[str, Any]] = {
    "a callback": {"request": {"callbacks": [SIGNATURE]}},
    "a chain": {"request": {"chain": [SIGNATURE]}},
    "a chord": {"request": {"group": "g1", "chord": {**SIGNATURE, "chord_size": 2}}},
    "on_success": {"task": {"on_success": handle}},
    "after_return": {"task": {"after_return": handle}},
    "__call__": {"task": {"__call__": lambda self, *args: self.run(*args)}},
    "no retention": {"task": {"retention": 0}},
    "a short retention": {"task": {"retention": 60}},
    "another database": {"conf": {"durable_redis_url": "9"}},
    "another backend": {"conf": {"result_backend": "cache+memory://"}},
}


@pytest.mark.parametrize("what", ON_IT)
def test_where_more_hangs_on_the_outcome_celery_delivers_it(
    redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    conf, on_task, request = (ON_IT[what].get(kind, {}) for kind in ("conf", "task", "request"))
    if "durable_redis_url" in conf:
        conf = {"durable_redis_url": f"redis://127.0.0.1:{redis_server.port}/9"}
    with app_with_results(redis_url, **conf) as app:
        task, task_id = task_of(app, sell_durably, **on_task), new_id()
        monkeypatch.delattr(RedisJournal, "conclude")
        with mock.patch.object(app, "send_task"):
            assert execute(task, task_id=task_id, **request) == "SUCCESS"

        assert task.AsyncResult(task_id).result == VALUE


def test_who_listens_for_success_hears_of_it_before_it_is_delivered(app: Celery, redis_client: redis.Redis) -> None:
    """Unlike that of a plain task their code runs again, if the worker dies in it."""
    task, task_id, delivered = task_of(app, sell_durably), new_id(), []

    def look(**_: Any) -> None:
        delivered.append(redis_client.hget(store_of(app).keys(task_id).run, "delivered"))

    signals.task_success.connect(look)
    try:
        execute(task, task_id=task_id)
    finally:
        signals.task_success.disconnect(look)

    assert delivered == [None]


def test_what_cannot_be_written_here_is_left_to_celery(app: Celery, redis_client: redis.Redis) -> None:
    task, task_id = task_of(app, sell_durably), new_id()
    execute(task, task_id=new_id())
    redis_client.config_resetstat()

    with mock.patch.object(
        app.backend, "get_key_for_task", side_effect=[EncodeError, key_of(task_id), key_of(task_id)]
    ):
        assert execute(task, task_id=task_id) == "SUCCESS"

    assert executions(redis_client, "evalsha") == BY_CELERY
    assert task.AsyncResult(task_id).result == VALUE


# -- the script


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    with store_at(redis_url) as store:
        yield store


@pytest.mark.parametrize("result", [Result("result", "text", 60), NO_RESULT])
def test_a_stale_attempt_writes_neither_an_outcome_nor_a_result(
    store: Store, redis_client: redis.Redis, result: Result
) -> None:
    stale = opened(store, task_id := new_id())
    lapse(redis_client, store, task_id)
    opened(store, task_id)
    before = state(redis_client, store, task_id)

    with pytest.raises(Fenced):
        stale.conclude({"outcome": "stale"}, 60, result)

    assert state(redis_client, store, task_id) == before
    assert redis_client.exists("result") == 0


def test_it_may_be_sent_again(store: Store, redis_client: redis.Redis) -> None:
    """Its reply was lost, say."""
    journal = opened(store, task_id := new_id())

    journal.conclude({"outcome": "{}"}, 60, Result("result", "text", 0))
    first = state(redis_client, store, task_id)
    eventually(lambda: server_ms(redis_client) > int(first["fields"]["ended"]), what="another millisecond")
    journal.conclude({"outcome": "{}"}, 60, Result("result", "text", 0))

    again = state(redis_client, store, task_id)
    assert again["fields"].pop("ended") > first["fields"].pop("ended")
    assert again == first
    assert (redis_client.get("result"), redis_client.ttl("result")) == ("text", -1)


def test_behind_an_address_of_many_servers_celery_delivers_it() -> None:
    """A proxy in front of a Cluster, say: the keys of a run and of its result are on different servers."""
    with (
        RedisServer(config={"cluster-enabled": "yes", "cluster-port": str(free_port())}) as server,
        server.client() as client,
        app_with_results(server.url()) as app,
    ):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        eventually(lambda: client.cluster("INFO")["cluster_state"] == "ok", what="the slots")
        task, task_id = task_of(app, sell_durably), new_id()

        assert execute(task, task_id=task_id) == "SUCCESS"
        assert task.AsyncResult(task_id).result == VALUE
        assert state(client, store_of(app), task_id)["fields"]["delivered"] == "1"
        connections = client.info("stats")["total_connections_received"]
        assert execute(task, task_id=new_id()) == "SUCCESS"
        assert client.info("stats")["total_connections_received"] == connections, "the journal asks once"


@pytest.mark.parametrize("right", ["resetchannels", "-set", "-publish"])
def test_where_the_result_is_refused_the_outcome_is_written_alone(
    redis_server: RedisServer, store: Store, right: str
) -> None:
    """A user with few rights: Celery may lack them, too, but what has been done is not to be done again."""
    with redis_server.client() as admin:
        journal = opened(store, task_id := new_id())
        admin.execute_command("ACL", "SETUSER", "default", right)
        try:
            assert not journal.conclude({"outcome": "{}"}, 60, Result("result", "text", 0))
            assert state(admin, store, task_id)["fields"]["status"] == "running"
            assert not journal.conclude({"outcome": "{}"}, 60, Result("result", "text", 0)), "not asked again"
            journal.finish("succeeded", {"outcome": "{}"})
        finally:
            admin.execute_command("ACL", "SETUSER", "default", "allchannels", "allcommands")
        run = state(admin, store, task_id)
        assert (run["fields"]["status"], run["expires"]) == ("succeeded", False)
        assert "delivered" not in run["fields"]


def test_a_result_that_is_kept_for_a_while_is_set_as_celery_sets_it(redis_server: RedisServer, store: Store) -> None:
    """Who may do what Celery does may do this."""
    with redis_server.client() as admin:
        journal = opened(store, new_id())
        admin.execute_command("ACL", "SETUSER", "default", "-set")
        try:
            assert journal.conclude({"outcome": "{}"}, 60, Result("result", "text", 30))
        finally:
            admin.execute_command("ACL", "SETUSER", "default", "allcommands")
        assert 0 < admin.ttl("result") <= 30


@pytest.mark.parametrize("later", ["finish", "suspend"])
def test_what_is_concluded_stays_so(store: Store, redis_client: redis.Redis, later: str) -> None:
    """Something struck while its reply was awaited, and the attempt believes that it has failed."""
    journal = opened(store, task_id := new_id())
    assert journal.conclude({"outcome": "{}"}, 60, NO_RESULT)
    before = state(redis_client, store, task_id)

    with pytest.raises(Fenced):
        journal.finish("failed", {"outcome": "x"}) if later == "finish" else journal.suspend(1, {})

    assert state(redis_client, store, task_id) == before


def test_a_result_that_cannot_be_written_beside_the_outcome_is_told_and_stored_by_celery(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend of another version, say, that makes its results in another way."""
    task, task_id = task_of(app, sell_durably), new_id()
    monkeypatch.setattr(app.backend, "get_key_for_task", mock.Mock(side_effect=[TypeError("no such argument")]))
    with monkeypatch.context() as once:
        once.setattr(app.backend, "store_result", mock.Mock())
        assert execute(task, task_id=task_id) == "SUCCESS"
        assert app.backend.store_result.call_count == 1

    assert f"task {task_id}: its result cannot be written together with its outcome; Celery writes it" in caplog.text
    assert store_of(app).runs.load(task_id)[b"status"] == b"succeeded"


def test_what_strikes_amid_the_end_makes_no_failure_of_it(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout of gevent's, say, or of the user's own."""
    task, task_id = task_of(app, sell_durably), new_id()
    conclude = RedisJournal.conclude

    def struck(journal: RedisJournal, *args: Any) -> bool:
        conclude(journal, *args)
        raise TimeoutError

    monkeypatch.setattr(RedisJournal, "conclude", struck)
    with mock.patch.object(app.backend, "_call_task_errbacks") as errbacks:
        assert execute(task, task_id=task_id, errbacks=[SIGNATURE]) == "IGNORED"

    errbacks.assert_not_called()
    assert task.AsyncResult(task_id).result == VALUE
    assert store_of(app).runs.load(task_id)[b"status"] == b"succeeded"


# -- the state of a run that goes on later


def asks_for_a_retry(self: Any) -> None:
    self.ctx.run("charge", lambda: 1 / 0, RunOptions(initial_retry_interval=60, max_attempts=3))


def retries_itself(self: Any) -> None:
    self.ctx.run("charge", lambda: 1)
    raise self.retry(exc=OSError("away"), countdown=60)


def retries_itself_and_goes_on(self: Any) -> None:
    self.ctx.run("charge", lambda: 1)
    with suppress(Retry):
        self.retry(countdown=60)


def sleeps(self: Any) -> None:
    self.ctx.sleep(60, name="a while")


GOES_ON_LATER = [
    (asks_for_a_retry, "RETRY"),
    (retries_itself, "RETRY"),
    (retries_itself_and_goes_on, "RETRY"),
    (sleeps, "SUSPENDED"),
]


@pytest.mark.parametrize(("body", "shown"), GOES_ON_LATER)
def test_the_state_of_a_run_that_goes_on_later_is_stored_with_its_suspension(
    app: Celery, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, body: Any, shown: str
) -> None:
    """So the state is stored once, and the run has gone nowhere by then."""
    task, task_id = task_of(app, body), new_id()
    monkeypatch.setattr(app, "send_task", mock.Mock())
    redis_client.config_resetstat()
    with watched(redis_client, task_id) as states:
        execute(task, task_id=task_id)

        assert states() == [shown]

    assert state(redis_client, store_of(app), task_id)["fields"]["status"] == "suspended"
    assert task.AsyncResult(task_id).state == shown
    of_step = 0 if body is sleeps else 1
    assert executions(redis_client, "evalsha") == AT_ONCE + of_step, "the lease was not proven before"


@pytest.mark.parametrize(("body", "shown"), GOES_ON_LATER)
def test_an_attempt_that_has_lost_its_run_replaces_no_state(
    app: Celery, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, body: Any, shown: str
) -> None:
    """Its process was frozen when it was about to store the state. Another attempt has ended the run meanwhile."""
    task, task_id = task_of(app, body), new_id()
    encode, store = app.backend.encode, store_of(app)
    ended = json.dumps({"status": "SUCCESS", "result": VALUE, "task_id": task_id})

    def thawed(meta: Any) -> Any:
        if meta["status"] == shown and redis_client.zscore(store.keys(task_id).leases, task_id):
            lapse(redis_client, store, task_id)
            opened_again(task, store, task_id).conclude({"outcome": "{}"}, 60, Result(key_of(task_id), ended, 0))
        return encode(meta)

    # Celery has looked by now whether there is a SUCCESS that it must not replace.
    monkeypatch.setattr(app.backend, "encode", thawed)
    monkeypatch.setattr(app, "send_task", mock.Mock())
    with watched(redis_client, task_id) as states:
        assert execute(task, task_id=task_id) == "IGNORED"

        assert states() == ["SUCCESS"]
    assert task.AsyncResult(task_id).result == VALUE


@pytest.mark.parametrize(("body", "shown"), GOES_ON_LATER)
def test_where_its_state_is_refused_celery_stores_it_before_the_suspension(
    redis_server: RedisServer, app: Celery, monkeypatch: pytest.MonkeyPatch, body: Any, shown: str
) -> None:
    task, task_id = task_of(app, body), new_id()
    stored = mock.Mock()
    monkeypatch.setattr(app.backend, "store_result", stored)
    monkeypatch.setattr(app, "send_task", mock.Mock())
    with redis_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-setex")
        try:
            execute(task, task_id=task_id)
        finally:
            admin.execute_command("ACL", "SETUSER", "default", "allcommands")
        fields = state(admin, store_of(app), task_id)["fields"]

    assert [call.args[2] for call in stored.call_args_list] == [shown]
    assert fields["status"] == "suspended"
    assert "step:1" in fields, "what was to be written with the suspension"


@pytest.mark.parametrize("body", [sell_durably, sleeps])
def test_a_refusal_that_passes_is_waited_for(
    redis_server: RedisServer, app: Celery, redis_client: redis.Redis, body: Any
) -> None:
    """There are too few replicas for a moment, say. Celery would meet the same refusal."""
    task_id, store = new_id(), store_of(app)
    store.pool.execute(pack("PING"))
    redis_client.config_resetstat()

    def replicas_are_back() -> None:
        with redis_server.client() as admin:
            eventually(lambda: "errorstat_NOREPLICAS" in admin.info("errorstats"), what="a refusal")
            admin.config_set("min-replicas-to-write", 0)

    def without_replicas(self: Any, *args: Any) -> Any:
        try:
            return body(self, *args)
        finally:
            redis_client.config_set("min-replicas-to-write", 1)
            back.start()

    task, back = task_of(app, without_replicas), threading.Thread(target=replicas_are_back)
    try:
        told = execute(task, task_id=task_id)
    finally:
        redis_client.config_set("min-replicas-to-write", 0)
        back.join(10)

    assert told == ("IGNORED" if body is sleeps else "SUCCESS")
    assert task.AsyncResult(task_id).state == ("SUSPENDED" if body is sleeps else "SUCCESS")
    assert store.pool.writes_results


def test_as_with_celery_a_success_that_stands_until_a_retry_has_run_is_not_replaced(
    app: Celery, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(self: Any) -> Any:
        if self.request.retries:
            return self.ctx.sleep(60)
        self.ctx.uuid()
        self.retry(countdown=0, throw=False)
        return VALUE

    task, task_id, messages = task_of(app, body), new_id(), []
    monkeypatch.setattr(Signature, "apply_async", lambda signature, *_, **__: messages.append(signature))
    assert execute(task, task_id=task_id) == "SUCCESS"

    assert execute_sent(task, redis_client, messages[0]) == "IGNORED"

    assert state(redis_client, store_of(app), task_id)["fields"]["status"] == "suspended"
    assert task.AsyncResult(task_id).result == VALUE


def test_of_a_run_that_was_revoked_no_wait_is_stored_where_no_fence_guards_the_results(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id, stored = new_id(), mock.Mock()

    def body(self: Any) -> None:
        self.ctx.uuid()
        assert store_of(app).runs.terminate(task_id, "revoked", DAY, "{}")
        sleeps(self)

    with app_with_results(redis_url, result_backend="cache+memory://") as app:
        monkeypatch.setattr(app.backend, "store_result", stored)
        assert execute(task_of(app, body), task_id=task_id) == "IGNORED"

    stored.assert_not_called()


@pytest.mark.parametrize(("error", "times"), [(JournalUnavailableError("away"), 0), (JournalGone("gone"), 1)])
def test_a_users_retry_whose_suspension_may_have_happened_stores_no_state_beside_it(
    app: Celery, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int
) -> None:
    """Only the reply may be lost. Another attempt may have ended the run before this one could store RETRY."""
    stored = mock.Mock()

    def suspend(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(RedisJournal, "suspend", suspend)
    monkeypatch.setattr(app.backend, "store_result", stored)
    monkeypatch.setattr(Signature, "apply_async", lambda *_, **__: None)

    assert execute(task_of(app, retries_itself), task_id=new_id()) == "RETRY"

    assert stored.call_count == times


@pytest.mark.parametrize("body", [sleeps, retries_itself])
def test_a_key_of_the_result_that_holds_something_else_ends_no_run(
    app: Celery, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, body: Any
) -> None:
    """The wait of the run is worth more than what is shown of it."""
    task, task_id = task_of(app, body), new_id()
    redis_client.rpush(key_of(task_id), "something else")
    monkeypatch.setattr(app, "send_task", mock.Mock())

    execute(task, task_id=task_id)

    assert state(redis_client, store_of(app), task_id)["fields"]["status"] == "suspended"


def test_a_retry_of_a_body_whose_run_could_not_be_opened_in_time_is_a_retry(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A soft time limit has struck while Redis was asked, and the body retries itself for that."""

    def body(self: Any) -> None:
        try:
            self.ctx.uuid()
        except SoftTimeLimitExceeded as limit:
            raise self.retry(exc=limit, countdown=1) from None

    def struck(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    task, task_id, sent = task_of(app, body), new_id(), mock.Mock()
    monkeypatch.setattr(RedisJournal, "open", struck)
    monkeypatch.setattr(Signature, "apply_async", sent)

    assert execute(task, task_id=task_id) == "RETRY"

    assert sent.call_count == 1
    assert task.AsyncResult(task_id).state == "RETRY"


@contextmanager
def watched(client: redis.Redis, task_id: str) -> Iterator[Callable[[], list[str]]]:
    """Yield a function that returns the states that were published until now to those who wait for the result."""
    with client.pubsub(ignore_subscribe_messages=True) as results:
        results.subscribe(key_of(task_id))
        results.get_message(timeout=10)  # it has begun

        def states() -> list[str]:
            client.publish(key_of(task_id), '{"status": "read"}')
            said = iter(lambda: json.loads(results.get_message(timeout=10)["data"])["status"], "read")
            return list(said)

        yield states


def opened_again(task: Any, store: Store, task_id: str) -> RedisJournal:
    """Begin another attempt of a run of this *task*."""
    call, fingerprint = store.runs.load(task_id)[b"call"].decode(), store.runs.load(task_id)[b"fingerprint"].decode()
    return opened(store, task_id, task=task.name, call=call, fingerprint=fingerprint)
