"""A run that is paused on real workers: it waits for a person, whatever happens to workers and messages."""

from typing import Any

import pytest
from celery import chain
from celery.result import AsyncResult

from celery_durable.operate.runs import Runs
from tests.smoke import effects
from tests.smoke.apps import operate
from tests.smoke.flower import RETRY
from tests.smoke.monitor import Monitor
from tests.smoke.nodes import DurableSetup
from tests.smoke.runs import waiting
from tests.smoke.watching import deliver_again, journal, received, wait_until_idle, wait_until_logged, waiting_message
from tests.waiting import eventually


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.operate"


def state_of(durable: DurableSetup, task_id: str) -> str:
    return str(AsyncResult(task_id, app=durable.app).state)


def wait_until_paused(durable: DurableSetup, *ids: str) -> list[dict[str, Any]]:
    """Wait until these runs are paused; return their journals."""
    for task_id in ids:
        eventually(lambda task_id=task_id: state_of(durable, task_id) == "PAUSED", what=f"the pause of {task_id}")
    wait_until_idle(durable)
    return [journal(durable.redis, task_id) for task_id in ids]


def test_a_paused_run_waits_for_its_retry_and_nothing_else_lets_it_go_on(
    durable: DurableSetup, monitor: Monitor
) -> None:
    last = chain(operate.pauses.s(3), operate.follow.s()).apply_async(link_error=operate.report.s())
    paused = last.parent
    first_message = waiting_message(durable)
    # With one process, Celery tells of the retry before the next attempt begins.
    worker = durable.start_worker(concurrency=1, conf={"durable_lease": 2}, extra=["-E"])
    before = wait_until_paused(durable, paused.id)
    assert effects.counts("reserve", "charge") == [1, 2]
    monitor.wait_for(paused, "started STARTED", "paused PAUSED")

    deliver_again(durable, first_message)
    wait_until_logged(worker, f"task {paused.id}: it is paused until somebody retries or cancels it")
    wait_until_idle(durable)
    worker.kill()
    worker.restart()
    # It looks for runs when it starts, and this one was sent after that.
    assert operate.sleeps.delay(0).get(timeout=30) == 1
    assert wait_until_paused(durable, paused.id) == before
    assert received(worker, paused.id) == 3
    assert effects.counts("reserve", "charge", "follow", "report") == [1, 2, 0, 0]
    assert paused.id not in waiting(durable.redis, "leases")

    durable.app.tasks[RETRY].delay(paused.id).get(timeout=20)

    assert last.get(timeout=30) == 4
    wait_until_idle(durable)
    assert effects.counts("reserve", "charge", "follow", "report") == [1, 4, 1, 0]
    attempts = Runs(durable.app).get(paused.id).attempts
    assert [attempt.how for attempt in attempts] == ["RETRY", "PAUSED", "RETRY", "SUCCESS"]
    assert received(worker, paused.id) == 5


def test_a_paused_run_is_cancelled_or_revoked(durable: DurableSetup) -> None:
    durable.start_worker()
    cancelled, revoked = (operate.pauses.apply_async((9,), link_error=operate.report.s()) for _ in range(2))
    wait_until_paused(durable, cancelled.id, revoked.id)

    Runs(durable.app).cancel(cancelled.id, by="ann")
    durable.app.control.revoke(revoked.id)

    for task_id in (cancelled.id, revoked.id):
        eventually(lambda task_id=task_id: state_of(durable, task_id) == "REVOKED", what=f"the end of {task_id}")
    wait_until_idle(durable)
    assert effects.counts("reserve", "charge", "release", key=cancelled.id) == [1, 2, 1]
    assert effects.counts("reserve", "charge", "release", key=revoked.id) == [1, 2, 0]
    assert effects.counts("report") == [0]
    assert Runs(durable.app).counts() == {"REVOKED": 2}
    assert waiting(durable.redis) == []
