"""Durable tasks for those who watch them: every hook and every signal of the end of a task is counted."""

import os
from typing import Any

from celery import Celery, Task, signals

from celery_durable import DurableContext, RunOptions, TerminalError, current_step, durable_task
from tests.smoke import effects
from tests.smoke.actions import held, named, work

app = Celery("monitors")
app.conf.task_track_started = True

HOUR = 3600


class Watched(Task):
    """Tells `effects` which of its hooks were called for a task, and with what."""

    abstract = True

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        effects.hit("hook", f"{task_id} on_success")

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        effects.hit("hook", f"{task_id} on_failure {type(exc).__name__} {list(args)} {einfo.type.__name__}")

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        effects.hit("hook", f"{task_id} after_return {status} {type(retval).__name__} {list(args)}")


@signals.task_failure.connect
def note_failure(task_id: str, **_: Any) -> None:
    effects.hit("signal", f"{task_id} task_failure")


@signals.task_revoked.connect
def note_revocation(request: Any, terminated: bool, signum: Any, expired: bool, **_: Any) -> None:
    effects.hit("signal", f"{request.id} task_revoked {terminated} {signum} {expired}")


def fail_once() -> int:
    if effects.hit("flaky", current_step().task_id) == 1:
        raise ConnectionError("away")
    return held()


def refuse_once() -> int:
    if effects.hit("refusing", current_step().task_id) == 1:
        raise TerminalError("not yet", 503)
    return held()


@durable_task(base=Watched)
def sleeper(ctx: DurableContext, name: str) -> str:
    ctx.sleep(HOUR)
    ctx.run("go on", held)
    return "done"


@durable_task(base=Watched)
def stepper(ctx: DurableContext, name: str) -> None:
    ctx.run("step", held)
    ctx.run("next step", work)


@durable_task(base=Watched)
def backs_off(ctx: DurableContext) -> int:
    options = RunOptions(initial_retry_interval=HOUR, max_retry_interval=HOUR)
    return ctx.run("go on", fail_once, options)


@durable_task(base=Watched)
def refused(ctx: DurableContext) -> int:
    return ctx.run("go on", refuse_once)


@durable_task
def deployed(ctx: DurableContext) -> str:
    """Call its step as the build of its worker does."""
    ctx.run(os.environ["STEP"], work)
    ctx.sleep(HOUR)
    return "done"


@durable_task
def quick(ctx: DurableContext) -> str:
    return ctx.run("work", named, work)


@app.task
def errback(request: Any, error: BaseException, traceback: Any) -> None:
    effects.hit("errback", request.id)
