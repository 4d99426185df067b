"""An app with durable tasks, as `celery -A benchmarks.durable worker` loads it."""

from os import environ

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
