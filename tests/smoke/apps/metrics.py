"""Durable tasks that are counted, in a worker that serves what it has counted."""

import os
import signal

from celery import Celery

from celery_durable import DurableContext, RunOptions, TerminalError, durable_task, prometheus
from tests.smoke import effects

app = Celery("metrics")

PORT_VARIABLE = "METRICS_PORT"
if port := os.environ.get(PORT_VARIABLE):
    prometheus.install(app=app, port=int(port))

OPTIONS = RunOptions(initial_retry_interval=0.02)


def fail_once() -> int:
    if effects.hit("fails") == 1:
        raise ConnectionError("the first execution fails")
    return 1


def die_once() -> int:
    if effects.hit("dies") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def decline() -> None:
    raise TerminalError("declined")


@durable_task
def eventful(ctx: DurableContext) -> int:
    """Three attempts: a step fails in the first one, the second one loses its process."""
    ctx.run("charge", int)
    ctx.run("fails once", fail_once, OPTIONS)
    ctx.run("dies once", die_once)
    try:
        ctx.run("decline", decline)
    except TerminalError:
        return ctx.attempt
    return 0


@durable_task
def failing(ctx: DurableContext) -> None:
    ctx.run("decline", decline)
