"""What smoke tests add: the fixture `durable`, which is pytest-celery's setup on nodes of this machine or of Docker."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import kombu.pools
import pytest
from celery import Celery
from celery.app.utils import find_app
from pytest_celery import CeleryTestBackend, CeleryTestBroker

from celery_durable.app import store
from tests import leftovers
from tests.servers import free_port
from tests.smoke import docker_nodes, effects
from tests.smoke.flower import Flower
from tests.smoke.monitor import Monitor
from tests.smoke.nodes import (
    BACKEND_DB,
    BROKER_DB,
    DurableSetup,
    LocalNodes,
    Nodes,
    ServerContainer,
    Worker,
    WorkerCluster,
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with nodes once per place where nodes can be."""
    if "nodes" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--durable-nodes")
    places = []
    if chosen in ("auto", "local"):
        places.append(pytest.param("local"))
    if chosen in ("auto", "docker"):
        local_only = metafunc.definition.get_closest_marker("local_nodes")
        skip = [pytest.mark.skip(reason=local_only.kwargs["reason"])] if local_only else []
        places.append(pytest.param("docker", marks=[pytest.mark.docker, *skip]))
    metafunc.parametrize("nodes", places, indirect=True)


@pytest.fixture
def worker_app() -> str:
    """The app that workers run and tests send with, as for `celery -A`; a test module overrides it."""
    return "tests.smoke.apps.plain"


@pytest.fixture
def durable(celery_setup: DurableSetup) -> DurableSetup:
    """A server, an app to send tasks with, and `start_worker`."""
    return celery_setup


@pytest.fixture
def worker(durable: DurableSetup) -> Worker:
    """A worker with two processes, for tests to which its options do not matter."""
    return durable.start_worker()


@pytest.fixture(params=["early", "late"])
def acks(request: pytest.FixtureRequest) -> str:
    """When messages are acknowledged."""
    return request.param


@pytest.fixture
def monitor(durable: DurableSetup) -> Iterator[Monitor]:
    """A monitor that sees every event from now on."""
    monitor = Monitor(durable.app)
    monitor.start()
    yield monitor
    monitor.end()


@pytest.fixture
def start_flower(durable: DurableSetup, worker_app: str, tmp_path: Path) -> Iterator[Callable[..., Flower]]:
    """Start Flower with the app of the workers, or, `with_app=False`, with nothing but the broker's URL."""
    started: list[Flower] = []

    def start(*, with_app: bool = True, env: dict[str, str] | None = None) -> Flower:
        broker, backend = (durable.broker_server.url(db) for db in (BROKER_DB, BACKEND_DB))
        if with_app:
            arguments = ["-A", worker_app]
            env = {"CELERY_BROKER_URL": broker, "CELERY_RESULT_BACKEND": backend, **(env or {})}
        else:
            arguments, env = [f"--broker={broker}"], {}
        one = Flower(*arguments, log=tmp_path / f"flower{len(started)}.log", env=env)
        started.append(one)
        one.wait_ready()
        return one

    yield start
    for one in started:
        one.end()


@pytest.fixture
def flower(start_flower: Callable[..., Flower]) -> Flower:
    return start_flower()


@pytest.fixture
def effects_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the module `effects` of this test, and of its workers, keeps its files."""
    folder = tmp_path / "effects"
    folder.mkdir()
    monkeypatch.setenv(effects.FOLDER_VARIABLE, str(folder))
    return folder


@pytest.fixture(scope="session")
def server_port() -> int:
    """One port for the servers of all tests, since an app, which outlives its test, keeps its URLs."""
    return free_port()


@pytest.fixture(scope="session")
def docker_engine(pytestconfig: pytest.Config) -> docker.DockerClient:
    """The Docker engine with the images that nodes need; without one its tests are skipped, or fail if asked for."""
    try:
        return docker_nodes.engine()
    except docker_nodes.EngineUnavailableError as unavailable:
        if pytestconfig.getoption("--durable-nodes") == "docker":
            raise
        pytest.skip(unavailable.args[0])


@pytest.fixture
def nodes(request: pytest.FixtureRequest, server_port: int, tmp_path: Path) -> Iterator[Nodes]:
    """The place where this test's Redis and workers run, its Redis started and empty."""
    if request.param == "docker":
        engine = request.getfixturevalue("docker_engine")
        network = request.getfixturevalue("default_pytest_celery_network")
        nodes = docker_nodes.DockerNodes(engine, network, server_port, tmp_path)
    else:
        nodes = LocalNodes(server_port)
    try:
        yield nodes
        leftovers.check_journals(nodes.server)
    finally:
        nodes.close()


@pytest.fixture
def celery_broker(nodes: Nodes) -> CeleryTestBroker:
    return CeleryTestBroker(ServerContainer(nodes, BROKER_DB))


@pytest.fixture
def celery_backend(nodes: Nodes) -> CeleryTestBackend:
    return CeleryTestBackend(ServerContainer(nodes, BACKEND_DB))


@pytest.fixture
def celery_worker_cluster(
    nodes: Nodes, worker_app: str, celery_worker_cluster_config: dict[str, Any], tmp_path: Path, effects_folder: Path
) -> Iterator[WorkerCluster]:
    """No worker yet: tests start theirs with the options that they are about."""
    env = {
        "CELERY_BROKER_URL": celery_worker_cluster_config["celery_broker_cluster_config"]["urls"][0],
        "CELERY_RESULT_BACKEND": celery_worker_cluster_config["celery_backend_cluster_config"]["urls"][0],
        effects.FOLDER_VARIABLE: str(effects_folder),
    }
    cluster = WorkerCluster(nodes, worker_app, tmp_path, env)
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_setup_cls() -> type[DurableSetup]:
    return DurableSetup


@pytest.fixture
def celery_setup_app(worker_app: str, celery_setup_config: dict[str, Any]) -> Iterator[Celery]:
    """The app of the workers itself, so that tests send `orders.checkout.delay(...)` as its users do."""
    app = find_app(worker_app)
    app.set_current()  # shared tasks, which every app of this process knows, are sent by the current one
    app.conf.update(celery_setup_config)
    yield app
    forget_connections(app)


def forget_connections(app: Celery) -> None:
    """Let the app connect again: the next test's server has none of this one's queues, or another address."""
    store._stores.pop(app, None)  # noqa: SLF001  (a program has one Redis for the journals of an app)
    kombu.pools.reset()
    app._after_fork()  # noqa: SLF001  (the only call that drops an app's connections and keeps the app)
    backend, app._local.backend = getattr(app._local, "backend", None), None  # noqa: SLF001
    if backend is not None:
        # A result unsubscribes when it is deleted, whenever that is: it would connect again, amid another test.
        backend.result_consumer.cancel_for = lambda _task_id: None
        backend.result_consumer.stop()
        backend.client.connection_pool.disconnect()
