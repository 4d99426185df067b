"""What integration tests add: a client of the database that a test has for itself, and nobody who listens."""

from collections.abc import Iterator

import pytest
import redis
from celery import signals

from tests.servers import RedisServer


@pytest.fixture
def redis_client(redis_server: RedisServer, redis_url: str) -> Iterator[redis.Redis]:
    """A client, reading text, of the database behind `redis_url`."""
    with redis_server.client() as client:
        yield client


@pytest.fixture(autouse=True)
def _nobody_listens_for_success(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where somebody does, results are delivered in another way; the apps of other tests do, if they are imported."""
    signal = signals.task_success
    monkeypatch.setattr(signal, "receivers", [])
    signal.sender_receivers_cache.clear()
    yield
    signal.sender_receivers_cache.clear()
