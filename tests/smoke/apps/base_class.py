"""`DurableTask` as a base class: its tasks stay Celery's own where they do not use their context."""

import asyncio
import itertools
from contextlib import suppress
from typing import Any

from celery import Celery, Task, shared_task

from celery_durable import (
    DurableContext,
    DurableTask,
    RetriesExhausted,
    RetryPolicy,
    RunOptions,
    TerminalError,
    durable_task,
)
from tests.smoke import effects

app = Celery("base_class")
app.conf.durable_task_retry_policy = RetryPolicy(initial_retry_interval=0.02)

SIX = RunOptions(max_attempts=6, initial_retry_interval=0.02)


class GatewayDown(Exception):
    """An exception of the user's own."""


def fail(name: str, key: object, times: int = 10**6) -> int:
    execution = effects.hit(name, key)
    if execution <= times:
        raise GatewayDown(f"{name} {execution}")
    return execution


async def fail_async(name: str, key: object, times: int = 10**6) -> int:
    await asyncio.sleep(0)
    return fail(name, key, times)


# -- ways to a task ----------------------------------------------------------------------------------------------------


def pay(task: Any, amount: int) -> list[Any]:
    """What every task below does: two steps, of which the second fails twice."""
    effects.hit("attempts", task.request.id)
    reserved = task.ctx.run("reserve", effects.hit, "reserve", task.request.id)
    executions = task.ctx.run("charge", fail, SIX, "charge", task.request.id, 2)
    return [type(task.ctx).__name__, amount, reserved, executions, task.request.retries]


@app.task(base=DurableTask, bind=True)
def by_option(self: Any, amount: int) -> list[Any]:
    return pay(self, amount)


@shared_task(base=DurableTask, bind=True)
def shared(self: Any, amount: int) -> list[Any]:
    return pay(self, amount)


class ByClass(DurableTask):
    name = "by_class"

    def run(self, amount: int) -> list[Any]:
        return pay(self, amount)


class Derived(ByClass):
    """Its `run` calls the one above it, in the same attempt with the same context."""

    name = "derived"

    def run(self, amount: int) -> list[Any]:
        before = self.ctx.run("before", effects.hit, "before", self.request.id)
        found = super().run(amount)
        after = self.ctx.run("after", effects.hit, "after", self.request.id)
        assert before == after == 1
        return found


class Watched(Task):
    """A task class of the user's that knows nothing of durable tasks."""

    abstract = True

    def on_retry(self, exc: BaseException, task_id: str, *_: Any) -> None:
        effects.hit("on_retry", f"{task_id} {type(exc).__name__} {exc}")

    def on_success(self, retval: Any, task_id: str, *_: Any) -> None:
        effects.hit("on_success", task_id)

    def on_failure(self, exc: BaseException, task_id: str, *_: Any) -> None:
        effects.hit("on_failure", f"{task_id} {type(exc).__name__} {exc}")


class InContext(Task):
    """As applications of Flask do it."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        effects.hit("entered")
        return self.run(*args, **kwargs)


class InOlderContext(Task):
    """The same by `super()`."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        effects.hit("entered")
        return super().__call__(*args, **kwargs)


class Prefixed:
    """No task itself."""

    def run(self, amount: int) -> Any:
        return super().run(amount)  # type: ignore[misc]


class Existing(Task):
    """A class-based task of the user's, made durable by a second base class."""

    abstract = True

    def run(self, amount: int) -> list[Any]:
        return pay(self, amount)


MIXINS = (Watched, InContext, InOlderContext, Prefixed)
for mixin in MIXINS:
    for bases in itertools.permutations((mixin, ByClass)):
        name = " ".join(base.__name__ for base in bases)
        app.register_task(type(name.replace(" ", ""), bases, {"name": name})())

for mixin in (Watched, InContext, InOlderContext):
    for bases in itertools.permutations((mixin, DurableTask)):
        name = " ".join(base.__name__ for base in bases)
        app.task(base=type(name.replace(" ", ""), bases, {"abstract": True}), bind=True, name=name)(pay)

for bases in itertools.permutations((Existing, DurableTask)):
    name = " ".join(base.__name__ for base in bases)
    app.register_task(type(name.replace(" ", ""), bases, {"name": name})())

app.register_task(ByClass())
app.register_task(Derived())


@app.task(base=DurableTask, bind=True)
async def asynchronous(self: Any, amount: int) -> list[Any]:
    effects.hit("attempts", self.request.id)
    reserved = await self.ctx.run("reserve", effects.hit, "reserve", self.request.id)
    executions = await self.ctx.run("charge", fail_async, SIX, "charge", self.request.id, 2)
    return [type(self.ctx).__name__, amount, reserved, executions, self.request.retries]


class AsynchronousByClass(DurableTask):
    name = "asynchronous_by_class"

    async def run(self, amount: int) -> list[Any]:
        return await asynchronous.run.__wrapped__(self, amount)


app.register_task(AsynchronousByClass())


@durable_task(bind=True)
def auto_retry(self: Any, ctx: DurableContext, amount: int) -> list[Any]:
    assert self.ctx is ctx
    return pay(self, amount)


# -- how failures end --------------------------------------------------------------------------------------------------


@app.task(base=DurableTask, bind=True)
def six_attempts(self: Any) -> None:
    self.ctx.run("charge", fail, SIX, "charge", self.request.id)


@app.task(base=DurableTask, bind=True, max_retries=1, default_retry_delay=0)
def six_attempts_then_two_retries(self: Any) -> str:
    """Neither knows of the other: six executions, then one retry of the user's own."""
    try:
        self.ctx.run("charge", fail, SIX, "charge", self.request.id)
    except RetriesExhausted as error:
        effects.hit("retry", self.request.id)
        raise self.retry(exc=error) from error


@app.task(base=DurableTask, bind=True, autoretry_for=(GatewayDown,), max_retries=3, default_retry_delay=0)
def autoretried(self: Any, times: int) -> int:
    self.ctx.run("reserve", effects.hit, "reserve", self.request.id)
    return self.ctx.run("charge", fail, "charge", self.request.id, times)


@app.task(base=DurableTask, bind=True, autoretry_for=(KeyError,), max_retries=3, default_retry_delay=0)
def autoretried_for_others(self: Any) -> int:
    return self.ctx.run("charge", fail, "charge", self.request.id)


@app.task(base=DurableTask, bind=True, autoretry_for=(Exception,), max_retries=3, default_retry_delay=0)
def autoretried_for_all(self: Any, ending: str) -> None:
    """End by what no retry is to change."""
    effects.hit("attempts", self.request.id)
    self.ctx.run("reserve", effects.hit, "reserve", self.request.id)
    if ending == "exhausted":
        self.ctx.run("charge", fail, RunOptions(max_attempts=1), "charge", self.request.id)
    elif ending == "not recordable":
        self.ctx.run("charge", object)
    raise TerminalError("card declined", 402)


@app.task
def note_error(request: Any, error: BaseException, _traceback: Any) -> None:
    effects.hit("errbacks", f"{request.id} {type(error).__name__}")


@app.task
def note_success(value: Any) -> None:
    effects.hit("links", value)


@app.task(base=DurableTask, bind=True, default_retry_delay=0)
def that_swallows_its_own_retry(self: Any) -> str:
    """Ask for a retry in the first attempt, and go on as if that were nothing."""
    reserved = self.ctx.run("reserve", effects.hit, "reserve", self.request.id)
    attempt = effects.hit("attempts", self.request.id)
    if attempt == 1:
        with suppress(Exception):
            self.retry()
    return f"attempt {attempt} after step {reserved}"


@app.task(base=DurableTask, bind=True, max_retries=3, default_retry_delay=0)
def with_max_retries_only(self: Any) -> int:
    return self.ctx.run("charge", fail, "charge", self.request.id)


@app.task(base=DurableTask, bind=True)
def with_neither(self: Any) -> int:
    return self.ctx.run("charge", fail, "charge", self.request.id)


@app.task(base=DurableTask, bind=True)
def that_swallows_exceptions(self: Any) -> str:
    try:
        self.ctx.run("charge", fail, "charge", self.request.id)
    except Exception:
        effects.hit("swallowed")
    return "all is well"


@app.task(base=DurableTask, bind=True)
def that_swallows_all(self: Any) -> str:
    try:
        self.ctx.run("charge", fail, "charge", self.request.id)
    except:  # noqa: E722
        effects.hit("swallowed all")
    return "all is well"


@app.task(base=DurableTask, bind=True, max_retries=2, default_retry_delay=0)
def that_retries_itself(self: Any) -> list[int]:
    """Four retries by the step's policy, two of its own: the limit of two knows of its own only."""
    effects.hit("attempts", self.request.id)
    charged = self.ctx.run("charge", fail, SIX, "charge", self.request.id, 4)
    if effects.hit("own", self.request.id) <= 2:
        raise self.retry()
    return [charged, self.request.retries]


@app.task(base=DurableTask, bind=True, max_retries=2, default_retry_delay=0)
def that_retries_itself_for_ever(self: Any) -> None:
    self.ctx.run("charge", fail, SIX, "charge", self.request.id, 4)
    effects.hit("own", self.request.id)
    raise self.retry(exc=GatewayDown("still"))


@app.task(base=DurableTask, bind=True)
def waiting_long(self: Any) -> None:
    self.ctx.run("charge", fail, RunOptions(initial_retry_interval=600, max_retry_interval=600), "charge", "x")


@app.task(base=DurableTask, bind=True, max_retries=7)
def left_behind(self: Any, use: str = "") -> list[str]:
    """What the task object has, beyond what it was made of, after this use of it."""
    if "step" in use:
        self.ctx.run("charge", fail, SIX, "charge", self.request.id, 3)
    if "retry" in use and effects.hit("own", self.request.id) == 1:
        raise self.retry(countdown=0, max_retries=99)
    state = {name: value for name, value in vars(self).items() if name not in ("_exec_options", "_backend")}
    return [repr(sorted(state)), repr(self.max_retries), repr(self.default_retry_delay)]


# -- tasks that do not use their context -------------------------------------------------------------------------------


@app.task(base=DurableTask)
def plain(x: int) -> int:
    return x + 1


@app.task(base=DurableTask, bind=True, autoretry_for=(GatewayDown,), max_retries=2, default_retry_delay=0)
def plain_retried(self: Any) -> int:
    return fail("plain", self.request.id, 2)


@app.task(base=DurableTask)
def plain_failing() -> None:
    raise GatewayDown("plain")


# -- direct calls ------------------------------------------------------------------------------------------------------


@durable_task
def inner(ctx: DurableContext, key: str, times: int) -> list[Any]:
    return [ctx.run("inner", fail, "inner", key, times), str(ctx.uuid()), ctx.task_id]


@durable_task
def outer(ctx: DurableContext, times: int) -> list[Any]:
    """Calls another durable task as the function that it is: its steps are not of this journal."""
    ctx.run("before", effects.hit, "before", ctx.task_id)
    found = inner(ctx.task_id, times)
    after = ctx.run("after", effects.hit, "after", ctx.task_id)
    return [*found, after]


@durable_task
def outer_in_a_step(ctx: DurableContext) -> Any:
    return ctx.run("call", inner, ctx.task_id, 0)


@durable_task
def recursive(ctx: DurableContext, depth: int) -> int:
    below = recursive(depth - 1) if depth else 0
    return below + ctx.run(f"depth {depth}", effects.hit, f"depth {depth}", ctx.task_id)
