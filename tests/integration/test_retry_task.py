"""``celery_durable.retry`` says what becomes of each failure, which a script decides when the run is opened again."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from celery_durable import RunNotRetryableError
from celery_durable.app.store import store_of
from celery_durable.journal.entries import done_entry, open_entry, started_entry
from celery_durable.task.retry_task import NAME
from tests.integration.runs import app_at, execute, new_id, opened, task_of

CALL = '{"args":[],"kwargs":{},"options":{"task_id":"any"}}'


def work(self: Any) -> None:
    """Do nothing."""


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with app_at(redis_url) as app:
        yield app


def failed(name: str, at: int) -> str:
    return open_entry(name, "failed", 1, at=at, error={"metadata": {"at": 10_000}})


def done(name: str, at: int) -> str:
    return done_entry(name, 1, at, 1, {}, '{"at":10000}')


def cancelled_wait(at: int) -> str:
    return open_entry("pause", "cancelled", 0, at=at, error={"status_code": 409}, until=10_000)


def sleeping(until: int) -> str:
    return open_entry("pause", "sleeping", 0, until=until)


@pytest.mark.parametrize(
    "steps",
    [
        {"9": done("a", 1), "10": failed("b", 2)},
        {"9": failed("a", 1), "10": done("b", 2)},
        {"9": failed("a", 3), "10": failed("b", 2)},
        {"1.1": done("a", 1), "1.2": failed("b", 3), "2.1": done("c", 2)},
        {"1.1": failed("a", 1), "2.1": done("b", 2)},
        {"1.1": failed("a", 2), "2.1": failed("b", 1)},
        {"1.1": failed("a", 2), "2.1": failed("b", 2), "10.1": failed("c", 2)},
        {"1": done("a", 1), "1.1": failed("b", 2)},
        {"1": done("a", 2), "1.1": failed("b", 2)},
        {"1": failed("a", 1), "1.1": done("b", 2)},
        {"1": failed("a", 3), "1.1": done("b", 2)},
        {"1.1": failed("a", 2), "2.1": sleeping(3)},
        {"1.1": failed("a", 2), "2.1": sleeping(1)},
        {"1.1": failed("a", 2), "2.1": cancelled_wait(1)},
        {"1.1": failed("a", 2), "2.1": started_entry("b", 1, 10_000)},
        {"1": failed("a", 2), "2": started_entry("b", 1, 10_000)},
        {"1.1": open_entry("a", "failed", 1)},
    ],
    ids=" ".join,
)
def test_the_note_says_which_failures_are_replayed(
    app: Celery, redis_client: redis.Redis, steps: dict[str, str]
) -> None:
    task, store, task_id = task_of(app, work), store_of(app), new_id()
    journal = opened(store, task_id, task=task.name, call=CALL)
    journal.send({f"step:{place}": text for place, text in steps.items()})
    journal.finish("failed", {"outcome": "{}"})
    journal.deliver(60)
    journal.prove_lease()

    note = app.tasks[NAME].apply((task_id,)).get()["note"]

    opened(store, task_id, task=task.name, reopen="this")
    kept = redis_client.hgetall(store.keys(task_id).run)
    names = [text.split('"')[3] for place, text in steps.items() if '"failed"' in kept.get(f"step:{place}", "")]
    assert [name for name in "abc" if f"failure of step {name!r}" in note] == names[:1]
    assert ("restart is needed" in note) == bool(names)


@pytest.mark.parametrize("wrong", [5, None, "", ["id"]], ids=repr)
def test_an_id_that_is_no_text_is_refused(app: Celery, wrong: Any) -> None:
    with pytest.raises(RunNotRetryableError, match="the id of a task is a text, got"):
        app.tasks[NAME].apply((wrong,)).get()


def test_a_request_that_is_refused_is_no_error_of_the_worker(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """Who asked gets the error; in the log it is one line."""
    caplog.set_level(logging.INFO)
    refused = app.tasks[NAME].apply(("unknown",))

    assert isinstance(refused.result, RunNotRetryableError)
    [line] = [line for line in caplog.records if "task unknown has no journal" in line.getMessage()]
    assert line.levelno == logging.INFO
    assert not line.exc_info


def test_a_run_that_was_refused_for_its_serializer_goes_on_once_the_app_accepts_that(
    app: Celery, redis_client: redis.Redis
) -> None:
    def keep(self: Any) -> Any:
        return self.ctx.run("keep", lambda: [1])

    task, store, task_id = task_of(app, keep, durable_serializer="pickle"), store_of(app), new_id()

    assert execute(task, task_id=task_id) == "FAILURE"
    kept = redis_client.hgetall(store.keys(task_id).run)
    assert (kept["status"], "step:1" in kept) == ("failed", False)

    app.conf.accept_content = ["json", "pickle"]
    del task.__dict__["_durable_attempt_settings"]  # as in a new process
    assert app.tasks[NAME].apply((task_id,)).get()["task"] == task.name
    assert execute(task, task_id=task_id) == "SUCCESS"
