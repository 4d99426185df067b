"""What integration tests add: a client of the database that a test has for itself."""

from collections.abc import Iterator

import pytest
import redis

from tests.servers import RedisServer


@pytest.fixture
def redis_client(redis_server: RedisServer, redis_url: str) -> Iterator[redis.Redis]:
    """A client, reading text, of the database behind `redis_url`."""
    with redis_server.client() as client:
        yield client
