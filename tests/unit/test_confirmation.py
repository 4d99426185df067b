"""Which servers can say truthfully that a write is on their disk."""

import pytest

from celery_durable.redis.confirmation import why_not_on_disk
from celery_durable.redis.server import Server

ALWAYS = {"appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
EVERYSEC = ALWAYS | {"appendfsync": "everysec"}


def server(redis_version: str, config: dict[str, str] | None, **info: str) -> Server:
    return Server({"redis_version": redis_version, "aof_enabled": "1", **info}, config)


@pytest.mark.parametrize("version", ["6.2.14", "7.0.15", "7.2.6", "7.4.1", "8.0.0", "8.4.2"])
def test_every_server_that_syncs_each_write_itself_is_believed(version: str) -> None:
    assert why_not_on_disk(server(version, ALWAYS)) is None
    assert why_not_on_disk(server("7.2.4", ALWAYS, valkey_version="9.1.2")) is None


def test_redis_7_2_answers_waitaof_after_the_fsync() -> None:
    assert why_not_on_disk(server("7.2.6", EVERYSEC)) is None


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (server("7.4.1", EVERYSEC), "Redis 7.4.1"),
        (server("8.2.0", EVERYSEC), "Redis 8.2.0"),
        (server("7.2.4", EVERYSEC, valkey_version="8.0.1"), "Valkey 8.0.1"),
        (server("7.2.4", EVERYSEC, valkey_version="9.1.2"), "Valkey 9.1.2"),
        (server("7.2.4", EVERYSEC, server_name="valkey", valkey_version="7.2.5"), "Valkey 7.2.5"),
    ],
)
def test_a_waitaof_that_may_answer_before_the_fsync_is_refused(facts: Server, name: str) -> None:
    reason = why_not_on_disk(facts)

    assert reason is not None
    assert f"WAITAOF of {name} may answer before the fsync under appendfsync everysec" in reason
    assert "appendfsync always" in reason


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (server("7.0.15", EVERYSEC), "Redis 7.0.15 with appendfsync everysec has no WAITAOF"),
        (server("6.2.14", EVERYSEC), "Redis 6.2.14 with appendfsync everysec has no WAITAOF"),
        (server("7.2.6", ALWAYS, aof_enabled="0"), "no append-only file: set appendonly yes"),
        (Server({"redis_version": "7.2.6"}, ALWAYS), "is not known"),
        (server("7.2.6", None), r"CONFIG GET was refused: allow the user \+config\|get"),
        (server("7.2.6", {}), "is not known"),
        (server("7.2.6", ALWAYS | {"appendfsync": "no"}), "appendfsync no leaves the disk to the kernel"),
        (server("7.2.6", ALWAYS | {"no-appendfsync-on-rewrite": "yes"}), "during a rewrite: set it to no"),
    ],
)
def test_a_server_that_cannot_promise_its_disk_is_refused_with_the_reason(facts: Server, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(why_not_on_disk(facts))


def test_a_server_that_says_nothing_of_itself_is_of_no_version() -> None:
    unknown = Server({}, None)

    assert (unknown.version, unknown.name) == ((0, 0), "Redis (of an unknown version)")
    assert why_not_on_disk(unknown) is not None
