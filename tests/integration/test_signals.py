"""What observers are told of runs: each happening once, when the journal has it, by the process that has done it."""

import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from billiard.exceptions import TimeLimitExceeded
from celery import Celery
from celery.worker import state as worker_state

from celery_durable import RecoveryLimitExceeded, RunOptions, Runs, TerminalError, cancel
from celery_durable.app.store import Store, store_of
from celery_durable.journal.layout import Status
from celery_durable.worker import news
from celery_durable.worker.revocation import Revocations
from tests.integration.runs import HINT, app_at, decline, execute, lapse, new_id, task_of
from tests.receivers import observed
from tests.servers import free_port

Told = list[tuple[str, Any, Any]]

LONG = RunOptions(initial_retry_interval=3600, max_retry_interval=3600)
SHORT = RunOptions(initial_retry_interval=30, max_retry_interval=30)
AGAIN = {"delivery_info": {"redelivered": True}}


@pytest.fixture
def told() -> Iterator[Told]:
    with observed() as told:
        yield told


@pytest.fixture
def due(app: Celery, redis_client: redis.Redis) -> Any:
    """Let the wait of a run be over."""
    return lambda task_id: redis_client.hset(store_of(app).keys(task_id).run, "due", 1)


def names(told: Told) -> list[str]:
    return [happening if step is None else f"{happening} {step.name}" for happening, _, step in told]


def as_kept(app: Celery, told: Told) -> None:
    """Check that the last record says what the journal says, but for what is left out of it."""
    run, kept = told[-1][1], Runs(app).get(told[-1][1].id)
    assert list(run.args) == kept.args
    for fact in ("task", "state", "kwargs", "created", "began", "worker", "build", "error"):
        assert getattr(run, fact) == getattr(kept, fact), fact
    assert (run.steps, run.actions, run.lease) == ((), (), None)
    [attempt], newest = run.attempts, kept.attempts[-1]
    for fact in ("number", "began", "how", "worker", "build", "executed", "replayed"):
        assert getattr(attempt, fact) == getattr(newest, fact), fact
    for one, other in ((run.ended, kept.ended), (run.until, kept.until), (attempt.ended, newest.ended)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert abs((one - other).total_seconds()) < 30, "two clocks, and a busy machine"


def sells(self: Any, number: int) -> int:
    return number * self.ctx.run("charge", lambda: 1)


def sleeps(self: Any) -> None:
    self.ctx.run("charge", lambda: 1)
    self.ctx.sleep(3600)


def fails(self: Any) -> None:
    self.ctx.run("charge", decline)


def test_a_run_that_succeeds(app: Celery, told: Told) -> None:
    execute(task_of(app, sells), 7, task_id=new_id())

    assert names(told) == ["run_started", "step_succeeded charge", "run_succeeded"]
    assert [run.state for _, run, _ in told] == ["STARTED", "STARTED", "SUCCESS"]
    as_kept(app, told)


def test_a_message_that_is_delivered_again_tells_nothing(app: Celery, told: Told) -> None:
    task, task_id = task_of(app, sells), new_id()
    execute(task, 7, task_id=task_id)
    told.clear()

    execute(task, 7, task_id=task_id, **AGAIN)

    assert told == []


def test_a_run_that_fails(app: Celery, told: Told) -> None:
    execute(task_of(app, fails), task_id=new_id())

    assert names(told) == ["run_started", "step_failed charge", "run_failed"]
    assert told[-1][1].error == "TerminalError: declined"
    as_kept(app, told)


def test_a_run_that_sleeps_and_goes_on(app: Celery, told: Told, due: Any) -> None:
    task, task_id = task_of(app, sleeps), new_id()
    execute(task, task_id=task_id)

    assert names(told) == ["run_started", "step_succeeded charge", "run_suspended"]
    assert (told[-1][1].state, told[-1][1].waits_for) == ("SUSPENDED", "the end of a sleep")
    as_kept(app, told)

    told.clear()
    due(task_id)
    execute(task, task_id=task_id, **HINT)
    assert names(told) == ["run_resumed", "run_suspended"]
    assert [run.attempts[0].number for _, run, _ in told] == [2, 2]
    as_kept(app, told)


@pytest.mark.parametrize(("options", "last"), [(LONG, ["run_suspended"]), (SHORT, [])], ids=["journal", "broker"])
def test_a_retry_is_a_suspension_if_the_journal_keeps_the_wait(
    app: Celery, told: Told, options: RunOptions, last: list[str]
) -> None:
    def asks(self: Any) -> None:
        self.ctx.run("ask", lambda: 1 / 0, options)

    execute(task_of(app, asks), task_id=new_id())

    assert names(told) == ["run_started", *last]
    if last:
        assert told[-1][1].state == "RETRY"
        as_kept(app, told)


@pytest.mark.parametrize(("countdown", "last"), [(3600, ["run_suspended"]), (30, [])], ids=["journal", "broker"])
def test_so_is_a_retry_of_user_code(app: Celery, told: Told, countdown: int, last: list[str]) -> None:
    def asks(self: Any) -> None:
        self.ctx.run("charge", lambda: 1)
        raise self.retry(countdown=countdown)

    execute(task_of(app, asks), task_id=new_id())

    assert names(told) == ["run_started", "step_succeeded charge", *last]


def test_a_run_that_is_cancelled(app: Celery, told: Told, due: Any) -> None:
    task, task_id = task_of(app, sleeps), new_id()
    execute(task, task_id=task_id)
    cancel(task_id, app=app)
    told.clear()

    execute(task, task_id=task_id, **HINT)

    assert names(told) == ["run_resumed", "run_cancelled"]
    assert told[-1][1].state == "REVOKED"
    as_kept(app, told)


def test_a_run_whose_attempts_die(app: Celery, told: Told, redis_client: redis.Redis, store: Store) -> None:
    def dies(self: Any) -> None:
        self.ctx.run("charge", die)

    def die() -> None:
        raise KeyboardInterrupt

    task, task_id = task_of(app, dies, max_recoveries=0), new_id()
    with pytest.raises(KeyboardInterrupt):
        execute(task, task_id=task_id)
    told.clear()

    execute(task, task_id=task_id, **AGAIN)

    assert names(told) == ["run_resumed", "run_parked", "run_failed"]
    assert told[-2][1] == told[-1][1]
    assert RecoveryLimitExceeded.__name__ in told[-1][1].error
    as_kept(app, told)


def test_a_failed_run_that_is_retried_and_succeeds(app: Celery, told: Told) -> None:
    answers = [TerminalError("no"), None]

    def answer() -> None:
        if (said := answers.pop(0)) is not None:
            raise said

    def asks(self: Any) -> None:
        self.ctx.run("ask", answer)

    task, task_id = task_of(app, asks), new_id()
    execute(task, task_id=task_id)
    execute(task, task_id=task_id)

    assert names(told)[2:] == ["run_failed", "run_resumed", "step_succeeded ask", "run_succeeded"]


def test_code_that_does_not_fit_stalls_the_run(app: Celery, told: Told, due: Any) -> None:
    def goes_elsewhere(self: Any) -> None:
        self.ctx.run("ship", lambda: 1)

    task_id = new_id()
    execute(task_of(app, sleeps), task_id=task_id)
    told.clear()
    other = task_of(app, goes_elsewhere)
    other.name = "shop.sleeps"
    for _ in range(2):
        due(task_id)
        execute(other, task_id=task_id, **HINT)

    assert names(told) == ["run_resumed", "run_stalled"] * 2
    assert (told[-1][1].state, told[-1][1].waits_for) == ("STALLED", "code that fits")
    as_kept(app, told)


def test_an_attempt_that_another_one_has_taken_over_from(
    app: Celery, told: Told, redis_client: redis.Redis, store: Store
) -> None:
    task_id = new_id()

    def charges(self: Any) -> None:
        self.ctx.run("charge", take_over if not attempts else lambda: 1)

    def take_over() -> None:
        attempts.append(1)
        lapse(redis_client, store, task_id)
        other = threading.Thread(target=lambda: execute(task, task_id=task_id, **AGAIN))
        other.start()
        other.join()

    attempts: list[int] = []
    task = task_of(app, charges)
    execute(task, task_id=task_id)

    assert names(told) == [
        "run_started", "run_resumed", "step_succeeded charge", "run_succeeded", "attempt_fenced",
    ]  # fmt: skip
    assert [run.attempts[0].number for _, run, _ in told] == [1, 2, 2, 2, 1]


def test_a_run_without_steps(app: Celery, told: Told) -> None:
    def draws(self: Any) -> None:
        self.ctx.uuid()

    execute(task_of(app, draws), task_id=new_id())

    assert names(told) == ["run_started", "run_succeeded"]


def test_an_outcome_that_no_journal_has_is_not_told(app: Celery, told: Told, redis_client: redis.Redis) -> None:
    def loses(self: Any) -> None:
        self.ctx.run("charge", lambda: 1)
        redis_client.delete(store_of(app).keys(self.request.id).run)

    execute(task_of(app, loses), task_id=new_id())

    assert names(told) == ["run_started", "step_succeeded charge"]


# -- by the main process of a worker -----------------------------------------------------------------------------------


def test_a_sleeper_that_is_revoked_is_told_of_once(app: Celery, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id, revocations = new_id(), Revocations(app, Mock(hostname="w1"))
    execute(task_of(app, sleeps), task_id=task_id)
    told.clear()
    monkeypatch.setattr(worker_state, "revoked", {task_id})

    for _ in range(3):
        revocations.end_revoked_runs()

    assert names(told) == ["run_cancelled"]
    assert told[0][1] == Runs(app).get(task_id)


@pytest.mark.parametrize("status", [Status.FAILED, Status.REVOKED])
def test_who_ends_a_run_from_outside_tells_its_whole_record(app: Celery, told: Told, status: str) -> None:
    task_id = new_id()
    execute(task_of(app, sleeps), task_id=task_id)
    told.clear()
    store_of(app).runs.terminate(task_id, status, 60, '{"error":{"type":"TimeLimitExceeded","message":"5"}}')

    news.ended(app, task_id, status)

    assert names(told) == ["run_failed" if status == Status.FAILED else "run_cancelled"]
    assert told[0][1] == Runs(app).get(task_id)
    assert told[0][1].error == f"{TimeLimitExceeded.__name__}: 5"
    assert [step.name for step in told[0][1].steps] == ["charge", "sleep"]


def test_nobody_waits_long_for_a_journal_only_to_tell_of_it(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """The consumer of a worker does this, and has messages to take."""
    before = time.monotonic()
    with app_at(f"redis://127.0.0.1:{free_port()}") as app:
        news.ended(app, "the-run", Status.FAILED)

    assert time.monotonic() - before < 10
    assert told == []
    assert "task the-run: nobody is told of its end" in caplog.text
