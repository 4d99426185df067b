"""Strikes at any moment, and executions that end while they are being given up: the journal stays right."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from pydantic import BaseModel, field_validator

from celery_durable import DurableContext, DurableTimeoutError, RetryPolicy, RunOptions
from celery_durable.app.store import store_of
from celery_durable.drivers.pulse import Overrun, Pulse
from celery_durable.drivers.watchdog import watchdog
from celery_durable.ending.orphan import OrphanedAttempt
from celery_durable.invocation.current import invocation_of
from celery_durable.user_code import in_user_code
from tests.alarms import alarms
from tests.integration.runs import app_at, durable_task_of, execute, new_id, state
from tests.waiting import eventually

STRIKES = 400


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with app_at(redis_url) as app:
        app.set_current()
        yield app


def entries(client: redis.Redis, app: Celery, task_id: str) -> list[tuple[str, str, int, Any]]:
    """Name, state, executions and value of each step, in program order."""
    fields = state(client, store_of(app), task_id)["fields"]
    positions = sorted(int(name[5:]) for name in fields if name.startswith("step:"))
    found = [json.loads(fields[f"step:{position}"]) for position in positions]
    return [(entry["name"], entry["state"], entry["attempts"], entry.get("value")) for entry in found]


class Blow:
    """A strike at whatever action of an attempt runs when it arrives."""

    def __init__(self, pulse: Pulse, landed: list["Blow"]) -> None:
        self._landed = landed
        self.overrun = Overrun(pulse, DurableTimeoutError("a blow"))

    def arrives(self) -> bool:
        arrives = bool(self.overrun.pulse.running)
        if arrives:
            self._landed.append(self)
        return arrives


def test_strikes_at_any_moment_hit_actions_only(app: Celery, redis_client: redis.Redis) -> None:
    """Each one that lands costs exactly one execution; between actions, amid reads and writes, none does."""
    starts: Counter[int] = Counter()
    sent, landed = 0, list[Blow]()
    dice = random.Random(3)

    def act(number: int) -> int:
        starts[number] += 1
        for _ in range(1000):
            number += 1
        return number - 1000

    def body(ctx: DurableContext) -> int:
        def strike(frame: Any) -> None:
            nonlocal sent
            sent += 1
            blow = Blow(ctx._attempt.pulse, landed)  # noqa: SLF001
            if in_user_code(frame) and blow.arrives():
                raise blow.overrun

        options = RunOptions(initial_retry_interval=0.00001, max_retry_interval=0.00001)
        number = 0
        # A timer hits any line of this thread; a thread would hit those where this one waits.
        with alarms((dice.uniform(0.0001, 0.001) for _ in count()), strike):
            while len(landed) < STRIKES:
                number += 1
                assert ctx.run(f"step {number}", act, options, number) == number
        return number

    task = durable_task_of(app, body, inline_retry_limit=1)
    task_id = new_id()
    assert execute(task, task_id=task_id) == "SUCCESS"

    recorded = entries(redis_client, app, task_id)
    assert sent > 2 * len(landed)
    numbers = range(1, len(recorded) + 1)
    assert [(name, state, value) for name, state, _, value in recorded] == [
        (f"step {number}", "done", number) for number in numbers
    ]
    executions = [attempts for _, _, attempts, _ in recorded]
    assert sum(executions) == len(recorded) + len(landed)
    # One that is struck before its first line has begun for the journal only.
    assert all(starts[number] <= times for number, times in zip(numbers, executions, strict=True))


@pytest.mark.parametrize(
    ("options", "limits", "given_up"),
    [({"timeout": 0.02}, {}, "RETRY"), ({}, {"inactivity_timeout": 0.01, "abort_timeout": 0.01}, "IGNORED")],
    ids=["by its timeout", "by the abort of its attempt"],
)
def test_an_execution_that_ends_while_it_is_given_up_is_recorded_all_the_same(
    app: Celery,
    redis_client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    limits: dict[str, Any],
    given_up: str,
) -> None:
    """In a thread, where nothing can be struck: in time or late, the value counts, and there is one verdict."""
    dice = random.Random(5)
    ends: Counter[tuple[Any, str]] = Counter()
    begun: list[str] = []

    def body(ctx: DurableContext, seconds: float) -> str:
        def work() -> str:
            begun.append(ctx.task_id)
            time.sleep(seconds)
            return "worked"

        return ctx.run("work", work, RunOptions(initial_retry_interval=50, **options))

    def is_hit_elsewhere(task_id: str) -> bool:
        """Tell whether the limit was over outside of the action, as it may be on a busy machine."""
        outside = f"task {task_id}: no progress for 0.02 s (inactivity_timeout and abort_timeout), and its code"
        return task_id not in begun or outside in caplog.text

    task = durable_task_of(app, body, **limits)
    for seconds in [0, 0.1] * 5 + [dice.uniform(0.015, 0.025) for _ in range(60)]:
        task_id = new_id()
        with ThreadPoolExecutor(1) as thread:
            ended = thread.submit(execute, task, seconds, task_id=task_id).result()
        if is_hit_elsewhere(task_id):
            continue
        recorded = [("work", "done", 1, "worked")]
        eventually(lambda: entries(redis_client, app, task_id) == recorded)  # noqa: B023
        after = state(redis_client, store_of(app), task_id)
        ends[ended, after["fields"]["status"]] += 1
        assert (after["due"] is None) == (ended == "SUCCESS")
    assert set(ends) == {("SUCCESS", "succeeded"), (given_up, "suspended")}


def test_an_execution_that_has_ended_is_not_given_up(app: Celery, redis_client: redis.Redis) -> None:
    steps: list[Any] = []

    def body(ctx: DurableContext) -> str:
        attempt = ctx._attempt  # noqa: SLF001
        ctx.run("first", lambda: steps.extend(attempt.pulse.running))
        late = Overrun(attempt.pulse, DurableTimeoutError("too late"), *steps)
        invocation = invocation_of(task)
        assert invocation.session is not None
        OrphanedAttempt(invocation, invocation.session)._fail_step(late)  # noqa: SLF001
        return ctx.run("second", lambda: "done")

    task = durable_task_of(app, body)
    task_id = new_id()
    assert execute(task, task_id=task_id) == "SUCCESS"
    assert [entry[:3] for entry in entries(redis_client, app, task_id)] == [("first", "done", 1), ("second", "done", 1)]


def test_a_late_record_forgives_the_failure_that_was_counted(app: Celery, redis_client: redis.Redis) -> None:
    gate = threading.Event()

    def body(ctx: DurableContext) -> None:
        ctx.run("before", lambda: 1)
        ctx.run("held", gate.wait, RunOptions(timeout=0.5), 30)

    task = durable_task_of(app, body, task_retry_policy=RetryPolicy(initial_retry_interval=30))
    task_id = new_id()
    run = threading.Thread(target=execute, args=[task], kwargs={"task_id": task_id})
    run.start()

    def failures() -> str | None:
        return state(redis_client, store_of(app), task_id)["fields"].get("failures")

    eventually(lambda: failures() == "1")
    assert entries(redis_client, app, task_id)[1][:3] == ("held", "retrying", 1)
    gate.set()
    run.join()
    eventually(lambda: failures() == "0")
    assert entries(redis_client, app, task_id)[1][:3] == ("held", "done", 1)


def test_what_goes_wrong_with_an_abandoned_step_is_told_and_its_run_goes_on(
    app: Celery, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake in an option, say, that Celery does not look at before a task fails."""
    gate = threading.Event()

    def body(ctx: DurableContext) -> None:
        ctx.run("held", gate.wait, 30)

    limits = {"inactivity_timeout": 0.5, "abort_timeout": 0.1}
    task = durable_task_of(app, body, task_retry_policy=RetryPolicy(max_attempts=1), throws=("no class",), **limits)
    task_id = new_id()
    run = threading.Thread(target=execute, args=[task], kwargs={"task_id": task_id})
    run.start()
    eventually(lambda: "the failure of its step 'held' could not be carried out" in caplog.text)
    store = store_of(app)
    before = state(redis_client, store, task_id)["lease"]
    gate.set()
    run.join()

    assert "isinstance() arg 2 must be a type" in caplog.text
    after = state(redis_client, store, task_id)
    assert (after["fields"]["status"], after["lease"]) == ("running", before)


def test_an_attempt_that_has_ended_is_watched_no_more(app: Celery) -> None:
    seen: list[int] = []

    def body(ctx: DurableContext, fails: bool) -> None:
        seen.append(len(watchdog._watches))  # noqa: SLF001
        ctx.run("step", lambda: 1 // (not fails))

    task = durable_task_of(app, body)
    before = len(watchdog._watches)  # noqa: SLF001
    for fails in (False, True):
        execute(task, fails, task_id=new_id())
        task(False)
    assert seen == [before + 1] * 4
    assert len(watchdog._watches) == before  # noqa: SLF001


class Careful(BaseModel):
    """An argument; a time limit strikes while it is validated, before the body has begun."""

    way: str

    @field_validator("way")
    @classmethod
    def be_struck(cls, way: str) -> str:
        if way == "amid its cleanup":
            try:
                raise SoftTimeLimitExceeded  # noqa: TRY301
            except SoftTimeLimitExceeded:
                # What threading.Thread.start() does with a lock or a key that it has given back by then.
                return {}[way]
        raise SoftTimeLimitExceeded


@pytest.mark.parametrize("way", ["at once", "amid its cleanup"])
def test_a_soft_time_limit_before_the_body_begins_is_a_failed_attempt_and_no_misfit(app: Celery, way: str) -> None:
    def body(ctx: DurableContext, careful: Careful) -> None: ...

    task = durable_task_of(app, body)
    assert execute(task, {"way": way}, task_id=new_id()) == "RETRY"


class StruckOnce:
    """A serializer that a soft time limit strikes in the midst of its first use."""

    def __init__(self) -> None:
        self.struck = False

    def serialize(self, obj: int) -> bytes:
        if not self.struck:
            self.struck = True
            raise SoftTimeLimitExceeded
        return str(obj).encode()

    def deserialize(self, data: bytes) -> int:
        return int(data)


def test_a_soft_time_limit_that_strikes_while_a_value_is_encoded_comes_after_its_record(app: Celery) -> None:
    executions: list[int] = []
    serializer = StruckOnce()

    def act() -> int:
        executions.append(1)
        return 5

    def body(ctx: DurableContext) -> int:
        return ctx.run("act", act, RunOptions(serializer=serializer))

    task, task_id = durable_task_of(app, body), new_id()

    assert [execute(task, task_id=task_id) for _ in range(2)] == ["RETRY", "SUCCESS"]
    assert len(executions) == 1
