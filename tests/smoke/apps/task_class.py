"""An app all of whose tasks are durable, and do not know it: `Celery(task_cls=...)`."""

from typing import Any

from celery import Celery

from celery_durable import RunOptions
from tests.smoke import effects

app = Celery("task_class", task_cls="celery_durable:DurableTask")


@app.task
def plain(x: int) -> int:
    return x + 1


@app.task(bind=True, autoretry_for=(OSError,), max_retries=2, default_retry_delay=0)
def plain_retried(self: Any) -> int:
    if effects.hit("plain", self.request.id) <= 2:
        raise OSError("down")
    return self.request.retries


@app.task(bind=True)
def plain_paging(self: Any, page: int) -> list[Any]:
    if page < 2:
        raise self.retry(args=(page + 1,), countdown=0)
    return [page, self.request.headers]


@app.task
def plain_failing() -> None:
    raise OSError("for good")


@app.task(bind=True)
def durable(self: Any) -> int:
    def charge() -> int:
        execution = effects.hit("charge", self.request.id)
        if execution <= 2:
            raise OSError("down")
        return execution

    self.ctx.run("reserve", effects.hit, "reserve", self.request.id)
    return self.ctx.run("charge", charge, RunOptions(max_attempts=4, initial_retry_interval=0.02))
