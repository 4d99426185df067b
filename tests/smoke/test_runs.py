"""What an operator sees of runs on real workers."""

import pytest

from celery_durable import cancel
from celery_durable.operate.runs import Runs
from tests.smoke import effects
from tests.smoke.apps import operate
from tests.smoke.nodes import DurableSetup
from tests.smoke.watching import wait_until_suspended
from tests.waiting import eventually

HOUR = 3600


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.operate"


def test_attempts_that_died_and_runs_that_were_cancelled_are_told(durable: DurableSetup) -> None:
    worker = durable.start_worker(conf={"durable_lease": 2})
    runs = Runs(durable.app)
    slept = operate.sleeps.delay(HOUR)
    wait_until_suspended(durable, slept.id)

    cancel(slept.id, app=durable.app)
    eventually(lambda: runs.get(slept.id).state == "REVOKED", what="the cancellation")
    assert [attempt.how for attempt in runs.get(slept.id).attempts] == ["SUSPENDED", "REVOKED"]

    held = operate.holds.delay()
    effects.wait_until_blocked("held")
    [running] = runs.list(state="STARTED")
    assert running.id == held.id
    assert running.lease is not None
    worker.kill()
    durable.start_worker()
    eventually(lambda: len(runs.get(held.id).attempts) == 2, deadline=60, what="another attempt")
    effects.release("held")

    eventually(lambda: runs.get(held.id).state == "SUCCESS", what="the end")
    assert [attempt.how for attempt in runs.get(held.id).attempts] == ["DIED", "SUCCESS"]
    assert runs.counts() == {"REVOKED": 1, "SUCCESS": 1}
