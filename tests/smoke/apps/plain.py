"""An app without anything durable, for the tests of the nodes themselves."""

import os

from celery import Celery, Task

from tests.smoke import effects

app = Celery("plain")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def held(self: Task) -> int:
    """Wait at the gate "held"; return the process that got through."""
    effects.hit("held", self.request.id)
    effects.block("held")
    return os.getpid()
