"""What a context lets user code do, and when it refuses."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery

from celery_durable import (
    AsyncDurableContext,
    ContextClosedError,
    ContextInStepError,
    DurableContext,
    RunOptions,
    TerminalError,
    current_step,
    durable_task,
)
from celery_durable.interrupts import EndRun, RetryStep
from tests.unit.conftest import VERBS, Action, Run

# -- what it says ------------------------------------------------------------------------------------------------------


def test_a_context_says_where_it_is(run: Run) -> None:
    ctx = run.attempt()
    assert (ctx.task_id, ctx.attempt, ctx.request) == ("task-1", 1, {"id": "task-1"})
    assert isinstance(ctx.logger, logging.Logger)
    assert repr(ctx) == "<DurableContext of shop.checkout[task-1], attempt 1>"
    assert run.async_attempt().attempt == 2


def test_a_context_knows_whether_it_is_replaying(run: Run) -> None:
    ctx = run.attempt()
    seen = [ctx.is_replaying]
    ctx.run("one", Action(1))
    ctx = run.attempt()
    seen.append(ctx.is_replaying)
    ctx.run("one", Action(1))
    seen.append(ctx.is_replaying)
    ctx.run("two", Action(2))
    seen.append(ctx.is_replaying)
    assert seen == [False, True, False, False]


def test_the_logger_is_silent_about_what_was_logged_before(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    def body(ctx: DurableContext) -> None:
        ctx.logger.warning("before")
        ctx.run("one", Action(1))
        ctx.logger.warning("after")

    body(run.attempt())
    body(run.attempt())
    assert [message for message in caplog.messages if message in ("before", "after")] == ["before", "after", "after"]


# -- inside a step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_no_verb_may_be_used_inside_a_step(run: Run, verb: str) -> None:
    ctx = run.attempt()
    seen: list[BaseException] = []

    def nested() -> None:
        try:
            VERBS[verb](ctx)
        except BaseException as error:
            seen.append(error)
            raise

    with pytest.raises(EndRun) as ended:
        ctx.run("outer", nested)
    assert type(seen[0]) is ContextInStepError
    assert ended.value.error is seen[0]
    for part in ("task task-1", "'outer'", "current_step()"):
        assert part in str(seen[0])
    assert run.names() == []


def test_the_error_is_raised_again_when_the_step_swallows_it(run: Run) -> None:
    ctx = run.attempt()

    def nested() -> str:
        with suppress(BaseException):
            ctx.uuid()
        return "fine"

    with pytest.raises(EndRun) as ended:
        ctx.run("outer", nested)
    assert type(ended.value.error) is ContextInStepError
    with pytest.raises(EndRun):
        ctx.run("next", Action(1))
    assert run.names() == []


def test_the_error_is_raised_again_when_the_step_fails_otherwise(run: Run) -> None:
    ctx = run.attempt()

    def nested() -> None:
        with suppress(BaseException):
            ctx.uuid()
        raise TerminalError("something else")

    with pytest.raises(EndRun) as ended:
        ctx.run("outer", nested, RunOptions(max_attempts=5))
    assert type(ended.value.error) is ContextInStepError


def test_the_context_is_refused_in_a_thread_of_a_step(run: Run) -> None:
    ctx = run.attempt()
    seen: list[BaseException] = []

    def in_thread() -> None:
        try:
            ctx.uuid()
        except ContextInStepError as error:
            seen.append(error)

    def spawn() -> None:
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()

    with pytest.raises(EndRun) as ended:
        ctx.run("spawn", spawn)
    assert [ended.value.error] == seen


def test_the_context_of_another_task_is_refused_too(run: Run) -> None:
    ctx, other = run.attempt(), Run("task-2").attempt()
    with pytest.raises(EndRun) as ended:
        ctx.run("outer", lambda: other.run("inner", Action(1)))
    assert type(ended.value.error) is ContextInStepError
    assert "task task-1" in str(ended.value.error)


def test_attributes_stay_readable_inside_a_step(run: Run) -> None:
    ctx = run.attempt()

    def read() -> list[Any]:
        ctx.logger.info("fine")
        return [ctx.task_id, ctx.attempt, ctx.is_replaying, ctx.request]

    assert ctx.run("read", read) == ["task-1", 1, False, {"id": "task-1"}]


def test_an_async_step_may_not_use_the_context_either(run: Run) -> None:
    async def body() -> None:
        ctx = run.async_attempt()

        async def nested() -> None:
            await asyncio.create_task(ctx.run("inner", Action(1)))

        await ctx.run("outer", nested)

    with pytest.raises(EndRun) as ended:
        asyncio.run(body())
    assert type(ended.value.error) is ContextInStepError


def test_a_sync_step_of_an_async_task_may_not_use_the_context_either(run: Run) -> None:
    async def body() -> None:
        ctx = run.async_attempt()
        await ctx.run("outer", ctx.uuid)

    with pytest.raises(EndRun) as ended:
        asyncio.run(body())
    assert type(ended.value.error) is ContextInStepError


def test_an_async_body_may_use_the_context_while_a_step_is_under_way(run: Run) -> None:
    async def body() -> list[Any]:
        ctx = run.async_attempt()

        async def slow() -> int:
            await asyncio.sleep(0)
            return 1

        first = asyncio.create_task(ctx.run("slow", slow))
        await asyncio.sleep(0)
        ctx.uuid()
        return [await ctx.run("quick", slow), await first]

    assert asyncio.run(body()) == [1, 1]


# -- after the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_context_is_of_no_use_after_its_attempt(run: Run, verb: str) -> None:
    ctx = run.attempt()
    run.end()
    with pytest.raises(ContextClosedError, match="task task-1: the context was used after its attempt had ended"):
        VERBS[verb](ctx)
    assert ctx.task_id == "task-1"


# -- context variables -------------------------------------------------------------------------------------------------

tenant = contextvars.ContextVar("tenant", default="nobody")


async def read_async() -> str:
    return tenant.get()


@pytest.mark.parametrize("action", [tenant.get, read_async], ids=["sync action", "async action"])
@pytest.mark.parametrize("kind", ["def task", "async def task"])
def test_context_variables_of_the_task_are_visible_inside_steps(run: Run, kind: str, action: Any) -> None:
    async def body() -> Any:
        tenant.set("acme")
        return await run.async_attempt().run("read", action)

    def sync_body() -> Any:
        tenant.set("acme")
        return run.attempt().run("read", action)

    fresh = contextvars.Context()
    seen = fresh.run(sync_body) if kind == "def task" else fresh.run(asyncio.run, body())
    assert seen == "acme"


def test_sync_steps_of_a_sync_task_run_in_the_calling_thread(run: Run) -> None:
    ctx = run.attempt()
    assert ctx.run("thread", threading.get_ident) == threading.get_ident()


def test_async_actions_of_a_sync_task_share_one_loop(run: Run) -> None:
    async def loop() -> int:
        return id(asyncio.get_running_loop())

    ctx = run.attempt()
    assert ctx.run("one", loop) == ctx.run("two", loop)


# -- steps side by side ------------------------------------------------------------------------------------------------


def test_steps_side_by_side_take_their_positions_in_program_order(run: Run) -> None:
    counts: list[str] = []

    async def work(name: str, turns: int) -> str:
        for _ in range(turns):
            await asyncio.sleep(0)
        counts.append(name)
        return name

    async def body() -> list[str]:
        ctx = run.async_attempt()
        steps = [ctx.run(name, work, name, turns) for name, turns in (("slow", 9), ("middle", 3), ("quick", 0))]
        return list(await asyncio.gather(*steps))

    assert asyncio.run(body()) == ["slow", "middle", "quick"]
    assert [run.entry(f"step:{n}")["name"] for n in (1, 2, 3)] == ["slow", "middle", "quick"]
    assert asyncio.run(body()) == ["slow", "middle", "quick"]
    assert sorted(counts) == ["middle", "quick", "slow"]


def test_each_of_several_steps_knows_itself(run: Run) -> None:
    async def who() -> str:
        await asyncio.sleep(0)
        return current_step().name

    async def body() -> list[str]:
        ctx = run.async_attempt()
        return list(await asyncio.gather(*[ctx.run(name, who) for name in "abc"]))

    assert asyncio.run(body()) == ["a", "b", "c"]


def test_an_async_step_is_retried_and_counted_like_a_sync_one(run: Run) -> None:
    action = Action(OSError("one"), "done")

    async def flaky() -> Any:
        return action()

    async def body() -> Any:
        return await run.async_attempt().run("flaky", flaky, RunOptions(initial_retry_interval=3, max_attempts=2))

    with pytest.raises(RetryStep) as retry:
        asyncio.run(body())
    assert retry.value.delay == 3
    assert asyncio.run(body()) == "done"
    assert action.executions == 2


# -- whole tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("app")
def test_a_context_kept_after_the_task_is_refused() -> None:
    kept: list[DurableContext] = []

    @durable_task
    def keep(ctx: DurableContext) -> None:
        kept.append(ctx)

    keep.apply()
    keep()
    for ctx in kept:
        with pytest.raises(ContextClosedError):
            ctx.uuid()


@pytest.mark.parametrize("wrapped", [False, True], ids=["def", "async def"])
def test_sending_a_durable_task_from_a_step_is_no_use_of_the_context(app: Celery, wrapped: bool) -> None:
    app.conf.task_always_eager = True
    sent = Action(5)

    @durable_task(name="eager.child")
    def child(ctx: DurableContext) -> Any:
        return ctx.run("child", sent)

    @durable_task(name="eager.parent")
    def parent(ctx: DurableContext) -> Any:
        return ctx.run("send", lambda: child.delay().get(disable_sync_subtasks=False))

    @durable_task(name="eager.async_parent")
    async def async_parent(ctx: AsyncDurableContext) -> Any:
        return await ctx.run("send", lambda: app.tasks[child.name].delay().get(disable_sync_subtasks=False))

    assert (async_parent if wrapped else parent).delay().result == 5
    assert sent.executions == 1
