"""Durable tasks over RabbitMQ, on classic and on quorum queues, with their journals in Redis."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import kombu
import pytest
from amqp.exceptions import NotFound
from celery import chain

from celery_durable import RetriesExhausted, TaskCancelled, cancel
from tests.rabbitmq import RabbitMQ
from tests.servers import ServerUnavailableError
from tests.smoke import effects
from tests.smoke.apps import cancellation as orders
from tests.smoke.apps import crashes, waits
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import elapse, journal, received, steps, wait_for_countdowns, wait_until_suspended
from tests.waiting import eventually

pytestmark = pytest.mark.local_nodes(reason="RabbitMQ listens on this machine only")

LONG = 30
HOUR = 3600
QUICK = {"initial_retry_interval": 0.05, "max_attempts": 4}


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitMQ]:
    try:
        broker = RabbitMQ()
    except ServerUnavailableError as unavailable:
        pytest.skip(unavailable.args[0])
    with broker:
        yield broker


@pytest.fixture(params=["classic", "quorum", "delayed"])
def queue(request: pytest.FixtureRequest, broker: RabbitMQ) -> str:
    """A kind of queue, and its name; there is none yet."""
    with kombu.Connection(broker.url) as connection, connection.channel() as channel, suppress(NotFound):
        channel.queue_delete(request.param)
    return request.param


@pytest.fixture
def worker_app(queue: str) -> str:
    return f"tests.smoke.apps.rabbitmq:{queue}"


@pytest.fixture
def worker(durable: DurableSetup, broker: RabbitMQ, queue: str) -> Worker:
    options = {"confirm_publish": True} if queue != "classic" else {}
    durable.app.conf.update(broker_url=broker.url, broker_transport_options=options)
    return durable.start_worker(env={"CELERY_BROKER_URL": broker.url}, conf={"broker_transport_options": options})


def at_least_a_second(queue: str, *delays: float) -> list[float]:
    """The waits that are to be seen: Celery loses a task on a quorum queue whose countdown is below a second."""
    return [max(1.0, delay) if queue != "classic" else delay for delay in delays]


def test_retries_are_counted_and_none_is_lost(durable: DurableSetup, queue: str, worker: Worker) -> None:
    flaky, exhausted = waits.flaky.delay(3, **QUICK), waits.flaky.delay(99, **QUICK)
    itself = waits.retries_itself.delay("word", 2, countdown=0.3)
    policy = waits.fails.delay(2)

    assert flaky.get(timeout=LONG) == [4, 3]
    with pytest.raises(RetriesExhausted) as raised:
        exhausted.get(timeout=LONG)
    seen = itself.get(timeout=LONG)
    assert policy.get(timeout=LONG) == 3

    assert raised.value.attempts == 4
    assert [effects.count("flaky", one.id) for one in (flaky, exhausted)] == [4, 4]
    wait_for_countdowns(worker, flaky.id, at_least_a_second(queue, 0.05, 0.1, 0.2))
    wait_for_countdowns(worker, policy.id, at_least_a_second(queue, 0.3, 0.3))
    assert (seen["word"], seen["retries"]) == ("word", 2)
    for run in (flaky, exhausted, itself, policy):
        assert effects.count("before", run.id) == 1
    assert [received(worker, one.id) for one in (flaky, exhausted, itself, policy)] == [4, 4, 3, 3]


def test_what_waits_in_redis_holds_no_message_and_goes_on_once(
    durable: DurableSetup, broker: RabbitMQ, queue: str, worker: Worker
) -> None:
    sleeper = waits.sleeps.delay(HOUR)
    retried = waits.flaky.delay(1, initial_retry_interval=HOUR, max_retry_interval=HOUR)
    for one, shown in ((sleeper, "SUSPENDED"), (retried, "RETRY")):
        wait_until_suspended(durable, one.id)
        eventually(lambda one=one, shown=shown: one.state == shown)
    # It gives back what it has not acknowledged.
    worker.stop()
    assert broker.messages(queue) == 0
    worker.start()

    for one in (sleeper, retried):
        elapse(durable, one.id)

    assert sleeper.get(timeout=LONG) == 2
    assert retried.get(timeout=LONG) == [2, 1]
    assert [received(worker, one.id) for one in (sleeper, retried)] == [2, 2]
    assert [effects.count(name) for name in ("before", "after", "flaky")] == [2, 1, 2]


def test_tasks_of_a_chain_and_those_sent_with_a_countdown_sleep_and_wake(
    durable: DurableSetup, queue: str, worker: Worker
) -> None:
    """With native delayed delivery a message comes by another exchange, under another routing key."""
    last = chain(waits.numbers.s(1), waits.numbers.s(duration=0.2)).delay()
    delayed = waits.sleeps.apply_async((0.2, 0.2), countdown=1)

    assert last.get(timeout=LONG) == 3
    assert delayed.get(timeout=LONG) == 3
    assert [received(worker, one.id) for one in (last.parent, last, delayed)] == [2, 2, 3]
    assert [effects.count(name) for name in ("before", "after")] == [3, 4]


def test_a_run_goes_on_after_a_kill(durable: DurableSetup, queue: str, worker: Worker) -> None:
    result = crashes.three_steps.delay(held_at="second")
    effects.wait_until_blocked("second")
    worker.kill()
    effects.release("second")
    worker.restart()

    assert len(result.get(timeout=LONG)) == 3
    assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 2, 1]
    assert [state for _, state, _ in steps(durable.redis, result.id)] == ["done"] * 3


def test_runs_that_wait_are_cancelled(durable: DurableSetup, queue: str, worker: Worker) -> None:
    results: list[Any] = [orders.order.delay(place) for place in ("asleep", "backing off in the broker")]
    for result in results:
        wait_until_suspended(durable, result.id)

    for result in results:
        cancel(result.id, app=durable.app)

    for result in results:
        with pytest.raises(TaskCancelled):
            result.get(timeout=LONG)
        assert result.state == "REVOKED"
        assert [effects.count(name, result.id) for name in ("reserve", "ship", "release", "notify")] == [1, 0, 1, 1]
        assert journal(durable.redis, result.id)["status"] == "revoked"
