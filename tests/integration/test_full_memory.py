"""A server whose memory is full refuses to write: the attempt is made again later, and nothing is lost."""

from collections.abc import Iterator

import pytest
from celery import Celery

from celery_durable import JournalUnavailableError
from celery_durable.app.store import store_of
from tests.integration.four_steps import STEPS, amid, executed
from tests.integration.runs import app_at, execute, new_id, opened
from tests.servers import RedisServer
from tests.waiting import eventually

SAID = ("RETRY", "IGNORED")
"""A state is stored only where no other attempt can have taken over: within the lease."""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def app(server: RedisServer) -> Iterator[Celery]:
    with app_at(server.url(), durable_lease=1) as app:
        yield app


def fill(server: RedisServer) -> None:
    """Allow less memory than is in use; nothing may be evicted."""
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")


def free(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("maxmemory", "0")


def test_the_error_says_that_memory_is_full(server: RedisServer, app: Celery) -> None:
    journal = opened(store_of(app), new_id())
    fill(server)
    journal.send({"step:1": "x"})

    with pytest.raises(JournalUnavailableError, match=r"OutOfMemoryError: .*maxmemory"):
        journal.flush()

    journal.close()


def test_an_attempt_is_made_again_and_goes_on_when_there_is_memory(server: RedisServer, app: Celery) -> None:
    task_id, store = new_id(), store_of(app)
    amid.append(lambda: fill(server))

    assert execute(app.tasks[STEPS], task_id=task_id) in SAID
    assert execute(app.tasks[STEPS], task_id=task_id, retries=1) in SAID
    assert executed == [1, 2]
    free(server)

    # A renewal that was under way may have taken the lease once more, for the attempt that is over.
    eventually(
        lambda: execute(app.tasks[STEPS], task_id=task_id, retries=2) == "SUCCESS",
        what="the lease to lapse, and the next attempt to succeed",
    )
    assert executed == [1, 2, 2, 3, 4], "the second step had not been recorded"
    with server.client() as client:
        fields = client.hgetall(store.keys(task_id).run)
    assert (fields["status"], fields["attempt"]) == ("succeeded", "2")


def test_memory_that_is_free_again_within_the_lease_is_not_noticed(server: RedisServer) -> None:
    with app_at(server.url(), durable_lease=30) as app:
        journal = opened(store_of(app), new_id())
        fill(server)
        journal.send({"step:1": "x"})
        usual = journal.connection.transport.close

        def drop_and_free() -> None:
            usual()
            free(server)

        journal.connection.transport.close = drop_and_free
        journal.flush()

        journal.connection.transport.close = usual
        journal.close()
