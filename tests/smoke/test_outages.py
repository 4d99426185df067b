"""Redis goes away and comes back: as the journal, as the broker, as both; between attempts and amid one."""

from collections.abc import Iterator

import psutil
import pytest
from celery.result import AsyncResult

from tests.servers import RedisServer
from tests.smoke import effects
from tests.smoke.apps import crashes
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import (
    countdowns,
    journal,
    logged,
    steps,
    wait_for_countdowns,
    wait_until_idle,
    wait_until_logged,
)
from tests.waiting import eventually

LONG = 60
"""Seconds for a run to end: Celery may take its time to find a broker again that has been away."""
NOT_RECORDED = "ran but could not be recorded"


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.crashes"


@pytest.fixture
def journal_server() -> Iterator[RedisServer]:
    """A server for journals alone, which keeps its data over a restart."""
    with RedisServer(appendonly=True) as server:
        yield server


def bring_back(worker: Worker) -> None:
    """Wait until the worker has its broker again, or start it again, as a supervisor does.

    With messages that it has not acknowledged, a worker of kombu 5.7 ends when a Redis broker goes away.
    """
    eventually(lambda: not worker.running or logged(worker, "Connected to", times=2), LONG)
    if not worker.running:
        worker.start()
        worker.wait_ready()


def value_of(result: AsyncResult) -> object:
    """Return what the run returned, without a subscription that a restart of the server would have ended."""
    eventually(result.ready, LONG, what="the end of the run")
    return result.get(timeout=5)


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_run_goes_on_after_a_restart_of_redis_between_its_attempts(durable: DurableSetup, way: str) -> None:
    worker = durable.start_worker(visibility_timeout=2)
    result = crashes.slow_retry.delay()
    eventually(lambda: result.state == "RETRY")
    before = journal(durable.redis, result.id)
    getattr(durable.broker_server, way)()
    durable.broker_server.start()
    assert journal(durable.redis, result.id) == before
    bring_back(worker)

    first, number = value_of(result)

    assert effects.hits("first", result.id)[0].pid == first
    assert effects.count("first", result.id) == 1
    assert effects.count("flaky", result.id) == number == 2
    wait_until_idle(durable)
    assert result.state == "SUCCESS"


def test_a_step_is_recorded_though_redis_was_away_when_it_ended(durable: DurableSetup) -> None:
    worker = durable.start_worker(visibility_timeout=2, conf={"durable_lease": 10})
    result = crashes.held_with_witness.delay()
    pid = effects.wait_until_blocked("second").pid
    durable.broker_server.stop()
    effects.release("second")
    eventually(lambda: effects.count("left"))
    durable.broker_server.start()
    bring_back(worker)

    assert value_of(result) == [pid] * 3
    wait_until_idle(durable)
    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 1, 1]
    assert journal(durable.redis, result.id)["attempt"] == "1"
    assert not logged(worker, NOT_RECORDED)


def test_a_step_that_redis_was_away_for_too_long_to_record_is_executed_again(durable: DurableSetup) -> None:
    worker = durable.start_worker(visibility_timeout=2)
    result = crashes.held_with_witness.delay()
    first = effects.wait_until_blocked("second").pid
    durable.broker_server.stop()
    effects.release("second")
    wait_until_logged(worker, f"task {result.id}: step 'second' {NOT_RECORDED}")
    durable.broker_server.start()
    bring_back(worker)

    assert value_of(result)[0] == first
    wait_until_idle(durable)
    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 2, 1]
    assert result.state == "SUCCESS"


def test_an_attempt_that_lost_its_journal_is_retried_later(durable: DurableSetup, journal_server: RedisServer) -> None:
    worker = durable.start_worker(conf={"durable_redis_url": journal_server.url()})
    result = crashes.held_with_witness.delay()
    pid = effects.wait_until_blocked("second").pid
    journal_server.stop()
    effects.release("second")
    wait_until_logged(worker, f"task {result.id}: step 'second' {NOT_RECORDED}")
    eventually(lambda: result.state == "RETRY")
    assert type(result.result).__name__ == "JournalUnavailableError"
    journal_server.start()

    assert result.get(timeout=LONG)[0] == pid
    eventually(lambda: len(countdowns(worker, result.id)) == 1, what="one retry in the log")
    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 2, 1]
    with journal_server.client() as client:
        assert steps(client, result.id) == [("first", "done", 1), ("second", "done", 1), ("third", "done", 1)]
        assert journal(client, result.id)["attempt"] == "2"


@pytest.mark.local_nodes(reason="looks at the connections of a process")
@pytest.mark.parametrize("frozen_at", ["its begin", "the record of a step"])
def test_a_write_whose_acknowledgement_was_lost_is_ones_own(
    durable: DurableSetup, journal_server: RedisServer, frozen_at: str
) -> None:
    conf = {"durable_redis_url": journal_server.url(), "durable_lease": 10, "redis_socket_timeout": 0.5}
    worker = durable.start_worker(concurrency=1, conf=conf)
    crashes.three_steps.delay().get(timeout=10)  # the process is connected from now on
    (child,) = worker.children()

    def connections() -> set[int]:
        """Return the local ports of the process's connections to the journal."""
        found = psutil.Process(child).net_connections("tcp4")
        return {one.laddr.port for one in found if one.raddr and one.raddr.port == journal_server.port}

    if frozen_at == "its begin":
        before = connections()
        journal_server.freeze()
        result = crashes.three_steps.delay()
    else:
        result = crashes.three_steps.delay(held_at="second")
        effects.wait_until_blocked("second")
        before = connections()
        journal_server.freeze()
        effects.release("second")
    eventually(lambda: before - connections(), what="the end of the connection that waits for an answer")
    journal_server.thaw()

    assert result.get(timeout=LONG) == [child] * 3
    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 1, 1]
    with journal_server.client() as client:
        assert journal(client, result.id)["attempt"] == "1"
    assert not logged(worker, result.id, "holds the lease")


def test_a_task_that_finds_no_journal_is_retried_until_there_is_one(
    durable: DurableSetup, journal_server: RedisServer
) -> None:
    worker = durable.start_worker(conf={"durable_redis_url": journal_server.url()})
    journal_server.stop()
    result = crashes.three_steps.delay()
    eventually(lambda: result.state == "RETRY")
    assert effects.count("first") == 0
    journal_server.start()

    result.get(timeout=LONG)
    eventually(lambda: len(countdowns(worker, result.id)) == 1, what="one retry in the log")
    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 1, 1]


def test_a_retry_that_finds_no_broker_is_no_failure(durable: DurableSetup, journal_server: RedisServer) -> None:
    worker = durable.start_worker(visibility_timeout=2, conf={"durable_redis_url": journal_server.url()})
    result = crashes.fails_after_gate.delay()
    first = effects.wait_until_blocked("second").pid
    durable.broker_server.stop()
    effects.release("second")
    wait_until_logged(worker, f"task {result.id}: its retry could not be published", deadline=LONG)
    with journal_server.client() as client:
        assert journal(client, result.id)["status"] == "suspended"
    durable.broker_server.start()
    bring_back(worker)

    assert value_of(result) == [first, 2]
    wait_until_idle(durable)
    assert effects.count("first", result.id) == 1
    assert effects.count("second", result.id) == 2
    with journal_server.client() as client:
        assert journal(client, result.id)["attempt"] == "2"


def test_a_soft_time_limit_while_the_journal_is_opened_is_no_failure(
    durable: DurableSetup, journal_server: RedisServer
) -> None:
    worker = durable.start_worker(conf={"durable_redis_url": journal_server.url(), "durable_lease": 30})
    effects.release("limited")
    journal_server.freeze()
    result = crashes.soft_limited.delay()
    wait_until_logged(worker, f"task {result.id}", "a time limit was reached before the journal was open")
    journal_server.thaw()

    assert value_of(result) == 1
    wait_until_idle(durable)
    wait_for_countdowns(worker, result.id, [5.0])
    assert [effects.count(name, result.id) for name in ("before", "limited")] == [1, 1]
    with journal_server.client() as client:
        assert journal(client, result.id)["status"] == "succeeded"


def test_a_run_whose_journal_was_lost_charges_under_the_same_key(
    durable: DurableSetup, journal_server: RedisServer
) -> None:
    durable.start_worker(conf={"durable_redis_url": journal_server.url()})
    result = crashes.charged_by_its_key.delay()
    effects.wait_until_blocked("second")
    with journal_server.client() as client:
        client.flushall()
    effects.release("second")

    key = result.get(timeout=LONG)
    assert [hit.key for hit in effects.hits("charge")] == [key, key]
