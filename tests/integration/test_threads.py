"""Threads of steps, and the journal: what waits while another attempt takes over, and what comes back late."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from celery_durable import AsyncDurableContext, DurableContext, RunOptions
from celery_durable.app.store import store_of
from celery_durable.drivers.threads import hanging
from tests.integration.runs import app_at, durable_task_of, execute, lapse, new_id, opened, state
from tests.processes import PROJECT
from tests.servers import RedisServer
from tests.waiting import eventually

ONE_THREAD = {"durable_step_threads": 1, "durable_lease": 1}


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with app_at(redis_url, **ONE_THREAD) as app:
        app.set_current()
        yield app


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Actions wait for it; open after the test."""
    gate = threading.Event()
    yield gate
    gate.set()
    eventually(lambda: not hanging(), what="the end of the threads that hang")


class Executing(threading.Thread):
    """An execution of a task, as in a worker's process."""

    def __init__(self, task: Any, *args: Any, task_id: str) -> None:
        super().__init__(daemon=True)
        self._call = lambda: execute(task, *args, task_id=task_id)
        self.state: Any = None
        self.start()

    def run(self) -> None:
        self.state = self._call()

    def ended(self) -> Any:
        """Return the state in which it has ended."""
        self.join(20)
        assert not self.is_alive()
        return self.state


def entry(client: redis.Redis, app: Celery, task_id: str) -> tuple[str, int, Any]:
    """State, executions and value of a run's first step."""
    found = json.loads(state(client, store_of(app), task_id)["fields"].get("step:1", '{"state":"","attempts":0}'))
    return found["state"], found["attempts"], found.get("value")


def holding(app: Celery, gate: threading.Event) -> Executing:
    """Another run, whose action has the only thread until the gate opens."""
    begun = threading.Event()

    def hold() -> None:
        begun.set()
        assert gate.wait(30)

    async def body(ctx: AsyncDurableContext) -> None:
        await ctx.run("hold", hold)

    executing = Executing(durable_task_of(app, body), task_id=new_id())
    assert begun.wait(20)
    return executing


def test_what_waits_for_a_thread_while_another_attempt_takes_over_never_starts(
    app: Celery, redis_client: redis.Redis, gate: threading.Event
) -> None:
    other = holding(app, gate)
    attempts, started = [], []

    async def body(ctx: AsyncDurableContext) -> None:
        attempts.append(ctx._attempt)  # noqa: SLF001
        await ctx.run("step", lambda: started.append(1), RunOptions(max_attempts=1))

    task_id = new_id()
    executing = Executing(durable_task_of(app, body), task_id=task_id)
    eventually(lambda: attempts)
    lapse(redis_client, store_of(app), task_id)
    opened(store_of(app), task_id, fresh=False, **_as_opened(redis_client, app, task_id))
    eventually(lambda: attempts[0].pulse.is_out_of_touch, what="a lease in doubt")
    gate.set()

    assert executing.ended() == "IGNORED"
    assert other.ended() == "SUCCESS"
    assert not started
    # Nor was it said to have started, which would spend the only execution that it has.
    assert entry(redis_client, app, task_id) == ("", 0, None)


def _as_opened(client: redis.Redis, app: Celery, task_id: str) -> dict[str, Any]:
    fields = state(client, store_of(app), task_id)["fields"]
    return {name: fields[name] for name in ("task", "fingerprint", "call")}


def test_an_action_that_hangs_keeps_no_question_to_the_journal_waiting(app: Celery, gate: threading.Event) -> None:
    other = holding(app, gate)

    async def one() -> int:
        return 1

    async def body(ctx: AsyncDurableContext) -> int:
        ctx._attempt.pulse.heard_at -= 10  # noqa: SLF001  so that Redis is asked before the action starts
        return await ctx.run("step", one)

    assert Executing(durable_task_of(app, body), task_id=new_id()).ended() == "SUCCESS"
    assert other.is_alive()


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_a_given_up_action_returns_is_recorded_unless_an_attempt_has_begun(
    app: Celery, redis_client: redis.Redis, gate: threading.Event, kind: str
) -> None:
    executed: list[int] = []

    def act() -> str:
        executed.append(1)
        assert gate.wait(30)
        return "late"

    options = RunOptions(timeout=0.5, initial_retry_interval=30, max_retry_interval=30)

    def body(ctx: DurableContext) -> str:
        return ctx.run("held", act, options)

    async def body_async(ctx: AsyncDurableContext) -> str:
        return await ctx.run("held", act, options)

    bodies: dict[str, Callable[..., Any]] = {"def": body, "async def": body_async}
    task, in_time, too_late = durable_task_of(app, bodies[kind]), new_id(), new_id()
    for task_id in (in_time, too_late):
        assert Executing(task, task_id=task_id).ended() == "RETRY"
        assert entry(redis_client, app, task_id) == ("retrying", 1, None)
    redis_client.hset(store_of(app).keys(too_late).run, "due", 0)
    opened(store_of(app), too_late, fresh=False, **_as_opened(redis_client, app, too_late))
    gate.set()

    eventually(lambda: not hanging())
    eventually(lambda: entry(redis_client, app, in_time) == ("done", 1, "late"))
    assert entry(redis_client, app, too_late) == ("retrying", 1, None)
    assert len(executed) == 2
    redis_client.hset(store_of(app).keys(in_time).run, "due", 0)
    assert Executing(task, task_id=in_time).ended() == "SUCCESS"
    assert len(executed) == 2


def test_the_abort_of_an_attempt_gives_up_the_actions_that_run_in_threads(
    app: Celery, redis_client: redis.Redis, gate: threading.Event
) -> None:
    """It counts as an execution, the slot is free, and the thread is replaced."""
    executed: list[int] = []

    def act() -> int:
        executed.append(1)
        assert len(executed) > 1 or gate.wait(30)
        return len(executed)

    async def body(ctx: AsyncDurableContext) -> int:
        return await ctx.run("silent", act, RunOptions(initial_retry_interval=0.01, max_attempts=5))

    task = durable_task_of(app, body, inactivity_timeout=0.5, abort_timeout=0.1)
    task_id = new_id()
    assert Executing(task, task_id=task_id).ended() == "RETRY"
    assert entry(redis_client, app, task_id) == ("retrying", 1, None)
    redis_client.hset(store_of(app).keys(task_id).run, "due", 0)
    assert Executing(task, task_id=task_id).ended() == "SUCCESS"
    assert entry(redis_client, app, task_id) == ("done", 2, 2)
    assert hanging() == 1


def test_a_step_that_waits_for_a_thread_is_reported_and_not_aborted(
    app: Celery, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    other = holding(app, gate)

    async def body(ctx: AsyncDurableContext) -> int:
        return await ctx.run("patient", lambda: 1)

    executing = Executing(durable_task_of(app, body, inactivity_timeout=0.5, abort_timeout=0.1), task_id=new_id())
    eventually(lambda: "it waits for a thread, and all are taken (durable_step_threads=1)" in caplog.text)
    begun = time.monotonic()
    eventually(lambda: time.monotonic() - begun > 1.5)  # several times as long as it may be silent
    gate.set()
    assert executing.ended() == "SUCCESS"
    assert other.ended() == "SUCCESS"


class Slow:
    """A serializer that waits until somebody else on the loop has gone on."""

    def __init__(self) -> None:
        self.others_go_on = threading.Event()

    def serialize(self, value: Any) -> bytes:
        assert self.others_go_on.wait(20)
        return json.dumps(value).encode()

    def deserialize(self, raw: bytes) -> Any:
        assert self.others_go_on.wait(20)
        return json.loads(raw)


async def text_of(size: int) -> str:
    """Return a text; the action of a step that needs no thread."""
    return "x" * size


def test_others_on_the_loop_go_on_while_something_large_is_encoded_and_read(
    app: Celery, redis_client: redis.Redis
) -> None:
    slow, turns = Slow(), []

    async def go_on() -> None:
        await asyncio.sleep(0.05)  # so that the step has begun: it ends in its first turns
        turns.append(1)
        slow.others_go_on.set()

    async def body(ctx: AsyncDurableContext) -> int:
        slow.others_go_on.clear()
        step = ctx.run("large", text_of, RunOptions(serializer=slow), 10**6)
        text, _ = await asyncio.gather(step, go_on())
        if ctx.attempt == 1:
            raise ValueError("once more, from the journal")
        return len(text)

    task = durable_task_of(app, body)
    task_id = new_id()
    assert Executing(task, task_id=task_id).ended() == "RETRY"
    redis_client.hset(store_of(app).keys(task_id).run, "due", 0)
    assert Executing(task, task_id=task_id).ended() == "SUCCESS"
    assert turns == [1, 1]


def test_others_on_the_loop_go_on_while_redis_does_not_take_something_large() -> None:
    """A socket takes as much at once as fits into its buffers. Small writes of siblings come behind it, in order."""
    turns: list[int] = []
    with RedisServer() as server, app_at(server.url()) as app, server.client() as client:

        async def one(ctx: AsyncDurableContext) -> int:
            begun = asyncio.create_task(ctx.run("large", text_of, 31 * 2**20))
            while not ctx._attempt.outbox.keeps_back:  # noqa: ASYNC110, SLF001
                await asyncio.sleep(0)
            for _ in range(100):
                await asyncio.sleep(0.001)
                turns.append(1)
            small = asyncio.create_task(ctx.run("small", text_of, RunOptions(max_attempts=3), 3))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not begun.done()
            server.thaw()
            return len(await begun) + len(await small)

        async def body(ctx: AsyncDurableContext) -> int:
            server.freeze()
            return await one(ctx)

        task_id = new_id()
        assert Executing(durable_task_of(app, body), task_id=task_id).ended() == "SUCCESS"
        fields = state(client, store_of(app), task_id)["fields"]
        entries = [json.loads(text) for name, text in sorted(fields.items()) if name.startswith("step:")]
    assert len(turns) == 100
    assert sorted((each["name"], each["state"], len(each["value"])) for each in entries) == [
        ("large", "done", 31 * 2**20), ("small", "done", 3)
    ]  # fmt: skip


UNDER_START_WORKER = """
import asyncio, os, threading
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery_durable import RetriesExhausted, RunOptions, durable_task

app = Celery("tests", broker="memory://", backend="cache+memory://")
app.conf.durable_redis_url = os.environ["REDIS_URL"]
OPTIONS = RunOptions(timeout=0.1, max_attempts=2, initial_retry_interval=0.01)

async def hang_async():
    await asyncio.get_running_loop().create_future()

@durable_task
def hangs(ctx, kind):
    ctx.run("hang", {"def": threading.Event().wait, "async def": hang_async}[kind], OPTIONS)

with start_worker(app, pool="solo", perform_ping_check=False):
    for kind in ("def", "async def"):
        try:
            hangs.delay(kind).get(timeout=20)
        except RetriesExhausted as error:
            print(kind, error.attempts, error.last_error_type)
"""


def test_a_timeout_is_kept_by_a_worker_whose_pool_is_not_in_the_main_thread(redis_url: str) -> None:
    """As Celery's `celery_worker` fixture starts it; in a process of its own, whose logging it sets up."""
    program = [sys.executable, "-c", UNDER_START_WORKER]
    env = {**os.environ, "REDIS_URL": redis_url}
    ended = subprocess.run(program, cwd=PROJECT, env=env, timeout=60, check=True, stdout=subprocess.PIPE, text=True)
    said = [line for line in ended.stdout.splitlines() if "DurableTimeoutError" in line]
    assert said == ["def 2 DurableTimeoutError", "async def 2 DurableTimeoutError"]
