"""What integration tests add: a database that a test has for itself, with an app, and nobody who listens."""

from collections.abc import Iterator

import pytest
import redis
from celery import Celery, signals

from celery_durable import Runs
from celery_durable.app.store import Store, store_of
from tests.integration import four_steps
from tests.integration.network import Proxy
from tests.integration.runs import app_at, sent, store_at
from tests.servers import RedisServer


@pytest.fixture
def redis_client(redis_server: RedisServer, redis_url: str) -> Iterator[redis.Redis]:
    """A client, reading text, of the database behind `redis_url`."""
    with redis_server.client() as client:
        yield client


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[Proxy]:
    """A proxy before the server of that database."""
    with Proxy(redis_server) as proxy:
        yield proxy


@pytest.fixture
def far_store(proxy: Proxy) -> Iterator[Store]:
    """A store behind the proxy."""
    with store_at(proxy.url) as store:
        yield store


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    """An app whose journals are in that database."""
    with app_at(redis_url) as app:
        yield app


@pytest.fixture
def store(app: Celery) -> Store:
    """The journals of that app."""
    return store_of(app)


@pytest.fixture
def runs(app: Celery) -> Runs:
    """The runs of that app, as an operator has them."""
    return Runs(app)


@pytest.fixture
def acts() -> list[str]:
    """What steps have done."""
    return []


@pytest.fixture
def empty_broker(app: Celery) -> Iterator[None]:
    """The broker of this process, which is one for all its apps, without messages before and after the test."""
    sent(app)
    yield
    sent(app)


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    four_steps.executed.clear()
    four_steps.amid.clear()


@pytest.fixture(autouse=True)
def _nobody_listens_for_success(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where somebody does, results are delivered in another way; the apps of other tests do, if they are imported."""
    signal = signals.task_success
    monkeypatch.setattr(signal, "receivers", [])
    signal.sender_receivers_cache.clear()
    yield
    signal.sender_receivers_cache.clear()
