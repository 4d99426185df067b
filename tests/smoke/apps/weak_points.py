"""Tasks that meet what Restate is weak at, one group per finding (F1 to F19)."""

import asyncio
from contextlib import suppress
from typing import Any

from celery import Celery

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    RetriesExhausted,
    RetryableError,
    RetryPolicy,
    RunOptions,
    TerminalError,
    current_step,
    durable_task,
)
from tests.smoke import effects
from tests.smoke.actions import die

app = Celery("weak_points")
app.conf.durable_task_retry_policy = RetryPolicy(initial_retry_interval=0.02)


def always_fail(name: str) -> None:
    effects.hit(name, current_step().task_id)
    raise ConnectionError(f"{name} fails")


def fail_once(name: str) -> str:
    if effects.hit(name, current_step().task_id) == 1:
        raise ConnectionError(f"{name} fails")
    return name


# -- F1 ----------------------------------------------------------------------------------------------------------------


@durable_task
def alias_of_max_duration(ctx: DurableContext) -> int:
    # The first wait ends within the limit, the second one would not.
    options = RunOptions(max_retry_duration=5, initial_retry_interval=0.02, retry_interval_factor=1000)
    try:
        ctx.run("flaky", always_fail, options, "flaky")
    except RetriesExhausted as error:
        return error.attempts
    return 0


@durable_task
def both_names(ctx: DurableContext, max_duration: float, max_retry_duration: float) -> str:
    options = RunOptions(max_duration=max_duration, max_retry_duration=max_retry_duration)
    return ctx.run("flaky", fail_once, options, "flaky")


# -- F2, F3, F4 --------------------------------------------------------------------------------------------------------


@durable_task
async def failing_among_growing_siblings(ctx: AsyncDurableContext) -> list[Any]:
    """In every attempt another sibling of the failing step is new, and recorded."""
    options = RunOptions(max_attempts=3, initial_retry_interval=0.02)
    siblings = [f"sibling {number}" for number in range(1, ctx.attempt + 1)]
    outcomes = await asyncio.gather(
        ctx.run("flaky", always_fail, options, "flaky"),
        *(ctx.run(name, effects.hit, name, ctx.task_id) for name in siblings),
        return_exceptions=True,
    )
    return [outcomes[0].attempts, len(siblings)]


@durable_task
def failing_between_recorded_steps(ctx: DurableContext) -> list[Any]:
    """Each attempt draws something new that the journal keeps, before the step and after it."""
    for _ in range(ctx.attempt):
        ctx.uuid()
        ctx.time()
    options = RunOptions(max_attempts=3, initial_retry_interval=0.02)
    ctx.run("before", effects.hit, "before", ctx.task_id)
    try:
        ctx.run("flaky", always_fail, options, "flaky")
    except RetriesExhausted as error:
        return [error.attempts]
    return []


@durable_task
def held_while_failing(ctx: DurableContext) -> int:
    """Its third execution waits at a gate."""

    def flaky() -> None:
        if effects.hit("flaky", ctx.task_id) == 3:
            effects.block("third")
        raise ConnectionError("fails")

    try:
        ctx.run("flaky", flaky, RunOptions(max_attempts=4, initial_retry_interval=0.02))
    except RetriesExhausted as error:
        return error.attempts
    return 0


@durable_task
def dying_inside(ctx: DurableContext) -> int:
    """Two of four executions die with their process."""

    def flaky() -> None:
        if effects.hit("flaky", ctx.task_id) in (2, 3):
            die()
        raise ConnectionError("fails")

    try:
        ctx.run("flaky", flaky, RunOptions(max_attempts=4, initial_retry_interval=0.02))
    except RetriesExhausted as error:
        return error.attempts
    return 0


@durable_task
def dying_outside(ctx: DurableContext) -> int:
    """Two attempts die before the step is reached: they are no executions of it."""
    if effects.hit("attempt", ctx.task_id) in (2, 3):
        die()
    try:
        ctx.run("flaky", always_fail, RunOptions(max_attempts=4, initial_retry_interval=0.02), "flaky")
    except RetriesExhausted as error:
        return error.attempts
    return 0


# -- F8, F9 ------------------------------------------------------------------------------------------------------------


@durable_task(task_retry_policy=RetryPolicy(initial_retry_interval=0.02, max_attempts=3))
def five_steps_that_fail_once_each(ctx: DurableContext) -> list[str]:
    return [ctx.run(f"step {number}", fail_once, f"step {number}") for number in range(5)]


@durable_task(task_retry_policy=RetryPolicy(initial_retry_interval=0.02, max_attempts=3))
def no_progress(ctx: DurableContext) -> None:
    ctx.run("before", effects.hit, "before", ctx.task_id)
    ctx.run("hopeless", always_fail, "hopeless")


@durable_task(task_retry_policy=RetryPolicy(initial_retry_interval=0.3, max_attempts=2))
def step_policy_beside_task_policy(ctx: DurableContext) -> str:
    """Six executions by the step's policy, of which the task's policy knows nothing: it still has its own two."""
    with suppress(RetriesExhausted):
        ctx.run("flaky", always_fail, RunOptions(max_attempts=6, initial_retry_interval=0.02), "flaky")
    if effects.hit("body", ctx.task_id) == 1:
        raise ConnectionError("the body fails once")
    return "done"


@durable_task(task_retry_policy=RetryPolicy(initial_retry_interval=0.02, max_attempts=2))
def only_an_interval(ctx: DurableContext) -> str:
    """A step policy without limits goes on as long as it takes, whatever the task's policy says."""

    def flaky() -> str:
        if effects.hit("flaky", ctx.task_id) <= 5:
            raise ConnectionError("not yet")
        return "at last"

    return ctx.run("flaky", flaky, RunOptions(initial_retry_interval=0.02, retry_interval_factor=1))


@durable_task(task_retry_policy=RetryPolicy(initial_retry_interval=0.02, max_attempts=2))
def no_step_policy(ctx: DurableContext) -> None:
    ctx.run("flaky", always_fail, RunOptions(jitter=True), "flaky")


# -- F10 ---------------------------------------------------------------------------------------------------------------


@durable_task
def nested_step(ctx: DurableContext) -> None:
    effects.hit("attempt", ctx.task_id)
    ctx.run("outer", lambda: ctx.run("inner", effects.hit, "inner"))


@durable_task
async def uuid_in_a_step(ctx: AsyncDurableContext) -> None:
    effects.hit("attempt", ctx.task_id)
    await ctx.run("outer", lambda: str(ctx.uuid()))


# -- F12, F13 ----------------------------------------------------------------------------------------------------------


def double(number: int) -> int:
    return 2 * number


async def double_later(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


@durable_task
def positional_arguments(ctx: DurableContext) -> list[int]:
    return [
        ctx.run_typed("plain", double, 5),
        ctx.run_typed("with options", double, RunOptions(max_attempts=2), 5),
        ctx.run_typed("by keyword", double, number=5),
    ]


@durable_task
def lambdas_that_return_coroutines(ctx: DurableContext) -> list[int]:
    return [ctx.run("first", lambda: double_later(5)), ctx.run("second", lambda: double_later(6))]


@durable_task
async def lambdas_that_return_coroutines_async(ctx: AsyncDurableContext) -> list[int]:
    return [await ctx.run("first", lambda: double_later(5)), await ctx.run("second", lambda: double_later(6))]


# -- F14 ---------------------------------------------------------------------------------------------------------------


class Alarm(BaseException):
    """No `Exception`, as `gevent.Timeout` is none."""


@durable_task
def base_exception(ctx: DurableContext) -> str:
    def alarmed() -> str:
        if effects.hit("alarmed", ctx.task_id) <= 2:
            raise Alarm("too late")
        return "in time"

    return ctx.run("alarmed", alarmed, RunOptions(max_attempts=5, initial_retry_interval=0.02))


@durable_task
async def base_exception_async(ctx: AsyncDurableContext) -> str:
    async def alarmed() -> str:
        if effects.hit("alarmed", ctx.task_id) <= 2:
            raise Alarm("too late")
        return "in time"

    return await ctx.run("alarmed", alarmed, RunOptions(max_attempts=5, initial_retry_interval=0.02))


@durable_task
def base_exception_for_good(ctx: DurableContext) -> str:
    def alarmed() -> None:
        effects.hit("alarmed", ctx.task_id)
        raise Alarm("too late")

    try:
        ctx.run("alarmed", alarmed, RunOptions(max_attempts=2, initial_retry_interval=0.02))
    except RetriesExhausted as error:
        return error.last_error_type
    return ""


@durable_task
def odd_status_code(ctx: DurableContext) -> None:
    def refuse() -> None:
        effects.hit("refuse", ctx.task_id)
        raise TerminalError("odd", 70000)

    ctx.run("refuse", refuse)


@durable_task
def wrong_options(ctx: DurableContext, options: dict[str, Any]) -> None:
    ctx.run("step", effects.hit, RunOptions(**options), "step")


# -- F15 ---------------------------------------------------------------------------------------------------------------


@durable_task
def retryable_error(ctx: DurableContext, retry_after: float | None) -> int:
    def throttled() -> int:
        execution = effects.hit("throttled", ctx.task_id)
        if execution <= 3:
            raise RetryableError("slow down", 429, retry_after)
        return execution

    options = RunOptions(initial_retry_interval=0.2, retry_interval_factor=3, max_retry_interval=0.7)
    return ctx.run("throttled", throttled, options)


# -- F17 ---------------------------------------------------------------------------------------------------------------


class OutOfStock(TerminalError):
    def __init__(self, message: str = "", status_code: int = 409, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(message, status_code, metadata)


@durable_task
def terminal_subclass(ctx: DurableContext) -> list[Any]:
    def reserve() -> None:
        effects.hit("reserve", ctx.task_id)
        raise OutOfStock("no chairs left", metadata={"chairs": 0})

    try:
        ctx.run("reserve", reserve)
    except OutOfStock as error:
        caught = [type(error).__name__, str(error), error.status_code, error.metadata]
    except TerminalError:
        caught = ["only the base class"]
    else:
        caught = []
    effects.hit("caught", caught)
    if ctx.attempt == 1:
        raise OSError("once more")
    return caught


@durable_task
def facts_of_the_last_error(ctx: DurableContext) -> list[str]:
    def charge() -> None:
        effects.hit("charge", ctx.task_id)
        raise PermissionError("card refused")

    try:
        ctx.run("charge", charge, RunOptions(max_attempts=2, initial_retry_interval=0.02))
    except RetriesExhausted as error:
        facts = [error.last_error_type, error.last_error_message, error.last_error_traceback]
        effects.hit("facts", facts)
        if effects.count("facts") == 1:
            raise OSError("once more") from error
        return facts
    return []


# -- F18, F19 ----------------------------------------------------------------------------------------------------------


@durable_task(max_entry_size=1000)
def too_large(ctx: DurableContext) -> None:
    def report() -> str:
        effects.hit("report", ctx.task_id)
        return "x" * 2000

    ctx.run("report", report)


@durable_task
def other_path(ctx: DurableContext) -> None:
    """The second attempt asks for another step than the first one recorded."""
    effects.hit("attempt", ctx.task_id)
    ctx.run("reserve" if ctx.attempt == 1 else "charge", effects.hit, "step", ctx.task_id)
    if ctx.attempt == 1:
        raise OSError("another attempt, please")
    effects.hit("after")
    ctx.run("ship", effects.hit, "ship")


@durable_task
def shorter_path(ctx: DurableContext) -> str:
    """The second attempt ends before it has come to what the first one recorded."""
    if effects.hit("attempt", ctx.task_id) == 1:
        ctx.run("reserve", effects.hit, "step", ctx.task_id)
        raise OSError("another attempt, please")
    return "nothing was reserved"
