"""Runs that a worker was told to revoke: who ends one says so, and nobody else does."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from celery import Celery
from celery.worker import state as worker_state

from celery_durable.revocation import Revocations
from celery_durable.store import store_of
from tests.integration.runs import app_at, execute, new_id, task_of

DAY = 24 * 3600.0


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with app_at(redis_url) as app:
        yield app


def sleeps(self: Any, *_: Any) -> None:
    self.ctx.sleep(3600)


def asleep(app: Celery, **options: Any) -> str:
    """Return the id of a run that sleeps."""
    task_id = new_id()
    assert execute(task_of(app, sleeps, **options), "bed", task_id=task_id) == "IGNORED"
    return task_id


@pytest.fixture
def revoke(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tell what revokes of ids, as remote control does, and let it find them twice."""

    def told(revocations: Revocations, *ids: str) -> None:
        monkeypatch.setattr(worker_state, "revoked", set(ids))
        for _ in range(2):
            revocations.carry_out()

    return told


def test_a_run_that_its_request_has_ended_is_not_announced_again(
    app: Celery, revoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are in the main process of a worker."""
    announced = Mock()
    task_id = asleep(app)
    monkeypatch.setattr(app.backend, "mark_as_revoked", announced)

    assert store_of(app).runs.condemn(task_id, "revoked", DAY, "{}")
    assert not store_of(app).runs.condemn(task_id, "revoked", DAY, "{}")
    revoke(Revocations(app), task_id)

    assert announced.call_count == 0


def test_what_could_not_be_said_of_a_revoked_run_is_said_the_next_time(
    app: Celery, revoke: Any, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = Mock(side_effect=[ConnectionError("away"), None])
    task_id, revocations = asleep(app), Revocations(app)
    monkeypatch.setattr(app.backend, "mark_as_revoked", announced)

    for _ in range(2):
        revoke(revocations, task_id)

    assert announced.call_count == 2
    assert redis_client.hget(store_of(app).keys(task_id).run, "status") == "revoked"
