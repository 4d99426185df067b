"""A real worker whose journal's master dies, behind Sentinels."""

import pytest

from tests.groups import MAKES, Watched
from tests.servers import program_of
from tests.smoke import effects
from tests.smoke.apps import crashes
from tests.smoke.nodes import DurableSetup
from tests.smoke.watching import journal, steps, wait_until_idle

pytestmark = pytest.mark.local_nodes(reason="the servers of a group are processes of this machine")
LONG = 60


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.crashes"


@pytest.mark.parametrize("make", MAKES)
def test_a_run_goes_on_with_the_master_that_sentinels_promote(durable: DurableSetup, make: str) -> None:
    with Watched(program_of(make)) as watched:
        durable.start_worker(conf={"durable_lease": 20, **watched.conf})
        result = crashes.held_with_witness.delay()
        pid = effects.wait_until_blocked("second").pid
        watched.fail_over()
        effects.release("second")

        assert result.get(timeout=LONG) == [pid] * 3
        wait_until_idle(durable)
        assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 1, 1]
        with watched.master.client() as client:
            assert steps(client, result.id) == [("first", "done", 1), ("second", "done", 1), ("third", "done", 1)]
            assert journal(client, result.id)["attempt"] == "1"
