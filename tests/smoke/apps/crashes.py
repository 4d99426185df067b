"""Durable tasks to be killed, failed, held and delivered twice; `effects` counts what their steps do."""

import asyncio
import time
from typing import Any

from celery import Celery, current_task, signals
from celery.exceptions import Ignore, Reject
from kombu.exceptions import OperationalError

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    DurableTask,
    RetryPolicy,
    RunOptions,
    TerminalError,
    current_step,
    durable_task,
)
from tests.smoke import effects
from tests.smoke.actions import count_execution, die, held, work

app = Celery("crashes")
app.conf.update(durable_lease=2)

QUICKLY = RunOptions(initial_retry_interval=0.05)


# -- actions -----------------------------------------------------------------------------------------------------------


def work_for(seconds: float) -> int:
    time.sleep(seconds)
    return work()


def by_plan(plan: list[str]) -> int:
    """Do what the plan says for this execution, its last word being for all that follow; return which one it is."""
    number = count_execution()
    event = plan[min(number, len(plan)) - 1]
    if event == "fail":
        raise ConnectionError(f"failure {number}")
    if event == "die":
        die()
    return number


def refuse(order: str) -> None:
    work()
    raise TerminalError("card declined", status_code=402, metadata={"order": order})


def held_the_first_time(gate: str) -> int:
    """Return which execution this is; the first one waits at the gate before."""
    number = count_execution()
    if number == 1:
        effects.block(gate)
    return number


def held_then_failing() -> int:
    """Fail the first execution, after the gate; return which one this is."""
    number = count_execution()
    effects.block(current_step().name)
    if number == 1:
        raise ConnectionError("failure 1")
    return number


# -- kills -------------------------------------------------------------------------------------------------------------


@durable_task
def three_steps(ctx: DurableContext, held_at: str = "") -> list[int]:
    """Wait "between" the first and the second step, or inside the one that is named; return the processes."""
    first = ctx.run("first", held if held_at == "first" else work)
    if held_at == "between":
        effects.block("between")
    second = ctx.run("second", held if held_at == "second" else work)
    return [first, second, ctx.run("third", work)]


@durable_task
def draws(ctx: DurableContext) -> list[str]:
    """Draw one of each kind, twice; die in the step after the first draws and in the step after the second."""
    drawn = []
    for name in ("first", "second"):
        drawn += [str(ctx.uuid()), str(ctx.time()), ctx.now().isoformat(), str(ctx.random().random())]
        effects.hit(f"drawn before {name}", drawn)
        ctx.run(name, by_plan, ["die", "work"])
    return drawn


@durable_task
def dies_after_a_step(ctx: DurableContext) -> int:
    pid = ctx.run("step", work)
    if effects.hit("deaths", ctx.task_id) == 1:
        die()
    return pid


@durable_task
def held_after_its_end(ctx: DurableContext) -> int:
    return ctx.run("step", work)


@signals.task_success.connect
def hold_after_success(sender: Any, **_: Any) -> None:
    """When the result is stored and the next task of the chain is sent."""
    if sender.name == held_after_its_end.name:
        effects.block("after its end")


@durable_task
def sent_late(ctx: DurableContext, earlier: Any) -> list[Any]:
    return [earlier, ctx.run("sent late", work)]


@signals.before_task_publish.connect
def hold_before_sending(sender: str, **_: Any) -> None:
    """When the run that stands before it in a chain has ended."""
    if sender == sent_late.name:
        effects.block("before the next task")


@durable_task
def held_before_its_run(ctx: DurableContext) -> None:
    ctx.run("charge", refuse, "order 7")


@signals.task_prerun.connect
def hold_the_first_delivery(sender: Any, task_id: str, **_: Any) -> None:
    """When its message has been taken, and before its run is opened."""
    if sender.name == held_before_its_run.name and effects.hit("deliveries", task_id) == 1:
        effects.block("before its run")


@durable_task(max_recoveries=2)
def poison(ctx: DurableContext) -> None:
    """Kill the process in the second step, each time."""
    ctx.run("before", work)
    ctx.run("poison", by_plan, ["die"])


@durable_task
def planned(ctx: DurableContext, plan: list[str], **options: Any) -> list[int]:
    """Go by the plan in the middle one of three steps, with these options."""
    before = ctx.run("before", work)
    number = ctx.run("planned", by_plan, RunOptions(**options), plan)
    return [before, number, ctx.run("after", work)]


@durable_task
def held_at_most_once(ctx: DurableContext) -> int:
    return ctx.run("once", held, RunOptions(max_attempts=1))


@durable_task
async def siblings(ctx: AsyncDurableContext, plan: list[str]) -> list[Any]:
    """Go by the plan in one of three steps side by side, at most three times; return what became of it."""
    options = RunOptions(max_attempts=3, initial_retry_interval=1, retry_interval_factor=1)
    try:
        outcome = await asyncio.gather(
            ctx.run("left", work), ctx.run("planned", by_plan, options, plan), ctx.run("right", work)
        )
    except TerminalError as error:
        return [str(error), await ctx.run("after", work)]
    return [outcome[1], await ctx.run("after", work)]


# -- duplicates --------------------------------------------------------------------------------------------------------


@durable_task
def follow(ctx: DurableContext, earlier: Any) -> list[Any]:
    """Stand behind another task in a chain."""
    return [earlier, ctx.run("follow", work)]


@durable_task
def held_task(ctx: DurableContext, order: str = "") -> str:
    ctx.run("held", held)
    return f"order {order}"


@durable_task
def other_task(ctx: DurableContext) -> int:
    return ctx.run("other", work)


@durable_task
def refused(ctx: DurableContext, order: str) -> None:
    ctx.run("charge", refuse, order)


@app.task
def note_error(request: Any, error: BaseException, _traceback: Any) -> None:
    effects.hit("errbacks", f"{request.id} {type(error).__name__}")


@app.task
def quick() -> str:
    return "done"


@durable_task
def published_twice(ctx: DurableContext) -> list[int]:
    """Be held right after the retry of the second step was published, and in the third step."""
    first = ctx.run("first", work)
    number = ctx.run("planned", by_plan, QUICKLY, ["fail", "work"])
    return [first, number, ctx.run("third", held)]


@signals.task_retry.connect
def hold_after_publishing(sender: Any, **_: Any) -> None:
    """In the process of the pool, before the worker hears of the retry and acknowledges the message."""
    if sender.name == published_twice.name:
        effects.block("published")


# -- retries -----------------------------------------------------------------------------------------------------------


@durable_task
def planned_body(ctx: DurableContext, failures: int) -> int:
    """Fail so many attempts outside of a step; return the attempt."""
    ctx.run("step", work)
    if effects.hit("bodies", ctx.task_id) <= failures:
        raise ConnectionError("no route")
    return ctx.attempt


@durable_task(task_retry_policy=RetryPolicy(initial_retry_interval=0.05, max_attempts=3))
def three_attempts(ctx: DurableContext) -> None:
    """Fail always; a step is recorded by the third attempt, which begins the count again."""
    ctx.run("first", by_plan, ["fail", "fail", "work"])
    effects.hit("bodies", ctx.task_id)
    raise ConnectionError("no route")


@durable_task(bind=True, max_retries=2)
def retries_itself(self: Any, ctx: DurableContext) -> None:
    """Retry after a step that failed four times."""
    ctx.run("step", by_plan, QUICKLY, ["fail", "fail", "fail", "fail", "work"])
    effects.hit("bodies", ctx.task_id)
    self.retry(countdown=0.05)


@app.task(base=DurableTask, bind=True, max_retries=2)
def base_class_retries_itself(self: Any) -> None:
    """The same by the base class."""
    self.ctx.run("step", by_plan, QUICKLY, ["fail", "fail", "fail", "fail", "work"])
    effects.hit("bodies", self.request.id)
    self.retry(countdown=0.05)


@durable_task(bind=True)
def retries_with(self: Any, ctx: DurableContext, order: str) -> list[str]:
    """Go on with another order than the first."""
    ctx.run("step", work)
    ctx.run("flaky", by_plan, QUICKLY, ["fail", "work"])
    if order == "first":
        self.retry(args=("second",), countdown=0.05)
    ctx.run("after the change", by_plan, QUICKLY, ["fail", "work"])
    return [order, *self.request.args]


@durable_task
def ends_by(ctx: DurableContext, ending: str) -> int:
    """End the first attempt by one of Celery's exceptions."""
    ctx.run("step", work)
    if effects.hit("bodies", ctx.task_id) == 1:
        if ending == "ignore":
            raise Ignore
        raise Reject("not today", requeue=ending == "requeue")
    return ctx.attempt


@durable_task(bind=True)
def replaced(self: Any, ctx: DurableContext) -> None:
    pid = ctx.run("step", work)
    raise self.replace(replacement.s(pid))


@durable_task
def replacement(ctx: DurableContext, earlier: int) -> list[int]:
    """Have a step of the same name at the same position, which fails once."""
    return [earlier, ctx.run("step", by_plan_of_replacement, QUICKLY)]


def by_plan_of_replacement() -> int:
    number = effects.hit("step of the replacement", current_step().task_id)
    if number == 1:
        raise ConnectionError("failure 1")
    return number


@durable_task
def compensates(ctx: DurableContext, order: str) -> None:
    """Catch a terminal failure, and pass it on after a replay."""
    try:
        ctx.run("charge", refuse, order)
    except TerminalError as error:
        effects.hit("caught", [type(error).__name__, *error.args])
        ctx.run("compensate", by_plan, QUICKLY, ["fail", "work"])
        raise


@durable_task
def changes_its_mind(ctx: DurableContext) -> None:
    """Ask for another step on the second attempt, and draw once more before."""
    attempt = effects.hit("bodies", ctx.task_id)
    for _ in range(attempt):
        ctx.uuid()
    try:
        ctx.run("left" if attempt == 1 else "right", work)
        ctx.run("following", by_plan, QUICKLY, ["fail", "work"])
    except Exception:
        effects.hit("seen by user code", ctx.task_id)


@durable_task
def forgets_a_step(ctx: DurableContext) -> str:
    """Return before the second step on the second attempt."""
    ctx.run("first", work)
    if effects.hit("bodies", ctx.task_id) == 1:
        ctx.run("second", by_plan, QUICKLY, ["fail"])
    return "done"


@durable_task(soft_time_limit=1)
def soft_limited(ctx: DurableContext, **options: Any) -> int:
    """Be held in the first execution of the second step for longer than the soft time limit."""
    ctx.run("before", work)
    return ctx.run("limited", held_the_first_time, RunOptions(**options), "limited")


@durable_task(time_limit=1)
def hard_limited(ctx: DurableContext) -> list[int]:
    """Be held in the first execution of the second step for longer than the hard time limit."""
    before = ctx.run("before", work)
    return [before, ctx.run("limited", held_the_first_time, "limited")]


# -- Redis, the broker and processes that come back --------------------------------------------------------------------


@durable_task
def slow_retry(ctx: DurableContext) -> list[int]:
    """Have a step that fails once and is retried after a second."""
    first = ctx.run("first", work)
    return [first, ctx.run("flaky", by_plan, RunOptions(initial_retry_interval=1), ["fail", "work"])]


@durable_task
def held_with_witness(ctx: DurableContext) -> list[int]:
    """Be held in the second step, and tell that its action has returned."""
    return [ctx.run("first", work), ctx.run("second", held_and_left), ctx.run("third", work)]


def held_and_left() -> int:
    pid = held()
    effects.hit("left", current_step().task_id)
    return pid


@durable_task
def fails_after_gate(ctx: DurableContext) -> list[int]:
    first = ctx.run("first", work)
    return [first, ctx.run("second", held_then_failing, QUICKLY)]


@durable_task
def stale_inside(ctx: DurableContext) -> list[int]:
    """Be held in the first execution of the second step, and in the third step."""
    ctx.run("first", work)
    return [ctx.run("second", held_the_first_time, "stale"), ctx.run("third", held)]


@durable_task
def stale_between(ctx: DurableContext) -> list[int]:
    """Be held in the first attempt between two steps, and in the third step.

    The first step is recorded half a second after the lease was taken, and before it is renewed.
    """
    first = ctx.run("first", work_for, 0.5)
    if effects.hit("bodies", ctx.task_id) == 1:
        effects.block("stale")
    return [first, ctx.run("second", work), ctx.run("third", held)]


# -- messages that cannot be sent --------------------------------------------------------------------------------------


def trouble_sending(name: str, _args: Any, kwargs: Any, _options: Any, **_: Any) -> None:
    """Route nothing; do as the argument `sending` says, the first time that a task sends this one, or always."""
    trouble = (kwargs or {}).get("sending")
    if not trouble or not current_task:
        return
    number = effects.hit("sendings", name)
    if trouble == "never":
        raise TypeError("no route")
    if number == 1:
        if trouble == "die":
            die()
        raise OperationalError("the broker is away")


app.conf.task_routes = (trouble_sending,)


@durable_task
def sent_with_trouble(ctx: DurableContext, earlier: Any, sending: str) -> list[Any]:
    return [earlier, ctx.run("follow", work)]


@durable_task
def flaky_with_trouble(ctx: DurableContext, sending: str) -> int:
    ctx.run("first", work)
    return ctx.run("flaky", by_plan, QUICKLY, ["fail", "work"])


@durable_task(bind=True)
def changes_its_order(self: Any, ctx: DurableContext, order: int, sending: str) -> int:
    """Go on with the next order, up to the third."""
    ctx.run("step", work)
    effects.hit("orders", order)
    if order < 3:
        self.retry(args=(order + 1,), kwargs={"sending": sending}, countdown=0)
    return order


@app.task(base=DurableTask, bind=True, acks_late=False, default_retry_delay=0)
def acknowledged_early(self: Any, sending: str) -> int:
    """Retry once; the message of the first attempt is gone by then."""
    self.ctx.run("step", work)
    if effects.hit("bodies", self.request.id) == 1:
        self.retry()
    return self.request.retries


# -- shutdowns ---------------------------------------------------------------------------------------------------------


async def held_async_the_first_time() -> int:
    number = count_execution()
    if number == 1:
        await effects.block_async("async")
    return number


@durable_task
async def held_async(ctx: AsyncDurableContext) -> list[int]:
    return [await ctx.run("first", work), await ctx.run("second", held_async_the_first_time)]


@durable_task
def charged_by_its_key(ctx: DurableContext) -> str:
    def charge() -> str:
        key = str(current_step().idempotency_key)
        effects.hit("charge", key)
        return key

    key = ctx.run("charge", charge)
    ctx.run("second", held)
    ctx.run("third", work)
    return key
