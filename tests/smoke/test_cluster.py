"""Real workers whose journals are in a Cluster, of which a node dies."""

import pytest

from tests.groups import MAKES, RedisCluster
from tests.servers import program_of, server_program
from tests.smoke import effects
from tests.smoke.apps import crashes
from tests.smoke.nodes import DurableSetup
from tests.smoke.watching import journal, steps, wait_until_idle
from tests.waiting import eventually

pytestmark = pytest.mark.local_nodes(reason="the servers of a group are processes of this machine")
LONG = 60


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.crashes"


@pytest.mark.parametrize("make", MAKES)
def test_a_run_goes_on_when_its_node_of_a_cluster_dies(durable: DurableSetup, make: str) -> None:
    with RedisCluster(program_of(make)) as cluster:
        durable.start_worker(conf={"durable_lease": 20, "durable_redis_url": cluster.url})
        result = crashes.held_with_witness.delay()
        pid = effects.wait_until_blocked("second").pid
        before = cluster.holder_of(result.id)
        after = cluster.fail_over(before)
        effects.release("second")

        assert result.get(timeout=LONG) == [pid] * 3
        wait_until_idle(durable)
        assert [effects.count(name, result.id) for name in ("first", "second", "third")] == [1, 1, 1]
        with after.client() as client:
            assert steps(client, result.id) == [("first", "done", 1), ("second", "done", 1), ("third", "done", 1)]
            assert journal(client, result.id)["attempt"] == "1"


def test_runs_in_a_cluster_survive_their_worker(durable: DurableSetup) -> None:
    """Recovery looks at the shards of all nodes."""
    with RedisCluster(server_program()) as cluster:
        conf = {"durable_redis_url": cluster.url, "durable_lease": 2}
        worker = durable.start_worker(concurrency=4, conf=conf)
        results = [crashes.held_with_witness.delay() for _ in range(4)]
        effects.wait_until_blocked("second", times=4)
        worker.kill()
        effects.release("second")
        worker.start()
        worker.wait_ready()

        for result in results:
            result.get(timeout=LONG)
        assert [effects.count(name) for name in ("first", "third")] == [4, 4]
        eventually(
            lambda: all(journal_in(cluster, result.id).get("delivered") == "1" for result in results),
            what="the delivery of all",
        )


def journal_in(cluster: RedisCluster, task_id: str) -> dict[str, str]:
    with cluster.holder_of(task_id).client() as client:
        return journal(client, task_id)
