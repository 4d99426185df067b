"""A task that fails more often than not, and tells when it is at work."""

import random
import time

from celery import Celery, current_task

from celery_durable import DurableContext, TerminalError, durable_task
from tests.smoke import effects

app = Celery("families")


@durable_task(max_recoveries=100)
def work(ctx: DurableContext, family: str) -> None:
    """Take three steps and a short sleep, and fail somewhere, perhaps."""
    attempt = f"{family} {current_task.request.id} {time.monotonic()}"
    for number in range(3):
        ctx.run(f"step{number}", act, attempt)
        if number == 1:
            ctx.sleep(random.uniform(0, 0.1), "nap")
        if random.random() < 0.3:
            raise TerminalError("unlucky")


def act(attempt: str) -> None:
    effects.hit("work", attempt)
    time.sleep(random.uniform(0, 0.03))
    effects.hit("work", attempt)
