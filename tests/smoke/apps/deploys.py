"""One app in two versions, as a rolling deploy has them side by side; `VERSION` says which one a worker has."""

import os
from datetime import timedelta

from celery import Celery

from celery_durable import DurableContext, RunOptions, TaskCancelled, current_step, durable_task
from tests.smoke.actions import count_execution

app = Celery("deploys")
app.conf.update(durable_lease=2)

AGAIN = RunOptions(initial_retry_interval=0.1, max_attempts=5)


def work() -> str:
    """Return which version has done it."""
    count_execution()
    return version()


def work_at_the_second_time() -> str:
    """Let the run go to another worker in between, perhaps."""
    if current_step().attempt == 1:
        raise ConnectionError
    return work()


def version() -> str:
    return os.environ.get("VERSION", "1")


if version() == "1":

    @durable_task(name="deploys.order")
    def order(ctx: DurableContext, seconds: float) -> list[str]:
        """Reserve, wait, charge."""
        done = [ctx.run("reserve", work)]
        ctx.sleep(timedelta(seconds=seconds))
        done.append(ctx.run("charge", work_at_the_second_time, AGAIN))
        return done

    @durable_task(name="deploys.renamed")
    def renamed(ctx: DurableContext, seconds: float) -> list[str]:
        """As it was; undone where it is cancelled."""
        done = [ctx.run("reserve", work)]
        try:
            ctx.sleep(timedelta(seconds=seconds))
            done.append(ctx.run("charge", work))
        except TaskCancelled:
            ctx.run("undo", work)
            raise
        return done

else:

    @durable_task(name="deploys.order")
    def order(ctx: DurableContext, seconds: float) -> list[str]:
        """The address is checked before the order is charged."""
        done = [ctx.run("reserve", work)]
        ctx.sleep(timedelta(seconds=seconds))
        done.append(ctx.run("check", work_at_the_second_time, AGAIN))
        done.append(ctx.run("charge", work_at_the_second_time, AGAIN))
        return done

    @durable_task(name="deploys.renamed")
    def renamed(ctx: DurableContext, seconds: float) -> list[str]:
        """A step that all runs have behind them has another name."""
        done = [ctx.run("reserve stock", work)]
        ctx.sleep(timedelta(seconds=seconds))
        done.append(ctx.run("charge", work))
        return done
