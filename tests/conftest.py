"""What every test may use: a real Redis, the choice of the nodes, and the check that nothing is left behind."""

import signal
from collections.abc import Iterator

import pytest
from xdist import is_xdist_worker
from xdist.remote import Producer

from celery_durable import happenings, meter
from tests import distribution, django_project, leftovers, processes, skips
from tests.postgresql import PostgreSQL
from tests.servers import RedisServer, ServerUnavailableError


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--durable-nodes",
        choices=["auto", "local", "docker"],
        default="auto",
        help="where smoke tests run their Redis and workers: as processes of this machine (local), in containers "
        "(docker, an error without an engine), or both, with the containers skipped where no engine answers (auto)",
    )


def pytest_xdist_auto_num_workers() -> int:
    return distribution.number_of_workers()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> distribution.Schedule:
    return distribution.Schedule(config, log)


def pytest_configure() -> None:
    """Let processes that tests start hear Ctrl-C, which a shell has those ignore that it starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    if is_xdist_worker(session):
        distribution.sort(items)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the skipped tests by reason, instead of listing them."""
    skipped = terminalreporter.getreports("skipped")
    if skipped:
        terminalreporter.write_line(skips.counted([report.longrepr[2] for report in skipped]))


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process behind, and end that process."""
    before = processes.alive()
    yield
    leftovers.check_processes(expected=before)


@pytest.fixture(autouse=True, scope="module")
def nobody_listens_on() -> Iterator[None]:
    """Let what observes the runs of a file hear nothing of those of another one.

    The receivers of a worker that a smoke test starts are connected in this process, too, when tests are collected.
    """
    before, measures = happenings.observers, meter._measures  # noqa: SLF001  there is no other way to end it
    happenings.observers = {}
    yield
    happenings.observers, meter._measures = before, measures  # noqa: SLF001


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The server that all tests share which neither stop it nor change its configuration."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> Iterator[str]:
    """The URL of an empty database; afterwards every finished run in it has to have a TTL."""
    redis_server.client().flushall()
    yield redis_server.url()
    leftovers.check_journals(redis_server)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """The server that all tests share, with the tables of the Django project; its user may end all connections."""
    try:
        server = PostgreSQL().start()
    except ServerUnavailableError as unavailable:
        pytest.skip(unavailable.args[0])
    try:
        django_project.prepare(server.django)
        yield server
    finally:
        server.close()
