"""What a context lets user code do, and when it refuses; its values are the same on every attempt."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_durable import (
    AsyncDurableContext,
    ContextClosedError,
    ContextInStepError,
    DurableContext,
    RunOptions,
    TerminalError,
    current_step,
)
from celery_durable.interrupts import EndRun, FailAttempt, RetryStep
from tests.unit.conftest import Action, Run

# -- deterministic helpers ---------------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[DurableContext], Any]] = {
    "uuid": lambda ctx: ctx.uuid(),
    "time": lambda ctx: ctx.time(),
    "now": lambda ctx: ctx.now(),
    "random": lambda ctx: ctx.random().random(),
    "named random": lambda ctx: ctx.random("stream").getrandbits(64),
    "step": lambda ctx: ctx.run("step", random.random),
}
programs = st.lists(st.sampled_from(sorted(VERBS)), max_size=20)


def values(ctx: DurableContext, program: list[str]) -> list[tuple[str, Any]]:
    return [(verb, VERBS[verb](ctx)) for verb in program]


@given(programs, st.integers(2, 4))
def test_every_value_is_the_same_on_every_attempt(program: list[str], attempts: int) -> None:
    run = Run()
    first = values(run.attempt(), program)
    for _ in range(attempts - 1):
        assert values(run.attempt(), program) == first


@given(programs, programs, st.sampled_from(sorted(set(VERBS) - {"step"})))
def test_calls_of_one_kind_may_come_and_go_without_changing_the_others(
    before: list[str], after: list[str], kind: str
) -> None:
    run = Run()
    first = values(run.attempt(), [*before, kind, kind, *after])
    without = values(run.attempt(), [verb for verb in [*before, *after] if verb != kind])
    assert without == [pair for pair in first if pair[0] != kind]
    run.reach_the_end()


@given(programs)
def test_what_is_drawn_before_a_step_starts_outlives_the_process(program: list[str]) -> None:
    run = Run()
    ctx = run.attempt()
    first = values(ctx, program)
    with pytest.raises(KeyboardInterrupt):
        ctx.run("killed", Action(KeyboardInterrupt()))
    run.die()
    assert values(run.attempt(), program) == first


def test_a_uuid_is_of_version_four_and_no_two_are_equal(run: Run) -> None:
    ctx = run.attempt()
    drawn = [ctx.uuid() for _ in range(100)]
    assert len(set(drawn)) == 100
    assert {(one.version, one.variant) for one in drawn} == {(4, "specified in RFC 4122")}


def test_each_uuid_is_shown_in_the_journal(run: Run) -> None:
    ctx = run.attempt()
    drawn = [str(ctx.uuid()), str(ctx.uuid())]
    run.end()
    assert [run.journal.fields[f"uuid:{n}".encode()].decode() for n in (1, 2)] == drawn


def test_other_runs_draw_other_values() -> None:
    drawn = [(ctx.uuid(), ctx.random().random()) for ctx in (Run().attempt(), Run().attempt())]
    assert len({*drawn[0], *drawn[1]}) == 4


def test_random_is_one_generator_and_each_name_another(run: Run) -> None:
    ctx = run.attempt()
    assert isinstance(ctx.random(), random.Random)
    assert ctx.random() is ctx.random()
    assert ctx.random("a") is ctx.random("a")
    assert len({ctx.random().random(), ctx.random("a").random(), ctx.random("b").random()}) == 3


def test_time_is_in_milliseconds_and_now_is_aware(run: Run) -> None:
    ctx = run.attempt()
    before = time.time_ns() // 1_000_000
    reading, now = ctx.time(), ctx.now()
    assert type(reading) is int
    assert before <= reading <= time.time_ns() // 1_000_000
    assert now.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - now) < timedelta(minutes=1)


def test_a_reading_of_the_clock_is_sent_before_an_action_starts(run: Run) -> None:
    ctx = run.attempt()
    reading, now, uuid = ctx.time(), ctx.now(), ctx.uuid()
    assert run.names("time") == run.names("uuid") == []
    seen: list[Any] = []
    ctx.run("look", lambda: seen.append({kind: run.names(kind) for kind in ("time", "now", "uuid")}))
    assert seen == [{"time": ["time:1"], "now": ["now:1"], "uuid": ["uuid:1"]}]
    run.die()
    ctx = run.attempt()
    assert (ctx.time(), ctx.now(), ctx.uuid()) == (reading, now, uuid)


def test_what_is_drawn_last_is_written_when_the_attempt_ends(run: Run) -> None:
    reading = run.attempt().time()
    assert run.attempt().time() == reading


def test_an_async_context_draws_the_same_values(run: Run) -> None:
    ctx = run.attempt()
    drawn = (ctx.uuid(), ctx.random().random(), ctx.random("a").random(), ctx.time(), ctx.now())

    async def body(ctx: AsyncDurableContext) -> tuple[Any, ...]:
        return ctx.uuid(), ctx.random().random(), ctx.random("a").random(), await ctx.time(), await ctx.now()

    assert asyncio.run(body(run.async_attempt())) == drawn


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


# -- after an interrupt, and after the end -----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_swallowed_interrupt_is_raised_again_by_the_next_verb(run: Run, verb: str) -> None:
    ctx = run.attempt()
    with pytest.raises(RetryStep) as first:
        ctx.run("flaky", Action(OSError()), RunOptions(max_attempts=3))
    with pytest.raises(RetryStep) as again:
        VERBS[verb](ctx)
    assert again.value is first.value


@pytest.mark.parametrize("options", [(), (RunOptions(max_attempts=3),)], ids=["no options", "retry options"])
def test_no_except_exception_can_swallow_an_interrupt(run: Run, options: Any) -> None:
    ctx = run.attempt()
    with pytest.raises((RetryStep, FailAttempt)), suppress(Exception):
        ctx.run("flaky", Action(OSError()), *options)


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


def test_steps_side_by_side_take_their_places_in_program_order(run: Run) -> None:
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
