"""Tasks of four steps, and what happens to their Redis while the second one runs."""

from collections.abc import Callable
from typing import Any

from celery_durable import AsyncDurableContext, DurableContext, durable_task

STEPS, STEPS_ASYNC = "four.steps", "four.steps_async"

executed: list[int] = []
"""The steps whose actions have run; empty before each test."""
amid: list[Callable[[], Any]] = []
"""What happens once while the second step runs; empty before each test."""


def act(number: int) -> int:
    executed.append(number)
    if number == 2 and amid:
        amid.pop()()
    return number * 10


@durable_task(name=STEPS)
def steps(ctx: DurableContext) -> list[int]:
    return [ctx.run("act", act, number) for number in range(1, 5)]


@durable_task(name=STEPS_ASYNC)
async def steps_async(ctx: AsyncDurableContext) -> list[int]:
    return [await ctx.run("act", act, number) for number in range(1, 5)]
