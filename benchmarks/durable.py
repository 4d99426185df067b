"""An app with durable tasks, as `celery -A benchmarks.durable worker` loads it."""

import json
import os
import time
from os import environ
from pathlib import Path

from celery import Celery

from benchmarks.apps import configure
from benchmarks.charge import charge
from celery_durable import DurableContext, durable_task


@durable_task(name="benchmarks.stepless")
def stepless(ctx: DurableContext, number: int) -> int:  # noqa: ARG001 - to leave it alone is the point
    """A durable task without steps."""
    return number


@durable_task(name="benchmarks.steps")
def steps(ctx: DurableContext, count: int) -> int:
    """A durable task with *count* steps."""
    for number in range(count):
        ctx.run("charge", charge, number)
    return count


@durable_task(name="benchmarks.held")
def held(ctx: DurableContext, witness: str) -> None:
    """A step that notes who begins it and when, and that lasts in the first attempt until its worker is killed."""
    ctx.run("hold", hold, Path(witness))


def hold(witness: Path) -> None:
    """Write a line; wait if it is the first one."""
    with witness.open("a") as lines:
        lines.write(json.dumps([os.getpid(), time.monotonic()]) + "\n")
    if len(witness.read_text().splitlines()) == 1:
        time.sleep(600)


def make(url: str, queue: str) -> Celery:
    """The app, every task of which has a durable context."""
    app = configure(Celery("durable", task_cls="celery_durable:DurableTask", set_as_current=False), url, queue)

    @app.task(shared=False, name="benchmarks.nothing")
    def nothing(number: int) -> int:
        return number

    app.finalize()
    return app


if "BENCHMARK_URL" in environ:
    app = make(environ["BENCHMARK_URL"], environ["BENCHMARK_QUEUE"])
