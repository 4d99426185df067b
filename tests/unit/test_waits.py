"""`ctx.sleep`: what it records, what a later attempt makes of that, and whose turn it is among several waits."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest
from celery import states
from hypothesis import given
from hypothesis import strategies as st

from celery_durable import (
    AsyncDurableContext,
    ContextClosedError,
    ContextInStepError,
    DurableContext,
    InvalidStepError,
    JournalMismatchError,
    RunOptions,
    TaskCancelled,
    TerminalError,
    durable_task,
)
from celery_durable.durations import Duration
from celery_durable.interrupts import EndRun, FailAttempt, RetryStep, Sleep
from tests.unit.conftest import Action, Run

TEN_YEARS = timedelta(days=3653)
HOUR = 3600

Body = Callable[[DurableContext], Any]


def sleeping(ctx: DurableContext | AsyncDurableContext, *args: Any) -> None:
    """Sleep in a task of either kind."""
    slept = ctx.sleep(*args)
    if slept is not None:
        asyncio.run(_awaited(slept))


async def _awaited(one: Awaitable[Any]) -> Any:
    return await one


@pytest.fixture(params=["def task", "async def task"])
def begin(request: pytest.FixtureRequest, run: Run) -> Callable[..., Any]:
    """Begin an attempt of a task of either kind."""
    return run.attempt if request.param == "def task" else run.async_attempt


def asleep(run: Run, body: Callable[[], Any]) -> int:
    """End an attempt by a sleep; return the time at which that is over."""
    with pytest.raises(Sleep) as raised:
        body()
    run.end()
    return raised.value.until


# -- what is recorded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duration", [60, 60.0, timedelta(minutes=1)], ids=repr)
def test_a_sleep_records_when_it_is_over(run: Run, begin: Any, duration: Duration) -> None:
    before = time.time() * 1000
    until = asleep(run, lambda: sleeping(begin(), duration))

    assert before + 60_000 - 1 <= until <= time.time() * 1000 + 60_000 + 1
    expected = {"name": "sleep", "kind": "sleep", "state": "sleeping", "attempts": 0, "until": until}
    assert run.entry("step:1") == expected


def test_a_name_is_recorded(run: Run, begin: Any) -> None:
    asleep(run, lambda: sleeping(begin(), 60, "cooling off"))
    assert run.entry("step:1")["name"] == "cooling off"


@given(st.floats(min_value=0.001, max_value=TEN_YEARS.total_seconds()))
def test_the_recorded_time_is_the_duration_after_the_clock_of_redis(duration: float) -> None:
    """Which an attempt learns when it opens: here it is a day ahead of this machine's."""
    run = Run()
    before = time.time()
    until = asleep(run, lambda: run.attempt(later=86_400).sleep(duration))
    assert 0 <= until - round((before + 86_400 + duration) * 1000) + 2 <= (time.time() - before) * 1000 + 4


def test_a_sleep_takes_its_place_in_program_order(run: Run) -> None:
    def body(ctx: DurableContext) -> None:
        ctx.run("one", Action(1))
        ctx.sleep(HOUR)
        ctx.run("two", Action(2))

    asleep(run, lambda: body(run.attempt()))
    body(run.attempt(later=HOUR + 1))
    assert [run.entry(f"step:{n}")["state"] for n in (1, 2, 3)] == ["done", "sleeping", "done"]
    run.reach_the_end()


# -- later attempts ----------------------------------------------------------------------------------------------------


def test_a_sleep_that_is_over_is_passed(run: Run, begin: Any) -> None:
    asleep(run, lambda: sleeping(begin(), HOUR))
    recorded = dict(run.journal.fields)
    sleeping(begin(later=HOUR), HOUR)
    run.reach_the_end()
    run.end()
    assert run.journal.fields[b"step:1"] == recorded[b"step:1"]


def test_a_sleep_is_over_at_its_time_and_not_before(run: Run, begin: Any) -> None:
    until = asleep(run, lambda: sleeping(begin(), HOUR))
    for later in (0, 60, HOUR - 1):
        assert asleep(run, lambda later=later: sleeping(begin(later=later), HOUR)) == until
    sleeping(begin(later=HOUR), HOUR)


def test_the_first_duration_counts(run: Run, begin: Any) -> None:
    """A delay that is computed, from a clock say, may come out differently on a replay."""
    until = asleep(run, lambda: sleeping(begin(), HOUR))
    assert asleep(run, lambda: sleeping(begin(), 5)) == until
    sleeping(begin(later=HOUR), 2 * HOUR)


def test_a_sleep_is_recorded_once_however_often_it_is_interrupted(run: Run) -> None:
    first = Action(1)

    def body(ctx: DurableContext) -> None:
        ctx.run("first", first)
        ctx.sleep(HOUR)

    untils = {asleep(run, lambda: body(run.attempt(later=60))) for _ in range(3)}
    assert len(untils) == 1
    assert first.executions == 1


@given(st.lists(st.integers(0, 3), max_size=8))
def test_any_row_of_sleeps_and_steps_runs_each_step_once_and_waits_for_each_sleep(program: list[int]) -> None:
    """0 is a step, another number so many hours of sleep; each attempt begins when the wait of the last is over."""
    run = Run()
    steps = [Action(position) for position in range(len(program))]
    slept = 0.0
    attempts = 0

    def body(ctx: DurableContext) -> list[Any]:
        return [
            ctx.sleep(hours * HOUR) if hours else ctx.run("step", step)
            for hours, step in zip(program, steps, strict=True)
        ]

    while True:
        attempts += 1
        ctx = run.attempt(later=slept)
        try:
            body(ctx)
        except Sleep as sleep:
            slept = sleep.until / 1000 - time.time() + 0.01
        else:
            break
    run.reach_the_end()
    assert attempts == 1 + sum(hours > 0 for hours in program)
    assert slept == pytest.approx(HOUR * sum(program), abs=5)
    assert [step.executions for step in steps] == [int(not hours) for hours in program]


def test_a_context_replays_until_the_last_recorded_sleep_is_passed(run: Run) -> None:
    asleep(run, lambda: run.attempt().sleep(HOUR))
    ctx = run.attempt(later=HOUR)
    seen = [ctx.is_replaying]
    ctx.sleep(HOUR)
    seen.append(ctx.is_replaying)
    assert seen == [True, False]


def test_a_sleep_lost_with_its_process_begins_again(run: Run) -> None:
    with pytest.raises(Sleep):
        run.attempt().sleep(HOUR)
    run.die()
    assert run.names() == []
    until = asleep(run, lambda: run.attempt(later=60).sleep(HOUR))
    assert until / 1000 == pytest.approx(time.time() + HOUR + 60, abs=5)


# -- another path than the recorded one --------------------------------------------------------------------------------


def mismatch(run: Run, first: Body, then: Body) -> str:
    """End the run by another path than its journal's; return what is said of it."""
    with suppress(Sleep):
        first(run.attempt())
    run.end()
    recorded = dict(run.journal.fields)
    ctx = run.attempt(later=2 * HOUR)
    with pytest.raises(EndRun) as ended:
        then(ctx)
    assert type(ended.value.error) is JournalMismatchError
    run.end()
    kept = {field: text for field, text in recorded.items() if field.startswith(b"step:")}
    assert {field: run.journal.fields[field] for field in kept} == kept
    assert run.names() == sorted(field.decode() for field in kept)
    return str(ended.value.error)


def slept(ctx: DurableContext) -> None:
    ctx.sleep(HOUR, "pause")


def stepped(ctx: DurableContext) -> None:
    ctx.run("pause", Action(1))


def test_a_step_where_a_sleep_was_recorded_ends_the_run(run: Run) -> None:
    message = mismatch(run, slept, stepped)
    assert "recorded: sleep 'pause'" in message
    assert "asked for: step 'pause'" in message


def test_a_sleep_where_a_step_was_recorded_ends_the_run(run: Run) -> None:
    message = mismatch(run, stepped, slept)
    assert "recorded: step 'pause'" in message
    assert "asked for: sleep 'pause'" in message


def test_a_sleep_of_another_name_ends_the_run(run: Run) -> None:
    message = mismatch(run, slept, lambda ctx: ctx.sleep(HOUR, "rest"))
    assert "recorded: sleep 'pause'" in message
    assert "asked for: sleep 'rest'" in message


def test_a_recorded_sleep_that_the_task_does_not_reach_ends_the_run(run: Run) -> None:
    message = mismatch(run, slept, lambda ctx: run.reach_the_end())
    assert "position: 1" in message
    assert "recorded: sleep 'pause'" in message
    assert "asked for: the end of the task" in message


# -- durations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duration", [0, 0.0, timedelta(0)], ids=repr)
def test_a_sleep_of_no_time_is_recorded_and_passed(run: Run, begin: Any, duration: Duration) -> None:
    sleeping(ctx := begin(), duration)
    ctx.uuid()
    run.end()
    assert run.entry("step:1")["state"] == "sleeping"
    sleeping(begin(), duration)
    run.reach_the_end()


@pytest.mark.parametrize("duration", [TEN_YEARS, TEN_YEARS.total_seconds()], ids=repr)
def test_the_longest_sleep_is_of_ten_years(run: Run, begin: Any, duration: Duration) -> None:
    until = asleep(run, lambda: sleeping(begin(), duration))
    assert until / 1000 - time.time() == pytest.approx(TEN_YEARS.total_seconds(), abs=5)


BAD = [
    (-1, "must be 0 or more"),
    (-0.001, "must be 0 or more"),
    (timedelta(seconds=-1), "must be 0 or more"),
    (float("nan"), "must be 0 or more"),
    (float("inf"), "must be 0 or more"),
    ("60", "must be a timedelta or a number of seconds"),
    (True, "must be a timedelta or a number of seconds"),
    (None, "must be a timedelta or a number of seconds"),
    (Fraction(1, 2), "must be a timedelta or a number of seconds"),
    (TEN_YEARS + timedelta(seconds=1), "must be 10 years or less"),
    (10**400, "got"),
    (1e300, "must be 10 years or less"),
    (timedelta.max, "must be 10 years or less"),
    (60_000 * 365 * 86_400, "must be 10 years or less"),
]


@pytest.mark.parametrize(("duration", "reason"), BAD, ids=[repr(duration)[:50] for duration, _ in BAD])
def test_a_bad_duration_ends_the_run(run: Run, begin: Any, duration: Any, reason: str) -> None:
    with pytest.raises(EndRun) as ended:
        sleeping(begin(), duration)
    assert type(ended.value.error) is InvalidStepError
    for part in ("task task-1: the duration of ctx.sleep", reason, "got "):
        assert part in str(ended.value.error)
    assert run.names() == []


@pytest.mark.parametrize("name", [1, b"pause", ["pause"]], ids=repr)
def test_a_name_that_is_no_text_ends_the_run(run: Run, begin: Any, name: Any) -> None:
    with pytest.raises(EndRun) as ended:
        sleeping(begin(), 60, name)
    assert type(ended.value.error) is InvalidStepError
    assert f"the name of ctx.sleep must be a string, got {name!r}" in str(ended.value.error)
    assert run.names() == []


def test_what_is_recorded_before_a_bad_duration_is_kept(run: Run) -> None:
    ctx = run.attempt()
    ctx.run("one", Action(1))
    with pytest.raises(EndRun):
        ctx.sleep(-1)
    run.end()
    assert run.names() == ["step:1"]


# -- where one may not sleep -------------------------------------------------------------------------------------------


def test_nobody_sleeps_inside_a_step(run: Run) -> None:
    ctx = run.attempt()
    with pytest.raises(EndRun) as ended:
        ctx.run("outer", lambda: ctx.sleep(60))
    assert type(ended.value.error) is ContextInStepError
    assert run.names() == []


def test_nobody_sleeps_inside_an_async_step(run: Run) -> None:
    async def body() -> None:
        ctx = run.async_attempt()

        async def outer() -> None:
            await ctx.sleep(60)

        await ctx.run("outer", outer)

    with pytest.raises(EndRun) as ended:
        asyncio.run(body())
    assert type(ended.value.error) is ContextInStepError


def test_nobody_sleeps_after_the_attempt(run: Run, begin: Any) -> None:
    ctx = begin()
    run.end()
    with pytest.raises(ContextClosedError):
        sleeping(ctx, 60)


def test_no_except_exception_can_swallow_a_sleep(run: Run, begin: Any) -> None:
    with pytest.raises(Sleep), suppress(Exception):
        sleeping(begin(), 60)


def test_a_swallowed_sleep_is_raised_again_by_the_next_verb(run: Run) -> None:
    ctx = run.attempt()
    with pytest.raises(Sleep) as first:
        ctx.sleep(60)
    with pytest.raises(Sleep) as again:
        ctx.run("next", Action(1))
    assert again.value is first.value


# -- waits inside the worker -------------------------------------------------------------------------------------------


def test_a_short_sleep_may_happen_inside_the_worker(run: Run, begin: Any) -> None:
    began = time.monotonic()
    sleeping(begin(inline_retry_limit=0.2), 0.1)
    assert time.monotonic() - began >= 0.1
    assert run.entry("step:1")["state"] == "sleeping"


def test_what_is_left_of_a_sleep_may_happen_inside_the_worker(run: Run, begin: Any) -> None:
    asleep(run, lambda: sleeping(begin(inline_retry_limit=1), HOUR))
    began = time.monotonic()
    sleeping(begin(inline_retry_limit=1, later=HOUR - 0.1), HOUR)
    assert time.monotonic() - began < HOUR / 2


def test_a_sleep_beyond_the_limit_does_not_happen_inside_the_worker(run: Run, begin: Any) -> None:
    asleep(run, lambda: sleeping(begin(inline_retry_limit=0.2), 0.3))


def test_a_sleep_inside_the_worker_is_recorded_before_it_begins(run: Run) -> None:
    """Else it would begin again where the process dies in it."""
    seen: list[list[str]] = []

    async def body() -> None:
        ctx = run.async_attempt(inline_retry_limit=1)
        wait = asyncio.ensure_future(ctx.sleep(0.5))
        for _ in range(5):
            await asyncio.sleep(0)
        seen.append(run.names())
        assert not wait.done()
        await wait

    asyncio.run(asyncio.wait_for(body(), 10))
    assert seen == [["step:1"]]


def test_others_go_on_while_an_async_task_sleeps_inside_the_worker(run: Run) -> None:
    async def body() -> list[Any]:
        ctx = run.async_attempt(inline_retry_limit=1)
        return list(await asyncio.gather(ctx.sleep(0.05), ctx.run("step", Action(1)), ctx.sleep(0.05)))

    assert asyncio.run(body()) == [None, 1, None]


# -- eager mode and direct calls ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("app")
def test_an_eager_task_does_not_wait() -> None:
    @durable_task
    def body(ctx: DurableContext) -> list[Any]:
        return [ctx.sleep(HOUR), ctx.run("step", lambda: 1), ctx.sleep(TEN_YEARS, "long"), ctx.attempt]

    began = time.monotonic()
    result = body.apply()
    assert time.monotonic() - began < 10
    assert (result.state, result.result) == (states.SUCCESS, [None, 1, None, 1])


@pytest.mark.usefixtures("app")
def test_an_eager_async_task_does_not_wait() -> None:
    @durable_task
    async def body(ctx: AsyncDurableContext) -> list[Any]:
        return [*await asyncio.gather(ctx.sleep(HOUR), ctx.run("step", lambda: 1)), ctx.attempt]

    result = body.apply()
    assert (result.state, result.result) == (states.SUCCESS, [None, 1, 1])


@pytest.mark.usefixtures("app")
def test_an_eager_sleep_keeps_its_place_over_a_retry() -> None:
    flaky = Action(OSError("away"), 2)

    @durable_task
    def body(ctx: DurableContext) -> list[Any]:
        ctx.sleep(HOUR)
        return [ctx.run("flaky", flaky, RunOptions(max_attempts=2)), ctx.attempt]

    assert body.apply().result == [2, 2]


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("duration", [-1, "60", TEN_YEARS * 2], ids=repr)
def test_an_eager_task_refuses_a_bad_duration(duration: Any) -> None:
    entered = Action(1)

    @durable_task
    def body(ctx: DurableContext) -> None:
        entered()
        ctx.sleep(duration)

    result = body.apply()
    assert result.state == states.FAILURE
    assert type(result.result) is InvalidStepError
    assert entered.executions == 1


@pytest.mark.usefixtures("app")
def test_a_direct_call_really_waits() -> None:
    @durable_task
    def body(ctx: DurableContext) -> int:
        ctx.sleep(0.1)
        return ctx.attempt

    began = time.monotonic()
    assert body() == 1
    assert time.monotonic() - began >= 0.1


@pytest.mark.usefixtures("app")
def test_a_direct_call_of_an_async_task_really_waits_for_all_at_once() -> None:
    @durable_task
    async def body(ctx: AsyncDurableContext) -> int:
        await asyncio.gather(*(ctx.sleep(0.2) for _ in range(20)))
        return ctx.attempt

    began = time.monotonic()
    assert body() == 1
    assert 0.2 <= time.monotonic() - began < 20 * 0.2


@pytest.mark.usefixtures("app")
def test_a_direct_call_raises_for_a_bad_duration() -> None:
    @durable_task
    def body(ctx: DurableContext) -> None:
        ctx.sleep(-1)

    with pytest.raises(InvalidStepError, match="must be 0 or more seconds"):
        body()


# -- several at a time -------------------------------------------------------------------------------------------------


async def together(ctx: AsyncDurableContext, *waits: Any) -> None:
    await asyncio.gather(*(ctx.sleep(wait) if isinstance(wait, (int, float)) else wait for wait in waits))


def interrupted(run: Run, body: Callable[[AsyncDurableContext], Any], *, later: float = 0.0) -> Any:
    """Return what ends an attempt, when all that was in flight has come down; end it."""
    ctx = run.async_attempt(later=later)

    async def attempt() -> Any:
        with suppress(BaseException):
            await body(ctx)
        await run.last.siblings.wait_all()
        return run.last.pulse.interrupt

    interrupt = asyncio.run(attempt())
    run.end()
    return interrupt


@pytest.mark.parametrize("durations", [(60, HOUR), (HOUR, 60), (2 * HOUR, 60, HOUR)], ids=repr)
def test_the_first_of_several_sleeps_to_be_over_wakes_the_run(run: Run, durations: tuple[int, ...]) -> None:
    """Whichever stands first, all are recorded; the next attempt waits for the next of them."""

    def body(ctx: AsyncDurableContext) -> Any:
        return together(ctx, *durations)

    began = time.time()
    for later, expected in zip([0, *sorted(durations)], sorted(durations), strict=False):
        sleep = interrupted(run, body, later=later)
        assert sleep.until / 1000 - began == pytest.approx(expected, abs=5)
    assert interrupted(run, body, later=max(durations)) is None
    assert [run.entry(f"step:{n}")["state"] for n in range(1, len(durations) + 1)] == ["sleeping"] * len(durations)


async def slow_success() -> str:
    for _ in range(5):
        await asyncio.sleep(0)
    return "done"


def test_a_step_beside_a_sleep_is_recorded_before_the_run_is_suspended(run: Run) -> None:
    step = Action("done")

    async def slow() -> Any:
        await slow_success()
        return step()

    def body(ctx: AsyncDurableContext) -> Any:
        return together(ctx, HOUR, ctx.run("step", slow))

    assert isinstance(interrupted(run, body), Sleep)
    assert [run.entry(f"step:{n}")["state"] for n in (1, 2)] == ["done", "sleeping"]
    assert interrupted(run, body, later=HOUR) is None
    assert step.executions == 1


@pytest.mark.parametrize("sleeper_first", [True, False])
def test_what_goes_on_beside_a_sleep_goes_on_to_its_end(run: Run, sleeper_first: bool) -> None:
    steps = [Action(position) for position in range(4)]

    async def chores(ctx: AsyncDurableContext) -> list[Any]:
        return [await ctx.run("chore", step) for step in steps]

    def body(ctx: AsyncDurableContext) -> Any:
        waits = [ctx.sleep(HOUR), chores(ctx)]
        return asyncio.gather(*(waits if sleeper_first else waits[::-1]))

    assert isinstance(interrupted(run, body), Sleep)
    assert [step.executions for step in steps] == [1] * 4
    assert interrupted(run, body, later=HOUR) is None
    assert [step.executions for step in steps] == [1] * 4


def test_a_sleep_is_recorded_while_a_step_beside_it_is_running(run: Run) -> None:
    """Else it would begin again where the process dies in that step."""
    seen: list[list[str]] = []

    async def look() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        seen.append(run.names())

    def body(ctx: AsyncDurableContext) -> Any:
        return asyncio.gather(ctx.run("look", look), ctx.sleep(HOUR))

    interrupted(run, body)
    assert seen == [["step:2"]]


def test_a_sleep_that_is_over_before_the_step_beside_it_is_passed(run: Run) -> None:
    passed = asyncio.Event()

    async def wait_for_sleeper() -> str:
        await asyncio.wait_for(passed.wait(), 10)
        return "done"

    async def sleeper(ctx: AsyncDurableContext) -> None:
        await ctx.sleep(0.05)
        passed.set()

    async def body(ctx: AsyncDurableContext) -> Any:
        return await asyncio.gather(ctx.run("step", wait_for_sleeper), sleeper(ctx))

    assert asyncio.run(body(run.async_attempt())) == ["done", None]


@pytest.mark.parametrize("hours", [0, 1])
def test_a_sleep_may_be_given_up_for_a_step_that_was_quicker(run: Run, hours: int) -> None:
    """It keeps its place in the journal, and is not waited for, now or in a later attempt."""
    step = Action("done")

    async def body(ctx: AsyncDurableContext) -> Any:
        quick, slow = asyncio.ensure_future(ctx.run("quick", step)), asyncio.ensure_future(ctx.sleep(HOUR))
        await asyncio.wait({quick, slow}, return_when=asyncio.FIRST_COMPLETED)
        slow.cancel()
        with suppress(asyncio.CancelledError):
            await slow
        return [quick.result(), await ctx.run("next", step)]

    for _ in range(2):
        assert asyncio.run(body(run.async_attempt(later=hours * HOUR))) == ["done", "done"]
    assert step.executions == 2


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are of Python 3.11")
def test_a_sleep_in_a_task_group_lets_the_others_come_to_their_end(run: Run) -> None:
    steps = [Action(position) for position in range(3)]

    async def chores(ctx: AsyncDurableContext) -> None:
        for step in steps:
            await ctx.run("chore", step)

    async def body(ctx: AsyncDurableContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.sleep(HOUR))
            group.create_task(chores(ctx))

    assert isinstance(interrupted(run, body), Sleep)
    assert interrupted(run, body, later=HOUR) is None
    assert [step.executions for step in steps] == [1] * 3


def test_a_failing_sibling_does_not_wait_for_the_sleeper(run: Run) -> None:
    flaky = Action(OSError("away"), "done")

    def body(ctx: AsyncDurableContext) -> Any:
        return together(ctx, HOUR, ctx.run("flaky", flaky, RunOptions(initial_retry_interval=3)))

    failed = interrupted(run, body)
    assert isinstance(failed, RetryStep)
    assert failed.delay == 3
    assert isinstance(interrupted(run, body, later=3), Sleep)
    assert interrupted(run, body, later=HOUR) is None
    assert flaky.executions == 2


def test_a_sibling_that_fails_by_the_policy_of_the_task_does_not_wait_for_the_sleeper(run: Run) -> None:
    flaky = Action(OSError("away"), "done")

    async def fail_late() -> Any:
        await slow_success()
        return flaky()

    def body(ctx: AsyncDurableContext) -> Any:
        return together(ctx, HOUR, ctx.run("flaky", fail_late))

    assert isinstance(interrupted(run, body), FailAttempt)
    assert isinstance(interrupted(run, body, later=3), Sleep)
    assert flaky.executions == 2


def test_a_bad_duration_beside_a_sleep_ends_the_run(run: Run) -> None:
    async def body(ctx: AsyncDurableContext) -> None:
        first = asyncio.ensure_future(ctx.sleep(HOUR))
        await asyncio.sleep(0)
        with suppress(BaseException):
            await first
        await ctx.sleep(-1)

    # The sleep ends the attempt; the same mistake is met by the next one.
    assert isinstance(interrupted(run, body), Sleep)
    assert isinstance(interrupted(run, body, later=HOUR), EndRun)


def test_sleeps_and_steps_side_by_side_take_their_positions_in_program_order(run: Run) -> None:
    async def body(ctx: AsyncDurableContext) -> None:
        waits = [ctx.sleep(HOUR, "a"), ctx.run("b", slow_success), ctx.sleep(60, "c"), ctx.run("d", Action(1))]
        await asyncio.gather(*reversed(waits))

    interrupted(run, body)
    assert [run.entry(f"step:{n}")["name"] for n in (1, 2, 3, 4)] == ["a", "b", "c", "d"]


# -- cancelled ---------------------------------------------------------------------------------------------------------


def cancelled(run: Run, ctx: Any) -> Any:
    """Let the run be cancelled, as its attempt learns from Redis; return its context."""
    run.journal.cancel_requested = True
    return ctx


def test_a_sleep_that_has_not_begun_is_cancelled(run: Run, begin: Any) -> None:
    ctx = cancelled(run, begin())
    with pytest.raises(TaskCancelled) as raised:
        sleeping(ctx, 60, "pause")
    assert raised.value.status_code == 409
    run.end()
    entry = run.entry("step:1")
    assert (entry["name"], entry["state"]) == ("pause", "cancelled")
    assert run.journal.fields[b"cancel"] == b"raised"


def test_a_sleep_that_is_under_way_is_cancelled(run: Run, begin: Any) -> None:
    until = asleep(run, lambda: sleeping(begin(), HOUR))
    ctx = cancelled(run, begin())
    with pytest.raises(TaskCancelled):
        sleeping(ctx, HOUR)
    run.end()
    assert run.entry("step:1")["until"] == until


def test_a_sleep_that_is_over_is_not_cancelled_but_what_follows_is(run: Run) -> None:
    asleep(run, lambda: run.attempt().sleep(HOUR))
    ctx = cancelled(run, run.attempt(later=HOUR))
    ctx.sleep(HOUR)
    with pytest.raises(TaskCancelled, match="before 'next'"):
        ctx.run("next", Action(1))


def test_a_cancellation_is_raised_once_and_replayed_at_its_place(run: Run) -> None:
    refund, ship = Action("refunded"), Action("shipped")

    def body(ctx: DurableContext) -> list[Any]:
        try:
            ctx.sleep(HOUR)
            return [ctx.run("ship", ship)]
        except TerminalError as error:
            return [error.status_code, str(error), ctx.run("refund", refund), ctx.sleep(0)]

    first = body(cancelled(run, run.attempt()))
    assert first[0] == 409
    run.end()
    run.journal.cancel_requested = False
    for later in (0, 2 * HOUR):
        assert body(run.attempt(later=later)) == first
        run.reach_the_end()
    assert (refund.executions, ship.executions) == (1, 0)


def test_of_several_at_a_time_one_is_cancelled(run: Run) -> None:
    step = Action(1)

    async def body(ctx: AsyncDurableContext) -> list[Any]:
        return list(
            await asyncio.gather(ctx.sleep(0, "a"), ctx.run("b", step), ctx.run("c", step), return_exceptions=True)
        )

    outcomes = asyncio.run(body(cancelled(run, run.async_attempt())))
    assert [type(outcome) for outcome in outcomes] == [TaskCancelled, int, int]
    assert step.executions == 2
    run.end()
    run.journal.cancel_requested = False
    again = asyncio.run(body(run.async_attempt()))
    assert [type(outcome) for outcome in again] == [TaskCancelled, int, int]
    assert step.executions == 2
