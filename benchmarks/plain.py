"""A plain Celery app, as `celery -A benchmarks.plain worker` loads it: celery_durable is not imported."""

from os import environ
from typing import Any

from celery import Celery

from benchmarks.apps import configure
from benchmarks.charge import charge


def make(url: str, queue: str) -> Celery:
    """The app with its tasks."""
    app = configure(Celery("plain", set_as_current=False), url, queue)

    @app.task(shared=False, name="benchmarks.nothing")
    def nothing(number: int) -> int:
        return number

    @app.task(shared=False, name="benchmarks.link")
    def link(number: int) -> dict[str, Any]:
        return charge(number)

    return app


if "BENCHMARK_URL" in environ:
    app = make(environ["BENCHMARK_URL"], environ["BENCHMARK_QUEUE"])
