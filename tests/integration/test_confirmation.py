"""``durable_journal_sync``: a step counts as recorded when a replica has it, or the disk."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from celery_durable import (
    ConfigurationError,
    DurableContext,
    JournalUnavailableError,
    durable_task,
)
from celery_durable.app.store import Store, store_of
from celery_durable.interrupts import Fenced
from celery_durable.journal.port import Result
from celery_durable.redis.journal import RedisJournal
from celery_durable.worker.startup import risks_of
from tests.groups import MAKES, is_linked
from tests.integration.four_steps import STEPS, STEPS_ASYNC, act, amid
from tests.integration.network import Waits
from tests.integration.runs import app_at, delivery, execute, executions, lapse, new_id
from tests.servers import RedisServer, program_of, server_program
from tests.waiting import eventually


@durable_task(name="sync.replicas", journal_sync="replicas")
def steps_on_replicas(ctx: DurableContext) -> None:
    for number in range(1, 5):
        ctx.run("act", act, number)


def calls(server: RedisServer, command: str) -> int:
    """Return how often the server has executed a command."""
    with server.client() as client:
        return executions(client, command)


def journal_of(store: Store, task_id: str) -> Any:
    """Return a journal with the settings of the app, opened."""
    journal, _ = store.journal_for(task_id, store.settings)
    journal.open(delivery(task_id))
    return journal


# -- replicas


class Pair:
    """A master and its replica, which can be frozen."""

    def __init__(self, master: RedisServer, replica: RedisServer) -> None:
        self.master, self.replica = master, replica

    @contextmanager
    def without_replica(self) -> Iterator[None]:
        self.replica.freeze()
        try:
            yield
        finally:
            self.replica.thaw()


@pytest.fixture(scope="module", params=MAKES)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    program, quick = program_of(request.param), {"repl-diskless-sync-delay": "0"}
    with RedisServer(program=program, config=quick) as master:
        follows = {"replicaof": f"127.0.0.1 {master.port}"}
        with RedisServer(program=program, config=quick | follows) as replica:
            eventually(lambda: is_linked(replica), what="a replica with its master's data")
            yield Pair(master, replica)


@pytest.fixture
def store(pair: Pair) -> Iterator[Store]:
    with app_at(pair.master.url(), durable_journal_sync="replicas", durable_lease=2) as app:
        yield store_of(app)


@pytest.mark.parametrize("name", [STEPS, STEPS_ASYNC])
def test_each_step_and_the_end_wait_for_a_replica(pair: Pair, name: str) -> None:
    with app_at(pair.master.url(), durable_journal_sync="replicas") as app:
        before = calls(pair.master, "wait")

        assert execute(app.tasks[name], task_id=new_id()) == "SUCCESS"

        assert calls(pair.master, "wait") - before == 4 + 1


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's
def test_nobody_reads_a_result_before_its_outcome_is_confirmed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RedisJournal, "conclude")  # it writes the result with the outcome
    with app_at(pair.master.url(), durable_journal_sync="replicas") as app:
        app.conf.result_backend = pair.master.url()
        before = calls(pair.master, "wait")

        assert execute(app.tasks[STEPS], task_id=(task_id := new_id())) == "SUCCESS"

        assert calls(pair.master, "wait") - before == 4 + 1
        assert app.AsyncResult(task_id).state == "SUCCESS"


def test_the_option_of_a_task_wins(pair: Pair) -> None:
    with app_at(pair.master.url()) as app:
        before = calls(pair.master, "wait")

        assert execute(app.tasks["sync.replicas"], task_id=new_id()) == "SUCCESS"
        assert execute(app.tasks[STEPS], task_id=new_id()) == "SUCCESS"

        assert calls(pair.master, "wait") - before == 4 + 1


def test_in_memory_nothing_is_waited_for(pair: Pair) -> None:
    with app_at(pair.master.url()) as app:
        before = calls(pair.master, "wait")

        assert execute(app.tasks[STEPS], task_id=new_id()) == "SUCCESS"

        assert calls(pair.master, "wait") == before


def test_the_confirmation_travels_with_the_write(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits().install(monkeypatch)
    with app_at(pair.master.url(), durable_journal_sync="replicas") as app:
        journal = journal_of(store_of(app), new_id())

        with waits.counted(1):
            journal.send({"step:1": "x"})
            journal.flush()

        journal.close()


def test_an_acknowledged_write_is_on_the_replica(pair: Pair, store: Store) -> None:
    task_id = new_id()
    journal = journal_of(store, task_id)
    with pair.replica.client() as replica:
        for number in range(20):
            journal.send({f"step:{number}": "x"})
            journal.flush()
            assert replica.hget(store.keys(task_id).run, f"step:{number}") == "x"
    journal.close()


def test_a_write_that_no_replica_has_is_not_acknowledged(pair: Pair, store: Store) -> None:
    journal = journal_of(store, new_id())
    journal.send({"step:1": "x"})
    journal.flush()
    with pair.without_replica():
        journal.send({"step:2": "x"})
        with pytest.raises(JournalUnavailableError, match="no replica acknowledged the write within 1 s"):
            journal.flush()

    journal.send({"step:2": "x"})
    journal.flush()
    journal.close()


@pytest.mark.parametrize("ending", ["suspend", "finish"])
def test_the_end_of_an_attempt_waits_too(pair: Pair, store: Store, ending: str) -> None:
    journal = journal_of(store, new_id())
    arguments = {"suspend": (60.0, {}), "finish": ("succeeded", {})}
    with pair.without_replica(), pytest.raises(JournalUnavailableError, match="no replica acknowledged"):
        getattr(journal, ending)(*arguments[ending])
    journal.close()


def test_a_replica_that_comes_back_in_time_is_waited_for(pair: Pair) -> None:
    with app_at(pair.master.url(), durable_journal_sync="replicas", durable_lease=30) as app:
        before = calls(pair.master, "wait")
        pair.replica.freeze()

        def thaw_later() -> None:
            eventually(lambda: calls(pair.master, "wait") > before + 1, what="a confirmation that failed")
            pair.replica.thaw()

        thaw = threading.Thread(target=thaw_later)
        thaw.start()
        task_id = new_id()

        assert execute(app.tasks[STEPS], task_id=task_id) == "SUCCESS"

        thaw.join(10)
        with pair.master.client() as client:
            assert client.hget(store_of(app).keys(task_id).run, "attempt") == "1"


def test_a_stale_attempt_does_not_wait_for_replicas(pair: Pair, store: Store) -> None:
    """Nothing of its writing could be confirmed."""
    task_id = new_id()
    stale = journal_of(store, task_id)
    with pair.master.client() as client:
        lapse(client, store, task_id)
    newer = journal_of(store, task_id)
    before = calls(pair.master, "wait")
    with pair.without_replica():
        stale.send({"step:1": "x"})
        with pytest.raises(Fenced):
            stale.flush()
    assert calls(pair.master, "wait") - before == 1
    stale.close()
    newer.close()


def test_an_end_whose_result_is_refused_does_not_wait_for_replicas(pair: Pair, store: Store) -> None:
    """Nothing is written. The attempt lets Celery store its state, and then ends without it."""
    journal = journal_of(store, new_id())
    before = calls(pair.master, "wait")
    with pair.master.client() as admin, pair.without_replica():
        admin.execute_command("ACL", "SETUSER", "default", "-set")
        try:
            assert not journal.suspend(60, {}, result=Result("result", "text", 0))
        finally:
            admin.execute_command("ACL", "SETUSER", "default", "allcommands")
    assert calls(pair.master, "wait") - before == 1
    journal.suspend(60, {})
    journal.close()


def test_what_an_interrupted_attempt_left_unread_does_not_confuse_the_next(pair: Pair, store: Store) -> None:
    for number in range(3):
        journal = journal_of(store, new_id())
        journal.send({f"step:{number}": "x"})
        journal.close()

    task_id = new_id()
    journal = journal_of(store, task_id)
    journal.finish("succeeded", {})
    journal.close()

    assert store.runs.load(task_id)[b"status"] == b"succeeded"


def test_an_async_attempt_reads_confirmations_in_a_thread(store: Store) -> None:
    """The reply to the write makes the socket readable long before the confirmation arrives."""
    journal = journal_of(store, new_id())

    assert journal.connection.transport.fileno() > 0
    assert journal.fileno() is None
    journal.close()


def test_the_start_says_when_there_is_no_replica(redis_server: RedisServer, redis_url: str) -> None:
    with app_at(redis_url, durable_journal_sync="replicas") as app:
        risks = [risk.text for risk in risks_of(app, [app.tasks[STEPS]])]

    assert [risk for risk in risks if "no replica is connected" in risk and "no step can be recorded" in risk]


def test_the_start_says_that_a_failover_may_lose_steps(pair: Pair) -> None:
    with app_at(pair.master.url()) as app:
        notes = [risk.text for risk in risks_of(app, [app.tasks[STEPS]])]
        of_replicas = [risk.text for risk in risks_of(app, [app.tasks["sync.replicas"]])]

    assert len([note for note in notes if "a failover may lose" in note]) == 1
    assert not [note for note in of_replicas if "failover" in note]


# -- disk


@contextmanager
def disk_at(program: Path, **config: str) -> Iterator[tuple[RedisServer, Celery]]:
    server = RedisServer(program=program, appendonly=True, config=config)
    with server, app_at(server.url(), durable_journal_sync="disk", durable_lease=2) as app:
        yield server, app


def refusal_of(app: Celery) -> str:
    """Return how the first use is refused; nothing may have begun."""
    task_id, store = new_id(), store_of(app)
    with pytest.raises(ConfigurationError) as refused:
        journal_of(store, task_id)
    assert execute(app.tasks[STEPS], task_id=task_id) == "FAILURE"
    assert store.runs.load(task_id) == {}
    (risk,) = [risk.text for risk in risks_of(app, [app.tasks[STEPS]]) if "disk" in risk.text]
    assert "tasks that ask for it will fail" in risk
    return str(refused.value)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", [STEPS, STEPS_ASYNC])
def test_with_appendfsync_always_the_reply_is_the_confirmation(make: str, name: str) -> None:
    with disk_at(program_of(make)) as (server, app):
        assert execute(app.tasks[name], task_id=new_id()) == "SUCCESS"

        assert calls(server, "waitaof") == 0
        assert not [risk for risk in risks_of(app, [app.tasks[name]]) if "disk" in risk.text]


def version_of(server: RedisServer) -> tuple[str, str]:
    with server.client() as client:
        info = client.info("server")
    if "valkey_version" in info:
        return "Valkey", str(info["valkey_version"])
    return "Redis", str(info["redis_version"])


@pytest.mark.parametrize("make", MAKES)
def test_everysec_is_refused_unless_waitaof_is_true(make: str) -> None:
    with disk_at(program_of(make), appendfsync="everysec") as (server, app):
        name, version = version_of(server)
        if (name, version[:4]) == ("Redis", "7.2."):
            pytest.skip("Redis 7.2 keeps the promise")

        refusal = refusal_of(app)

        assert 'durable_journal_sync="disk" cannot be kept' in refusal
        assert f"{name} {version}" in refusal
        assert "WAITAOF" in refusal
        assert "set appendfsync always" in refusal


def test_waitaof_is_sent_with_each_record_where_it_is_true() -> None:
    with disk_at(server_program(), appendfsync="everysec") as (server, app):
        if not version_of(server)[1].startswith("7.2."):
            pytest.skip(f"only Redis 7.2 answers WAITAOF after the fsync; this is {' '.join(version_of(server))}")
        began = time.monotonic()

        assert execute(app.tasks[STEPS], task_id=new_id()) == "SUCCESS"

        assert calls(server, "waitaof") == 4 + 1
        assert time.monotonic() - began > 2, "four fsyncs, one in a second"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"appendonly": "no"}, "has no append-only file: set appendonly yes"),
        ({"appendfsync": "no"}, "appendfsync no leaves the disk to the kernel"),
        ({"no-appendfsync-on-rewrite": "yes"}, "nothing reaches the disk during a rewrite"),
    ],
)
def test_a_server_without_the_promise_is_refused(config: dict[str, str], reason: str) -> None:
    with disk_at(server_program(), **config) as (_, app):
        assert reason in refusal_of(app)


@pytest.mark.parametrize(
    ("forbidden", "reason"), [("-config", "CONFIG GET was refused"), ("-info", "INFO was refused")]
)
def test_a_server_that_may_not_be_asked_is_refused(forbidden: str, reason: str) -> None:
    with disk_at(server_program()) as (server, _), server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "shop", "on", ">word", "~*", "+@all", forbidden)
        url = f"redis://shop:word@127.0.0.1:{server.port}/0"
        with (
            app_at(url, durable_journal_sync="disk", durable_lease=1) as app,
            pytest.raises(ConfigurationError, match=reason),
        ):
            journal_of(store_of(app), new_id())


def test_a_server_that_loses_the_promise_amid_an_attempt_ends_it() -> None:
    """As after a failover to one that is set up otherwise. The next attempt is refused with the reason."""
    with disk_at(server_program()) as (server, app):
        task_id = new_id()

        def restart() -> None:
            server.config["appendfsync"] = "no"
            server.restart()

        amid.append(restart)
        try:
            assert execute(app.tasks[STEPS], task_id=task_id) == "RETRY"
            assert execute(app.tasks[STEPS], task_id=task_id, retries=1) == "FAILURE"
            with server.client() as client:
                fields = client.hgetall(store_of(app).keys(task_id).run)
            assert sorted(name for name in fields if name.startswith("step:")) == ["step:1"]
        finally:
            server.close()


def test_a_promise_that_was_mended_is_believed_at_the_next_attempt() -> None:
    with disk_at(server_program(), appendfsync="no") as (server, app), server.client() as admin:
        refusal_of(app)

        admin.config_set("appendfsync", "always")

        assert execute(app.tasks[STEPS], task_id=new_id()) == "SUCCESS"


def test_tasks_with_and_without_confirmation_share_connections(redis_client: redis.Redis, redis_url: str) -> None:
    """A connection whose confirmation was asked for is not asked again, and one where it was not is."""
    with app_at(redis_url, durable_journal_sync="replicas") as app:
        store = store_of(app)
        plain = store.journal(task_id := new_id())
        plain.open(delivery(task_id))
        plain.close()
        connections = redis_client.info("stats")["total_connections_received"]
        for _ in range(3):
            journal_of(store, new_id()).close()
            plain = store.journal(task_id := new_id())
            plain.open(delivery(task_id))
            plain.close()

        assert redis_client.info("stats")["total_connections_received"] - connections == 1
