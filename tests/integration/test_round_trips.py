"""How often an attempt waits for Redis: counted at its sockets, not timed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from celery_durable import AsyncDurableContext, DurableContext, RetryPolicy, RunOptions, TerminalError, durable_task
from celery_durable.app.store import store_of
from celery_durable.journal.entries import done_entry
from tests.integration.network import Waits
from tests.integration.runs import app_at, delivery, execute, executions, new_id, opened, task_of
from tests.waiting import eventually

OPEN, END = 1, 1
AT_ONCE = RetryPolicy(max_attempts=1)

UNLIMITED = {
    "no options": None,
    "an interval": RunOptions(initial_retry_interval=1),
    "jitter": RunOptions(jitter=True),
    "non_retryable": RunOptions(non_retryable=(ValueError,)),
}
LIMITED = {
    "two attempts": RunOptions(max_attempts=2),
    "five attempts": RunOptions(max_attempts=5),
    "a minute": RunOptions(max_duration=60),
}
OPTIONS = UNLIMITED | LIMITED


def act() -> str:
    return "x" * 100


async def act_async() -> str:
    return "x" * 100


bodies: list[Callable[[Any], Any]] = []
"""What the tasks do; a function cannot be sent as an argument."""


@durable_task(name="round_trips.steps", task_retry_policy=AT_ONCE)
def steps(ctx: DurableContext, count: int) -> None:
    for _ in range(count):
        bodies[-1](ctx)


@durable_task(name="round_trips.steps_async", task_retry_policy=AT_ONCE)
async def steps_async(ctx: AsyncDurableContext, count: int) -> None:
    for _ in range(count):
        if (awaitable := bodies[-1](ctx)) is not None:
            await awaitable


def repeat(app: Celery, name: str, count: int, body: Callable[[Any], Any], task_id: str = "") -> str:
    """Execute a task that does something so many times; return its state."""
    bodies.append(body)
    return execute(app.tasks[name], count, task_id=task_id or new_id())


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits().install(monkeypatch)


@pytest.fixture
def app(waits: Waits, redis_url: str, redis_client: redis.Redis) -> Iterator[Celery]:
    """An app that has connected, with the scripts loaded: what a worker's process does once."""
    redis_client.config_resetstat()
    with app_at(redis_url) as app:
        repeat(app, steps.name, 0, act)
        assert waits.count > OPEN + END
        yield app


def run(ctx: Any, options: RunOptions | None, action: Callable[[], Any]) -> Any:
    return ctx.run("step", action) if options is None else ctx.run("step", action, options)


@pytest.mark.parametrize("name", [steps.name, steps_async.name])
@pytest.mark.parametrize("action", [act, act_async])
class TestOfOneStep:
    """What one recorded step costs, in `def` and `async def` tasks."""

    @pytest.mark.parametrize("options", OPTIONS)
    def test_a_recorded_step_waits_once(self, app: Celery, waits: Waits, name: str, action: Any, options: str) -> None:
        with waits.counted(OPEN + 5 + END):
            state = repeat(app, name, 5, lambda ctx: run(ctx, OPTIONS[options], action))

        assert state == "SUCCESS"

    def test_a_step_that_may_start_once_only_waits_twice(
        self, app: Celery, waits: Waits, name: str, action: Any
    ) -> None:
        options = RunOptions(max_attempts=1)

        with waits.counted(OPEN + 5 * 2 + END):
            state = repeat(app, name, 5, lambda ctx: run(ctx, options, action))

        assert state == "SUCCESS"


@pytest.mark.parametrize("name", [steps.name, steps_async.name])
def test_what_is_drawn_waits_for_nothing(app: Celery, waits: Waits, name: str) -> None:
    draws: list[Callable[[Any], Any]] = [
        lambda ctx: ctx.time(),
        lambda ctx: ctx.now(),
        lambda ctx: ctx.uuid() and None,
        lambda ctx: ctx.random().random() and None,
        lambda ctx: ctx.random("name").random() and None,
    ]
    for draw in draws:
        with waits.counted(OPEN + END):
            assert repeat(app, name, 100, draw) == "SUCCESS"


def test_what_is_drawn_between_steps_waits_for_nothing(app: Celery, waits: Waits) -> None:
    def body(ctx: DurableContext) -> None:
        ctx.time(), ctx.uuid(), ctx.now()
        ctx.run("step", act)

    with waits.counted(OPEN + 5 + END):
        assert repeat(app, steps.name, 5, body) == "SUCCESS"


@pytest.mark.parametrize("name", [steps.name, steps_async.name])
def test_a_task_without_steps_waits_for_its_opening_and_its_end(app: Celery, waits: Waits, name: str) -> None:
    with waits.counted(OPEN + END):
        assert repeat(app, name, 0, act) == "SUCCESS"


def test_a_task_of_the_base_class_that_leaves_its_context_alone_sends_nothing(
    app: Celery, waits: Waits, redis_client: redis.Redis
) -> None:
    def plain(self: Any) -> str:
        return "plain"

    task = task_of(app, plain)
    before, keys = redis_client.info("stats")["total_commands_processed"], redis_client.dbsize()

    with waits.counted(0):
        assert execute(task, task_id=new_id()) == "SUCCESS"

    ours = 2  # INFO and DBSIZE
    assert redis_client.info("stats")["total_commands_processed"] - before == ours
    assert redis_client.dbsize() == keys


@pytest.mark.parametrize("entries", [0, 1, 1_000])
def test_opening_waits_once_however_many_entries_there_are(
    app: Celery, waits: Waits, redis_client: redis.Redis, entries: int
) -> None:
    store, task_id = store_of(app), new_id()
    journal = opened(store, task_id)
    recorded = {f"step:{n}": done_entry("step", 1, 1, 1, {}, '"value"') for n in range(1, entries + 1)}
    journal.suspend(0, recorded)
    journal.close()

    with waits.counted(OPEN):
        verdict = store.journal(task_id).open(delivery(task_id, fresh=False))

    assert sum(name.startswith(b"step:") for name in verdict.fields) == entries


def test_replayed_steps_wait_for_nothing(app: Celery, waits: Waits) -> None:
    attempts = []

    def body(ctx: DurableContext) -> None:
        for _ in range(1_000):
            ctx.run("step", act)
        attempts.append(waits.count)
        if len(attempts) == 1:
            raise ConnectionError

    task_id = new_id()
    with waits.counted(OPEN + 1_000 + END):
        assert repeat(app, steps.name, 1, body, task_id) == "FAILURE"

    # When the run failed is asked first: before the message came, or after.
    with waits.counted(2 * OPEN + END):
        assert repeat(app, steps.name, 1, body, task_id) == "SUCCESS"


def declined() -> None:
    raise TerminalError("declined")


def away() -> None:
    raise ConnectionError("away")


@pytest.mark.parametrize(
    ("action", "options", "state", "expected"),
    [
        (away, None, "FAILURE", END),
        (away, RunOptions(max_attempts=3, initial_retry_interval=60), "RETRY", END),
        (declined, None, "FAILURE", 1 + END),
        (away, RunOptions(non_retryable=(ConnectionError,)), "FAILURE", 1 + END),
    ],
    ids=["policy of the task", "policy of the step", "terminal", "not retryable"],
)
@pytest.mark.parametrize("name", [steps.name, steps_async.name])
def test_a_failure_waits_for_its_record_if_it_has_one_and_for_the_end(
    app: Celery, waits: Waits, name: str, action: Any, options: Any, state: str, expected: int
) -> None:
    with waits.counted(OPEN + expected):
        assert repeat(app, name, 1, lambda ctx: run(ctx, options, action)) == state


@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_with_limits_sends_one_command_more(app: Celery, redis_client: redis.Redis, options: str) -> None:
    pending = 1  # the delivery of the run before, which nobody has waited for
    begin_and_end = 2
    eventually(lambda: executions(redis_client, "evalsha") == begin_and_end + pending)

    repeat(app, steps.name, 5, lambda ctx: run(ctx, OPTIONS[options], act))

    of_steps = 5 * (2 if options in LIMITED else 1)
    eventually(lambda: executions(redis_client, "evalsha") == 2 * (begin_and_end + pending) + of_steps)
