"""An attempt whose journal, or lease, is lost just when it says how it ends."""

from collections.abc import Mapping
from typing import Any

import pytest
import redis

from celery_durable import RunOptions
from celery_durable.exceptions import JournalUnavailableError
from celery_durable.interrupts import Fenced
from celery_durable.redis_journal import RedisJournal
from celery_durable.store import store_of
from tests.integration.runs import app_at, execute, new_id, task_of


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The fields of each suspension that was tried."""
    return []


def refuse(monkeypatch: pytest.MonkeyPatch, told: list[set[str]], error: BaseException) -> None:
    def suspend(_: RedisJournal, delay: float, fields: Mapping[str, str], slack: float = 0.0) -> None:
        told.append(set(fields))
        raise error

    monkeypatch.setattr(RedisJournal, "suspend", suspend)


def fails(self: Any) -> None:
    self.ctx.run("charge", lambda: 1 / 0, RunOptions(initial_retry_interval=60, max_attempts=3))


def succeeds(self: Any) -> str:
    return str(self.ctx.uuid())


def sleeps(self: Any) -> None:
    self.ctx.sleep(60)


@pytest.mark.parametrize("body", [fails, sleeps])
@pytest.mark.parametrize(
    ("error", "state"), [(JournalUnavailableError("away"), "RETRY"), (Fenced(), "IGNORED")], ids=["away", "fenced"]
)
def test_a_suspension_that_fails_is_tried_once_and_not_as_something_else(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, told: list[set[str]],
    body: Any, error: BaseException, state: str,
) -> None:  # fmt: skip
    refuse(monkeypatch, told, error)
    task_id = new_id()

    with app_at(redis_url) as app:
        assert execute(task_of(app, body), task_id=task_id) == state
        journal = redis_client.hgetall(store_of(app).keys(task_id).run)

    assert told == [{"resume", "step:1"}]
    assert journal["status"] == "running"


@pytest.mark.parametrize(("body", "store"), [(fails, "mark_as_retry"), (succeeds, "mark_as_done")])
def test_what_celery_could_not_store_is_no_failure_of_the_run(
    redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, body: Any, store: str
) -> None:
    """The result backend is away for a moment, and there again for the failure that Celery makes of that."""

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    task_id = new_id()
    with app_at(redis_url) as app:
        task = task_of(app, body)
        monkeypatch.setattr(app.backend, store, away)
        with pytest.warns(RuntimeWarning, match="Exception raised outside body"):
            execute(task, task_id=task_id)
        journal = redis_client.hgetall(store_of(app).keys(task_id).run)

        assert task.AsyncResult(task_id).state == "PENDING"
        # Of another task it is one, and so is the next one of this.
        task.backend.mark_as_failure(task_id, ValueError("refused"))
        assert task.AsyncResult(task_id).state == "FAILURE"

    assert "delivered" not in journal
    assert journal["status"] == ("suspended" if body is fails else "succeeded")
