"""Durable tasks over RabbitMQ, on classic and on quorum queues, with their journals in Redis."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
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
from tests.smoke.watching import countdowns, elapse, journal, received, steps, wait_until_suspended
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


def wait_until_idle(broker: RabbitMQ, queue: str, worker: Worker) -> None:
    """Stop the worker, which gives back what it holds; nothing may be left."""
    worker.stop()
    assert broker.messages(queue) == 0


def at_least_a_second(queue: str, *delays: float) -> list[float]:
    """The waits that are to be seen: Celery loses a task on a quorum queue whose countdown is below a second."""
    return [max(1.0, delay) if queue != "classic" else delay for delay in delays]


# -- retries -----------------------------------------------------------------------------------------------------------


def test_a_step_is_retried_after_fractions_of_a_second(
    durable: DurableSetup, broker: RabbitMQ, queue: str, worker: Worker
) -> None:
    result, exhausted = waits.flaky.delay(3, **QUICK), waits.flaky.delay(99, **QUICK)

    assert result.get(timeout=LONG) == [4, 3]
    with pytest.raises(RetriesExhausted) as raised:
        exhausted.get(timeout=LONG)

    assert raised.value.attempts == 4
    assert [effects.count("flaky", one.id) for one in (result, exhausted)] == [4, 4]
    assert countdowns(worker, result.id) == pytest.approx(at_least_a_second(queue, 0.05, 0.1, 0.2))
    moments = [hit.at for hit in effects.hits("flaky", result.id)]
    waited = [later - earlier for earlier, later in pairwise(moments)]
    # The broker's own delays begin when the message arrives there, and may end with a part of a second less.
    assert all(wait >= 0.05 for wait in waited)
    wait_until_idle(broker, queue, worker)
    assert [received(worker, one.id) for one in (result, exhausted)] == [4, 4]


def test_a_retry_of_ones_own_keeps_the_run(durable: DurableSetup, queue: str, worker: Worker) -> None:
    result = waits.retries_itself.delay("word", 2, countdown=1)

    seen = result.get(timeout=LONG)

    assert (seen["word"], seen["retries"]) == ("word", 2)
    assert [effects.count(name, result.id) for name in ("before", "bodies")] == [1, 3]


def test_a_far_retry_waits_in_redis(durable: DurableSetup, broker: RabbitMQ, queue: str, worker: Worker) -> None:
    result = waits.flaky.delay(1, initial_retry_interval=HOUR, max_retry_interval=HOUR)
    wait_until_suspended(durable, result.id)
    eventually(lambda: result.state == "RETRY")
    wait_until_idle(broker, queue, worker)
    worker.restart()

    elapse(durable, result.id)

    assert result.get(timeout=LONG) == [2, 1]
    assert received(worker, result.id) == 2


# -- sleeps ------------------------------------------------------------------------------------------------------------


def test_a_sleeping_run_holds_no_message_and_wakes_once(
    durable: DurableSetup, broker: RabbitMQ, queue: str, worker: Worker
) -> None:
    result = waits.sleeps.delay(HOUR)
    wait_until_suspended(durable, result.id)
    wait_until_idle(broker, queue, worker)
    assert result.state == "SUSPENDED"
    worker.restart()

    elapse(durable, result.id)

    assert result.get(timeout=LONG) == 2
    wait_until_idle(broker, queue, worker)
    assert received(worker, result.id) == 2
    assert [effects.count(name, result.id) for name in ("before", "after")] == [1, 1]


def test_a_task_that_was_sent_with_a_countdown_sleeps_and_wakes(
    durable: DurableSetup, broker: RabbitMQ, queue: str, worker: Worker
) -> None:
    """With native delayed delivery its message comes by another exchange, under another routing key."""
    result = waits.sleeps.apply_async((0.3, 0.3), countdown=3)

    assert result.get(timeout=LONG) == 3
    wait_until_idle(broker, queue, worker)
    assert received(worker, result.id) == 3


def test_members_of_a_chain_sleep(durable: DurableSetup, queue: str, worker: Worker) -> None:
    last = chain(waits.numbers.s(1), waits.numbers.s(), waits.numbers.s()).delay()

    assert last.get(timeout=LONG) == 4
    assert effects.count("before") == effects.count("after") == 3


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_a_run_goes_on_after_a_kill(
    durable: DurableSetup, broker: RabbitMQ, queue: str, worker: Worker, victim: str
) -> None:
    result = crashes.three_steps.delay(held_at="second")
    pid = effects.wait_until_blocked("second").pid
    effects.release("second")
    if victim == "child":
        worker.kill_child(pid)
    else:
        worker.kill()
        worker.restart()

    assert len(result.get(timeout=LONG)) == 3
    wait_until_idle(broker, queue, worker)
    assert [effects.count(name, result.id) for name in ("first", "third")] == [1, 1]
    assert effects.count("second", result.id) in (1, 2)
    assert [state for _, state, _ in steps(durable.redis, result.id)] == ["done"] * 3


def test_a_run_whose_worker_is_killed_while_it_sleeps_wakes_after_the_restart(
    durable: DurableSetup, broker: RabbitMQ, queue: str, worker: Worker
) -> None:
    result = waits.sleeps.delay(HOUR)
    wait_until_suspended(durable, result.id)
    worker.kill()
    elapse(durable, result.id)
    worker.restart()

    assert result.get(timeout=LONG) == 2
    wait_until_idle(broker, queue, worker)
    assert [effects.count(name, result.id) for name in ("before", "after")] == [1, 1]


# -- cancelled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["asleep", "backing off in the broker"])
def test_a_run_that_waits_is_cancelled(durable: DurableSetup, queue: str, worker: Worker, place: str) -> None:
    result: Any = orders.order.delay(place)
    wait_until_suspended(durable, result.id)

    cancel(result.id, app=durable.app)

    with pytest.raises(TaskCancelled):
        result.get(timeout=LONG)
    assert result.state == "REVOKED"
    assert [effects.count(name, result.id) for name in ("reserve", "ship", "release", "notify")] == [1, 0, 1, 1]
    assert journal(durable.redis, result.id)["status"] == "revoked"
