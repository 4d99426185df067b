"""One task per way in which a run can end, for what the caller of `.get()` receives."""

import os
import signal
from datetime import date
from typing import Any
from uuid import UUID

import pydantic
from celery import Celery
from celery.exceptions import Ignore, Reject

from celery_durable import (
    DurableContext,
    DurableTask,
    RetryableError,
    RetryPolicy,
    RunOptions,
    TerminalError,
    current_step,
    durable_task,
)
from tests.smoke import effects

app = Celery("values")
app.conf.durable_task_retry_policy = RetryPolicy(initial_retry_interval=0.02, max_attempts=3)

QUICKLY = RunOptions(max_attempts=3, initial_retry_interval=0.02)


class Order(pydantic.BaseModel):
    number: int
    placed: date


class OutOfStock(TerminalError):
    """Rebuilds from its args."""


class CardRefused(TerminalError):
    """Does not: its constructor takes other things than it keeps."""

    def __init__(self, card: str, limit: int) -> None:
        super().__init__(f"{card} has a limit of {limit}", 402, {"limit": limit})


class GatewayDown(Exception):
    """A failure of the user's own."""


def failing(error: Any) -> Any:
    """An action that raises this, each time again."""

    def fail() -> None:
        effects.hit("fail", current_step().task_id)
        raise error if isinstance(error, BaseException) else error()

    return fail


@durable_task
def value(ctx: DurableContext) -> dict[str, Any]:
    return {
        "text": ctx.run("text", lambda: "ä"),
        "list": ctx.run("list", lambda: [1, None, 2.5]),
        "uuid": ctx.run("uuid", lambda: UUID(int=7)),
        "date": ctx.run("date", lambda: date(2026, 1, 31)),
    }


@durable_task
def model(ctx: DurableContext) -> Order:
    def place() -> Order:
        return Order(number=1, placed=date(2026, 1, 31))

    return ctx.run("place", place)


@durable_task
def terminal_of_a_step(ctx: DurableContext) -> None:
    ctx.run("fail", failing(TerminalError("no such account", 404, {"account": "A-1"})))


@durable_task
def terminal_of_the_body(ctx: DurableContext) -> None:
    effects.hit("fail", ctx.task_id)
    raise TerminalError("no such account", 404, {"account": "A-1"})


@app.task(base=DurableTask, bind=True)
def terminal_on_the_base_class(self: Any) -> None:
    self.ctx.run("fail", failing(TerminalError("no such account", 404, {"account": "A-1"})))


@durable_task
def terminal_replayed(ctx: DurableContext) -> None:
    try:
        ctx.run("fail", failing(TerminalError("no such account", 404, {"account": "A-1"})))
    except TerminalError:
        if ctx.attempt < 3:
            raise OSError("once more") from None
        raise


@durable_task
def terminal_of_an_exception(ctx: DurableContext) -> None:
    ctx.run("fail", failing(TerminalError(KeyError("A-1"), 404)))


@durable_task
def subclass(ctx: DurableContext) -> None:
    ctx.run("fail", failing(OutOfStock("no chairs", 409, {"chairs": 0})))


@durable_task
def subclass_that_does_not_rebuild(ctx: DurableContext) -> None:
    ctx.run("fail", failing(lambda: CardRefused("visa", 100)))


@durable_task
def subclass_that_does_not_rebuild_of_the_body(ctx: DurableContext) -> None:
    effects.hit("fail", ctx.task_id)
    raise CardRefused("visa", 100)


@durable_task
def exhausted(ctx: DurableContext) -> None:
    ctx.run("charge", failing(GatewayDown("timeout")), QUICKLY)


@durable_task
def exhausted_by_a_retryable_error(ctx: DurableContext) -> None:
    ctx.run("charge", failing(RetryableError("slow down", 429)), QUICKLY)


@durable_task
def policy_spent_by_a_step(ctx: DurableContext) -> None:
    ctx.run("charge", failing(GatewayDown("timeout", 7)))


@durable_task
def policy_spent_by_the_body(ctx: DurableContext) -> None:
    effects.hit("fail", ctx.task_id)
    raise GatewayDown("timeout", 7)


@durable_task
def policy_spent_by_a_builtin(ctx: DurableContext) -> None:
    effects.hit("fail", ctx.task_id)
    {}["A-1"]


@app.task(base=DurableTask, bind=True)
def original_on_the_base_class(self: Any) -> None:
    self.ctx.run("charge", failing(GatewayDown("timeout", 7)))


@durable_task
def mismatch(ctx: DurableContext) -> None:
    effects.hit("fail", ctx.task_id)
    ctx.run(f"step of attempt {ctx.attempt}", effects.hit, "step")
    raise OSError("another attempt")


@durable_task
def context_in_a_step(ctx: DurableContext) -> None:
    effects.hit("fail", ctx.task_id)
    ctx.run("outer", ctx.uuid)


@durable_task
def not_encodable(ctx: DurableContext) -> None:
    def connect() -> object:
        effects.hit("fail", ctx.task_id)
        return object()

    ctx.run("connect", connect)


@durable_task
def invalid_step(ctx: DurableContext) -> None:
    effects.hit("fail", ctx.task_id)
    ctx.run(failing)  # type: ignore[call-overload]


@durable_task
def wrong_arguments(ctx: DurableContext) -> None:
    effects.hit("fail", ctx.task_id)
    ctx.run("charge", effects.hit, "name", "key", max_attempts=3)


@durable_task
def wrong_option(ctx: DurableContext) -> None:
    effects.hit("fail", ctx.task_id)
    ctx.run("charge", failing(OSError()), RunOptions(max_retries=3))  # type: ignore[call-arg]


@durable_task(max_recoveries=2)
def dying(ctx: DurableContext) -> None:
    effects.hit("fail", ctx.task_id)
    os.kill(os.getpid(), signal.SIGKILL)


@durable_task
def ignored(ctx: DurableContext) -> None:
    ctx.run("before", effects.hit, "before", ctx.task_id)
    raise Ignore("not for me")


@durable_task
def rejected(ctx: DurableContext) -> None:
    ctx.run("before", effects.hit, "before", ctx.task_id)
    raise Reject("not for anybody", requeue=False)


@durable_task
def misfit(ctx: DurableContext, amount: int) -> None:
    effects.hit("fail", ctx.task_id)


@durable_task
def takes_a_model(ctx: DurableContext, order: Order) -> int:
    effects.hit("fail", ctx.task_id)
    return order.number


# -- what later attempts are given -------------------------------------------------------------------------------------


class Stay(pydantic.BaseModel):
    """To begin in the future: until it is paid."""

    begins: date

    @pydantic.field_validator("begins")
    @classmethod
    def is_to_come(cls, begins: date) -> date:
        if effects.count("pay"):
            raise ValueError("in the past")
        return begins


@durable_task
def books(ctx: DurableContext, stay: Stay) -> date:
    def reserve() -> Stay:
        return stay

    reserved = ctx.run("reserve", reserve)
    ctx.run("pay", effects.hit, "pay", ctx.task_id)
    ctx.sleep(0.1)
    ctx.run("review", flaky_review, QUICKLY, ctx.task_id)
    return reserved.begins


def flaky_review(task_id: str) -> None:
    if effects.hit("review", task_id) == 1:
        raise OSError("once more")


@durable_task
def shows_its_arguments(ctx: DurableContext, *args: Any, **kwargs: Any) -> str:
    shown = repr((args, kwargs))
    effects.hit("given", shown)
    ctx.sleep(0.1)
    ctx.run("review", flaky_review, QUICKLY, ctx.task_id)
    return shown


class Unpicklable:
    """Arrives, and cannot be sent on."""

    def __init__(self) -> None:
        self.arrived = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.arrived = True

    def __getstate__(self) -> dict[str, Any]:
        if self.arrived:
            raise TypeError("it stays where it is")
        return {"arrived": True}
