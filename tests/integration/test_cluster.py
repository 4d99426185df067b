"""The journal in a Redis Cluster: each run on the node that has its slot, wherever that slot goes meanwhile."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis
from celery import Celery

from celery_durable import JournalUnavailableError
from celery_durable.app.store import Store, store_of
from celery_durable.operate.runs import Runs
from celery_durable.redis.client.protocol import pack
from celery_durable.redis.keys import SHARDS
from celery_durable.worker.startup import risks_of
from tests.groups import MAKES, RedisCluster, node_id
from tests.integration.four_steps import STEPS, STEPS_ASYNC, amid, executed
from tests.integration.runs import app_at, execute, new_id, opened, store_at
from tests.servers import RedisServer, ServerUnavailableError, free_port, program_of, server_program
from tests.waiting import eventually


@pytest.fixture(scope="module", params=MAKES)
def cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    """A Cluster that tests leave whole, though slots may have moved."""
    with RedisCluster(program_of(request.param)) as cluster:
        yield cluster


@pytest.fixture
def app(cluster: RedisCluster) -> Iterator[Celery]:
    with app_at(cluster.url) as app:
        yield app


def id_in(store: Store, shard: int) -> str:
    """Return a new id of this shard."""
    return next(task_id for task_id in iter(new_id, None) if store.shards.of(task_id).number == shard)


def fields_of(cluster: RedisCluster, store: Store, task_id: str) -> dict[str, str]:
    key = store.keys(task_id).run
    with cluster.master_of(key).client() as client:
        return client.hgetall(key)


def assert_one_attempt(fields: dict[str, str]) -> None:
    assert executed == [1, 2, 3, 4]
    assert (fields["status"], fields["attempt"]) == ("succeeded", "1")
    assert sum(name.startswith("step:") for name in fields) == 4


# -- a Cluster at rest


def test_runs_of_all_shards_are_each_on_their_node(cluster: RedisCluster, app: Celery) -> None:
    store = store_of(app)
    masters = set()
    for shard in store.shards:
        task_id = id_in(store, shard.number)
        executed.clear()

        assert execute(app.tasks[STEPS], task_id=task_id) == "SUCCESS"

        assert_one_attempt(fields_of(cluster, store, task_id))
        masters.add(cluster.master_of(store.keys(task_id).run).port)
    assert len(masters) == 3


def test_shards_of_one_node_share_connections(cluster: RedisCluster) -> None:
    with store_at(cluster.url) as store:
        for shard in [*store.shards] * 2:
            task_id = id_in(store, shard.number)
            journal = opened(store, task_id)
            journal.finish("succeeded", {})
            journal.deliver(60)
            journal.close()

        idle = {node.port: len(pool) for node, pool in store._cluster._idle.items()}  # noqa: SLF001

    assert idle == {one.port: 1 for one in cluster.running if one.port in idle}
    assert len(idle) == 3


def test_the_outcome_is_delivered_though_another_shard_takes_the_connection(cluster: RedisCluster) -> None:
    """Its command is still unanswered when the connection turns to another slot."""
    with store_at(cluster.url) as store:
        ids = [id_in(store, shard.number) for shard in store.shards]
        for task_id in ids:
            journal = opened(store, task_id)
            journal.finish("succeeded", {})
            journal.deliver(60)
            journal.close()
        for task_id in ids:
            store.runs.load(task_id)

        assert [fields_of(cluster, store, task_id)["delivered"] for task_id in ids] == ["1"] * SHARDS


def test_the_claims_of_all_shards_are_found(cluster: RedisCluster) -> None:
    with store_at(cluster.url, durable_key_prefix="claims:", durable_lease=1) as store:
        ids = [id_in(store, shard.number) for shard in store.shards]
        for task_id in ids:
            opened(store, task_id, task=STEPS).close()
            keys = store.keys(task_id)
            with cluster.master_of(keys.run).client() as client:
                assert client.zadd(keys.leases, {task_id: 0}, xx=True, ch=True) == 1

        found = [[run.task_id for run in claims.runs] for claims in store.runs.claim([STEPS])]

    assert found == [[task_id] for task_id in ids]


def test_runs_of_all_shards_are_listed_and_swept(cluster: RedisCluster, app: Celery) -> None:
    store, runs = store_of(app), Runs(app)
    ids = [id_in(store, shard.number) for shard in store.shards]
    for task_id in ids:
        opened(store, task_id, task="shop.listed").suspend(3600, {}, waits="sleep")
    for shard in store.shards:
        with cluster.master_of(f"{shard.prefix}index").client() as client:
            client.delete(f"{shard.prefix}index:sleep:shop.listed")
    assert list(runs.list(task="shop.listed")) == []

    store.index.sweep()

    assert {run.id for run in runs.list(task="shop.listed")} == {*ids}
    assert runs.states(ids) == dict.fromkeys(ids, "SUSPENDED")


def test_leases_of_all_shards_are_renewed(cluster: RedisCluster) -> None:
    with store_at(cluster.url, durable_lease=1) as store:
        journals = [opened(store, id_in(store, shard.number)) for shard in store.shards]
        leases = [store.journal_for(journal._keys.task_id, store.settings)[1] for journal in journals]  # noqa: SLF001
        keepers = [lease._keeper for lease in leases]  # noqa: SLF001
        first = [journal.ownership.renewed_at for journal in journals]
        for keeper, journal in zip(keepers, journals, strict=True):
            keeper.keep(journal.ownership)

        eventually(
            lambda: all(journal.ownership.renewed_at > at for journal, at in zip(journals, first, strict=True)),
            what="renewals of all",
        )

        for keeper, journal in zip(keepers, journals, strict=True):
            keeper.drop(journal.ownership)
            journal.close()


def test_seeds_that_are_gone_are_passed_over(cluster: RedisCluster) -> None:
    gone = ";".join(f"127.0.0.1:{free_port()}" for _ in range(9))
    with store_at(f"redis+cluster://{gone};127.0.0.1:{cluster.running[0].port}") as store:
        pool = store.shards.of(task_id := new_id()).pool
        connection = pool.take()
        connection.send(pack("EXISTS", store.keys(task_id).run))

        assert connection.replies(timeout=0) == [0], "at the first try"

        pool.give_back(connection)


def test_a_cluster_with_tls() -> None:
    try:
        cluster = RedisCluster(server_program(), tls=True).start()
    except ServerUnavailableError as reason:
        pytest.skip(f"no Cluster with TLS here: {str(reason).splitlines()[0]}")
    with closing(cluster), app_at(cluster.url) as app:
        store = store_of(app)
        ids = {cluster.master_of(shard.prefix).port: id_in(store, shard.number) for shard in store.shards}
        assert len(ids) == 3
        for task_id in ids.values():
            executed.clear()

            assert execute(app.tasks[STEPS], task_id=task_id) == "SUCCESS"

            assert_one_attempt(fields_of(cluster, store, task_id))


def test_a_server_that_is_no_cluster_is_named(redis_server: RedisServer) -> None:
    with (
        store_at(f"redis+cluster://127.0.0.1:{redis_server.port}", durable_lease=1) as store,
        pytest.raises(JournalUnavailableError, match="cluster support disabled"),
    ):
        store.runs.load(new_id())


def test_a_plain_url_of_a_node_is_refused_with_the_right_url(cluster: RedisCluster) -> None:
    with store_at(cluster.running[0].url(), durable_lease=1) as store:
        foreign = next(
            task_id
            for task_id in (id_in(store, shard.number) for shard in store.shards)
            if cluster.master_of(store.keys(task_id).run) is not cluster.running[0]
        )
        with pytest.raises(JournalUnavailableError, match=r"MOVED|redis\+cluster://"):
            store.runs.load(foreign)


def test_the_start_names_a_plain_url_of_a_node(cluster: RedisCluster) -> None:
    with app_at(cluster.running[0].url()) as app:
        risks = [risk.text for risk in risks_of(app, [app.tasks[STEPS]])]

    assert [risk for risk in risks if "redis+cluster://" in risk]


def test_the_start_looks_at_every_master(cluster: RedisCluster, app: Celery) -> None:
    for one in cluster.running:
        with one.client() as client:
            client.config_set("maxmemory", "1gb")
            client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        risks = [risk.text for risk in risks_of(app, [app.tasks[STEPS]])]
    finally:
        for one in cluster.running:
            with one.client() as client:
                client.config_set("maxmemory-policy", "noeviction")

    assert len([risk for risk in risks if "allkeys-lru" in risk]) == 3


# -- slots that move


class Migration:
    """A slot on its way from one node to another, as `redis-cli --cluster reshard` moves it."""

    def __init__(self, cluster: RedisCluster, key: str) -> None:
        self.cluster = cluster
        self.source = cluster.master_of(key)
        with self.source.client() as client:
            self.slot = client.execute_command("CLUSTER KEYSLOT", key)
        self.target = next(one for one in cluster.running if one is not self.source and self._role_is_master(one))

    @staticmethod
    def _role_is_master(server: RedisServer) -> bool:
        with server.client() as client:
            return client.info("replication")["role"] == "master"

    def begin(self) -> None:
        self._tell(self.target, "IMPORTING", node_id(self.source))
        self._tell(self.source, "MIGRATING", node_id(self.target))

    def move(self, *keys: str) -> None:
        with self.source.client() as client:
            client.migrate("127.0.0.1", self.target.port, list(keys), 0, 5000)

    def move_all(self) -> None:
        with self.source.client() as client:
            while keys := client.execute_command("CLUSTER GETKEYSINSLOT", self.slot, 100):
                self.move(*keys)

    def end(self) -> None:
        for one in (self.target, self.source):
            self._tell(one, "NODE", node_id(self.target))
        eventually(lambda: self.cluster.server_of_slot(self.slot) is self.target, what="the slot at its new node")

    def _tell(self, server: RedisServer, *words: str) -> None:
        with server.client() as client:
            client.execute_command("CLUSTER SETSLOT", self.slot, *words)


@pytest.mark.parametrize("name", [STEPS, STEPS_ASYNC])
def test_an_attempt_goes_on_when_its_slot_has_moved(cluster: RedisCluster, app: Celery, name: str) -> None:
    store, task_id = store_of(app), new_id()

    def move() -> None:
        migration = Migration(cluster, store.keys(task_id).run)
        migration.begin()
        migration.move_all()
        migration.end()

    amid.append(move)

    assert execute(app.tasks[name], task_id=task_id) == "SUCCESS"

    assert_one_attempt(fields_of(cluster, store, task_id))


def test_a_step_is_recorded_while_its_slot_is_moving(cluster: RedisCluster, app: Celery) -> None:
    """The key of the run is at the new node already (ASK), the slot is not."""
    store, task_id = store_of(app), new_id()
    journal = opened(store, task_id)
    migration = Migration(cluster, store.keys(task_id).run)
    migration.begin()
    migration.move(store.keys(task_id).run)

    for number in range(1, 4):
        journal.send({f"step:{number}": "x"})
        journal.flush()

    with migration.target.client() as client:
        client.execute_command("ASKING")
    migration.move_all()
    migration.end()
    journal.finish("succeeded", {})
    journal.close()
    fields = fields_of(cluster, store, task_id)
    assert [fields[f"step:{number}"] for number in range(1, 4)] == ["x"] * 3
    assert fields["status"] == "succeeded"


def test_a_script_waits_while_its_keys_are_on_two_nodes(cluster: RedisCluster, app: Celery) -> None:
    """TRYAGAIN, until the slot has moved."""
    store, task_id = store_of(app), new_id()
    journal = opened(store, task_id)
    migration = Migration(cluster, store.keys(task_id).run)
    migration.begin()
    migration.move(store.keys(task_id).run)
    finishing = threading.Thread(target=journal.finish, args=("succeeded", {}))
    finishing.start()
    with migration.source.client() as client:
        refused = "errorstat_TRYAGAIN"
        eventually(lambda: refused in client.info("errorstats"), what="a refusal")

    migration.move_all()
    migration.end()
    finishing.join(20)

    journal.close()
    assert fields_of(cluster, store, task_id)["status"] == "succeeded"


def test_a_run_begins_where_its_slot_has_gone_since_the_nodes_were_asked(cluster: RedisCluster, app: Celery) -> None:
    store = store_of(app)
    first, second = (id_in(store, 3) for _ in range(2))
    opened(store, first).close()
    migration = Migration(cluster, store.keys(first).run)
    migration.begin()
    migration.move_all()
    migration.end()

    opened(store, second).close()

    assert fields_of(cluster, store, second)["status"] == "running"
    assert store.shards.of(second).pool.take().node.port == migration.target.port


def test_what_was_lost_with_its_connection_is_sent_to_its_own_slot(cluster: RedisCluster, app: Celery) -> None:
    """And not with the commands of another shard that takes the connection: the slots may have parted."""
    store = store_of(app)
    first, second = (id_in(store, shard) for shard in shards_of_one_node(cluster, store))
    journal = opened(store, first)
    journal.finish("succeeded", {})
    journal.connection.transport.lose()
    journal.deliver(60)
    journal.close()
    migration = Migration(cluster, store.keys(first).run)
    migration.begin()
    migration.move_all()
    migration.end()

    opened(store, second).close()
    assert "delivered" not in fields_of(cluster, store, first)
    store.runs.load(first)

    assert fields_of(cluster, store, first)["delivered"] == "1"


def test_a_delivery_that_was_lost_is_made_known_though_no_run_comes(cluster: RedisCluster, app: Celery) -> None:
    store, task_id = store_of(app), new_id()
    journal = opened(store, task_id)
    journal.finish("succeeded", {})
    connection = journal.connection
    connection.transport.lose()
    journal.deliver(60)
    journal.close()
    assert "delivered" not in fields_of(cluster, store, task_id)
    connection.idle_since -= 60

    store.shards.of(task_id).pool.flush_idle()

    assert fields_of(cluster, store, task_id)["delivered"] == "1"


def shards_of_one_node(cluster: RedisCluster, store: Store) -> list[int]:
    """Return two shards that are on the same node."""
    by_port: dict[int, list[int]] = {}
    for shard in store.shards:
        by_port.setdefault(cluster.master_of(shard.prefix).port, []).append(shard.number)
    return next(numbers for numbers in by_port.values() if len(numbers) >= 2)[:2]


# -- nodes that die


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", [STEPS, STEPS_ASYNC])
def test_an_attempt_goes_on_across_the_death_of_its_master(make: str, name: str) -> None:
    task_id = new_id()
    with RedisCluster(program_of(make)) as doomed, app_at(doomed.url) as app:
        store = store_of(app)
        before = doomed.master_of(store.keys(task_id).run)
        amid.append(lambda: doomed.fail_over(before))

        assert execute(app.tasks[name], task_id=task_id) == "SUCCESS"

        after = doomed.master_of(store.keys(task_id).run)
        assert after.port != before.port
        assert_one_attempt(fields_of(doomed, store, task_id))


def test_a_dead_master_does_not_keep_other_shards_waiting() -> None:
    """Without a full coverage the other masters serve on, while no replica can take over."""
    with RedisCluster(server_program()) as doomed, store_at(doomed.url, durable_lease=2) as store:
        for one in doomed.running:
            with one.client() as client:
                client.config_set("cluster-require-full-coverage", "no")
        dead = doomed.server_of_slot(0)
        ids = {shard.number: id_in(store, shard.number) for shard in store.shards}
        owners = {number: doomed.master_of(store.keys(task_id).run).port for number, task_id in ids.items()}
        journals = {number: opened(store, task_id, task=STEPS) for number, task_id in ids.items()}
        lost = {number for number, port in owners.items() if port == dead.port}
        assert 0 < len(lost) < SHARDS
        doomed.replica_of(dead).kill()
        dead.kill()

        for number, journal in journals.items():
            if number not in lost:
                journal.prove_lease()
        claims = store.runs.claim([STEPS])
        with pytest.raises(JournalUnavailableError):
            journals[min(lost)].prove_lease()

    assert len(claims) == SHARDS
    assert {number for number in range(SHARDS) if claims[number].runs == []} >= lost


def test_redis_errors_are_known_by_their_names() -> None:
    """What these mean is decided by class: redis-py takes the code away from the text."""
    from redis.exceptions import AskError, ClusterDownError, MasterDownError, MovedError, TryAgainError

    assert issubclass(MasterDownError, ClusterDownError)
    assert issubclass(MovedError, AskError)
    assert issubclass(TryAgainError, redis.ResponseError)
