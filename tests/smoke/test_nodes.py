"""The nodes of the smoke tests themselves: workers start, die, come back, and leave nothing behind."""

import pytest

from tests import processes
from tests.smoke import effects
from tests.smoke.apps import plain
from tests.smoke.nodes import DurableSetup
from tests.waiting import eventually


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent", "eventlet"])
def test_a_worker_of_every_pool_executes_a_task(durable: DurableSetup, pool: str) -> None:
    durable.start_worker(pool=pool)

    assert plain.add.delay(2, 3).get(timeout=10) == 5


def test_a_spawned_pool_gets_the_settings_of_its_worker(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=1, conf={"worker_pool_start_method": "spawn"})

    assert plain.add.delay(2, 3).get(timeout=20) == 5
    assert worker.children()


def test_several_workers_of_named_queues_start_side_by_side(durable: DurableSetup) -> None:
    first = durable.start_worker(queues=["first"], wait=False)
    second = durable.start_worker(queues=["second"], wait=False)
    first.wait_ready()
    second.wait_ready()

    plain.add.apply_async((1, 1), queue="second").get(timeout=10)

    eventually(lambda: "succeeded" in second.log())
    assert "received" not in first.log()


def test_a_worker_survives_the_death_of_the_child_that_executes(durable: DurableSetup) -> None:
    worker = durable.start_worker(concurrency=2)
    result = plain.held.delay()
    killed = worker.kill_child(effects.wait_until_blocked("held").pid)
    effects.release("held")

    assert result.get(timeout=20) != killed
    assert effects.count("held", result.id) == 2
    assert worker.running


def test_a_killed_worker_gets_its_task_again_after_the_restart(durable: DurableSetup) -> None:
    worker = durable.start_worker(visibility_timeout=2)
    result = plain.held.delay()
    effects.wait_until_blocked("held")
    worker.kill()
    assert not worker.running
    effects.release("held")
    worker.restart()

    assert result.get(timeout=20) in worker.children()
    assert effects.count("held", result.id) == 2


def test_a_warm_shutdown_waits_for_the_task(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    result = plain.held.delay()
    effects.wait_until_blocked("held")
    worker.kill("SIGTERM")
    eventually(lambda: "Warm shutdown" in worker.log())
    effects.release("held")
    worker.wait()

    assert result.successful()


def test_the_server_keeps_messages_and_results_over_a_restart(durable: DurableSetup) -> None:
    worker = durable.start_worker()
    done = plain.add.delay(1, 2)
    done.get(timeout=10)
    worker.stop()
    waiting = plain.add.delay(3, 4)
    durable.broker_server.kill()
    durable.broker_server.start()
    worker.restart()

    assert waiting.get(timeout=20) == 7
    assert durable.redis.exists(f"celery-task-meta-{done.id}")


def test_the_setup_is_one_of_pytest_celery(durable: DurableSetup) -> None:
    worker = durable.start_worker()

    assert durable.ready(control=True, docker=True)
    assert durable.worker == worker
    assert durable.app.control.inspect([worker.hostname()]).ping() == {worker.hostname(): {"ok": "pong"}}


@pytest.mark.local_nodes(reason="looks at the processes of this machine")
def test_a_killed_worker_leaves_no_process(durable: DurableSetup) -> None:
    before = processes.alive()
    worker = durable.start_worker(concurrency=3)
    assert len(processes.alive() - before) == 4

    worker.kill()

    eventually(lambda: processes.alive() == before)
