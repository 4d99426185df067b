"""Durable tasks that lose their worker, their message or their place, by either way of acknowledging."""

import json
import os
from typing import Any

from celery import Celery, current_task, signals
from celery.backends.redis import RedisBackend

from celery_durable import DurableContext, DurableTask, RunOptions, TerminalError, durable_task
from tests.smoke import effects
from tests.smoke.actions import die, fail_once, held, work

app = Celery("recovery")
app.conf.update(durable_lease=float(os.environ.get("DURABLE_TEST_LEASE", "2")))


# -- what is said to the world -----------------------------------------------------------------------------------------


class WatchedBackend(RedisBackend):
    """Counts what is stored, and holds an outcome where a test wants it."""

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **options: Any) -> Any:
        effects.hit("stored", f"{task_id} {state}")
        return super().store_result(task_id, result, state, *args, **options)

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, *args: Any, **options: Any) -> None:
        hold_delivery(request)
        super().mark_as_done(task_id, result, request, *args, **options)

    def mark_as_failure(self, task_id: str, exc: Any, *args: Any, request: Any = None, **options: Any) -> None:
        hold_delivery(request)
        super().mark_as_failure(task_id, exc, *args, request=request, **options)


app.loader.override_backends = {"redis": f"{__name__}:WatchedBackend"}


def hold_delivery(request: Any) -> None:
    if request is not None and (request.kwargs or {}).get("held_at") == "delivery":
        effects.block("delivery")


@signals.before_task_publish.connect
def note_sending(headers: dict[str, Any], **_: Any) -> None:
    """Whoever sends: a caller, a task, a worker's recovery."""
    if current_task:
        hold_delivery(current_task.request)
    effects.hit("sent", headers["id"])


@signals.task_failure.connect
def note_failure(task_id: str, exception: BaseException, **_: Any) -> None:
    effects.hit("failures", f"{task_id} {type(exception).__name__}")


# -- actions -----------------------------------------------------------------------------------------------------------


def refuse() -> None:
    work()
    raise TerminalError("card declined", status_code=402)


def die_unless_cured() -> str:
    work()
    if not effects.count("cured"):
        die()
    return "cured"


# -- kills -------------------------------------------------------------------------------------------------------------


def three_steps(task: Any, held_at: str) -> list[int]:
    """Wait in the step that is named; return the processes."""
    return [task.ctx.run(name, held if name == held_at else work) for name in ("first", "second", "third")]


@app.task(base=DurableTask, bind=True, acks_late=False)
def early(self: Any, *_: Any, held_at: str = "") -> list[int]:
    """Three steps of a task whose message is acknowledged before they run."""
    return three_steps(self, held_at)


@app.task(base=DurableTask, bind=True, acks_late=True)
def late(self: Any, *_: Any, held_at: str = "") -> list[int]:
    """Three steps of a task whose message is acknowledged after they ran."""
    return three_steps(self, held_at)


@durable_task
def total(ctx: DurableContext, parts: list[Any]) -> int:
    """Be the body of a chord."""
    ctx.run("total", work)
    return len(parts)


@app.task
def follow(earlier: Any) -> Any:
    """Know nothing of durable tasks."""
    effects.hit("follow")
    return earlier


@app.task(base=DurableTask, bind=True, acks_late=False)
def refused(self: Any, held_at: str = "") -> None:
    self.ctx.run("charge", refuse)


@app.task
def note_error(request: Any, error: BaseException, _traceback: Any) -> None:
    effects.hit("errbacks", f"{request.id} {type(error).__name__}")


def dies_before_its_run(task: Any) -> int:
    if effects.hit("bodies", task.request.id) == 1:
        die()
    return task.ctx.run("step", work)


@app.task(base=DurableTask, bind=True, acks_late=False)
def early_unbegun(self: Any) -> int:
    """Die once before the run begins."""
    return dies_before_its_run(self)


@app.task(base=DurableTask, bind=True, acks_late=True, reject_on_worker_lost=True)
def late_unbegun(self: Any) -> int:
    """The same, to be requeued by Celery."""
    return dies_before_its_run(self)


@app.task(base=DurableTask, bind=True, acks_late=False, max_recoveries=2)
def early_poison(self: Any) -> str:
    return self.ctx.run("poison", die_unless_cured)


@app.task(base=DurableTask, bind=True, acks_late=True, reject_on_worker_lost=True, max_recoveries=2)
def late_poison(self: Any) -> str:
    return self.ctx.run("poison", die_unless_cured)


# -- what a recovered message is to keep -------------------------------------------------------------------------------

KEPT = (
    "id", "task", "args", "kwargs", "root_id", "parent_id", "group", "group_index", "chord", "chain", "callbacks",
    "errbacks", "headers", "stamped_headers", "stamps", "reply_to", "correlation_id", "timelimit", "shadow", "retries",
    "ignore_result", "origin", "argsrepr", "kwargsrepr", "eta", "expires",
)  # fmt: skip


def facts_of(request: Any) -> str:
    """What a task may know of its message, but for our own header and what the broker says of this delivery."""
    facts = {name: getattr(request, name, None) for name in KEPT}
    facts["headers"] = {name: value for name, value in (request.headers or {}).items() if name != "celery_durable"}
    delivery = request.delivery_info or {}
    facts["route"] = [delivery.get(name) for name in ("exchange", "routing_key", "priority")]
    return json.dumps(facts, sort_keys=True, default=str)


@app.task(base=DurableTask, bind=True, acks_late=False)
def tells_facts(self: Any, *_: Any, **__: Any) -> list[int]:
    """Note the facts of each attempt; die in the first one."""
    first = self.ctx.run("first", work)
    effects.hit(f"facts of {self.request.id}", facts_of(self.request))
    if effects.hit("bodies", self.request.id) == 1:
        die()
    return [first, self.ctx.run("second", work)]


@app.task(base=DurableTask, bind=True, acks_late=False, max_retries=3)
def retries_itself(self: Any) -> None:
    """Retry after a step that failed once; die once between these retries."""
    self.ctx.uuid()
    effects.hit("retries", self.request.retries)
    self.ctx.run("flaky", fail_once, RunOptions(initial_retry_interval=0.05))
    if effects.hit("bodies", self.request.id) == 2:
        die()
    self.retry(countdown=0.05, exc=ConnectionError("still away"))


# -- waits -------------------------------------------------------------------------------------------------------------


@durable_task
def sleeps(ctx: DurableContext, seconds: float = 600) -> str:
    ctx.run("before", work)
    ctx.sleep(seconds)
    ctx.run("after", work)
    return "awake"


@app.task(base=DurableTask, bind=True, acks_late=False)
def backs_off(self: Any, delay: float) -> int:
    """Have a step that fails once, and is retried after this delay."""
    self.ctx.run("before", work)
    return self.ctx.run("flaky", fail_once, RunOptions(initial_retry_interval=delay, max_retry_interval=delay))


if "DURABLE_TEST_FEWER_TASKS" not in os.environ:

    @durable_task
    def known_to_some(ctx: DurableContext) -> str:
        """Be unknown to some workers."""
        ctx.sleep(600)
        return "awake"


# -- attempts that stand still -----------------------------------------------------------------------------------------

STALE_WORDS = ("return", "fail", "retry", "sleep", "step")


@app.task(base=DurableTask, bind=True, acks_late=False)
def stands_still(self: Any, word: str) -> str:
    """Be held in the first attempt before its last word; another attempt ends by itself."""
    self.ctx.run("first", work)
    if effects.hit("bodies", self.request.id) > 1:
        return "the other"
    effects.block("stale")
    match word:
        case "fail":
            raise TerminalError("the stale one")
        case "retry":
            self.retry(countdown=0)
        case "sleep":
            self.ctx.sleep(600)
        case "step":
            self.ctx.run("stale step", work)
    return "the stale one"


@app.task
def quick() -> str:
    return "done"
