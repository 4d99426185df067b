"""The documentation that this library is held to, as tasks: Python snippets as they stand, Go texts in Python."""

# ruff: noqa: TRY201, TRY203  (the snippets say `raise err`)

import ast
import asyncio
import json
import os
import random
import sqlite3
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import kombu.serialization
import pydantic
from celery import Celery

import celery_durable as restate
from celery_durable import TerminalError
from tests.smoke import effects

app = Celery("seeds")
app.conf.durable_task_retry_policy = restate.RetryPolicy(initial_retry_interval=0.02)


# -- what the tasks are made of ----------------------------------------------------------------------------------------


def stumble(ctx: Any, times: int = 1) -> None:
    """In the body of a task: fail the first attempts, so that what stands above is replayed."""
    if ctx.attempt <= times:
        raise OSError(f"attempt {ctx.attempt} stumbles")


def attempt_planned(name: str) -> str:
    """In a step of a task whose first argument is a plan, one word per execution: do what the plan says."""
    step = restate.current_step()
    execution = effects.hit(name, step.task_id)
    plan = step.request.args[0]
    match plan[min(execution, len(plan)) - 1]:
        case "ok":
            return f"{name} {execution}"
        case "fail":
            raise ConnectionError(f"{name} failed in execution {execution}")
        case "busy":
            raise restate.RetryableError("too many requests", 429, retry_after=0.01)
        case "closed":
            raise restate.RetryableError("closed for the night", 503, retry_after=timedelta(hours=9))
        case "refuse":
            raise TerminalError("no such account", 404, {"account": "A-1"})
        case word:
            raise AssertionError(f"no plan is {word!r}")


# -- the Python snippets, as they stand --------------------------------------------------------------------------------
# Between the first line of a task and its last one is the documentation's text; only where it says "implement" is a
# count. `write_to_other_system` is what the documentation leaves to its reader.
# fmt: off


@restate.durable_task
async def call_an_llm(ctx):  # noqa: ANN001, ANN201  as the documentation has it
    """003:12-20, 004:6-14."""
    async def call_llm(prompt: str) -> str:
        # ... implement ...
        effects.hit("call_llm", prompt)
        return "llm response"

    # specify the (async) function to call and its arguments
    result = await ctx.run_typed("LLM call", call_llm, prompt="What is the weather?")

    # or use a lambda to capture a single value
    my_number = await ctx.run_typed("generate number", lambda: random.randint(0, 10))

    effects.hit("my_number", my_number)
    stumble(ctx)
    return result, my_number


async def write_to_other_system() -> str:
    return attempt_planned("write")


@restate.durable_task
async def write(ctx, plan: list[str]):  # noqa: ANN001, ANN201
    """003:37-58."""
    try:
        await ctx.run_typed(
            "write",
            write_to_other_system,
            restate.RunOptions(
                # Initial retry interval
                initial_retry_interval=timedelta(milliseconds=100),
                # Retry policies are exponential, the retry interval will double on each attempt
                retry_interval_factor=2.0,
                # Maximum retry interval
                max_retry_interval=timedelta(seconds=10),
                # Max duration of retries before giving up
                max_duration=timedelta(minutes=5),
                # Max attempts (including the initial) before giving up
                max_attempts=10,
            ),
        )
    except TerminalError as err:
        # Handle the terminal error after retries exhausted
        # For example, undo previous actions (see sagas guide) and
        # propagate the error back to the caller
        raise err
    return "written"


@restate.durable_task
async def write_with_older_names(ctx, plan: list[str]):  # noqa: ANN001, ANN201
    """004:18-27."""
    try:
        retry_opts = restate.RunOptions(
            max_attempts=10, max_retry_duration=timedelta(seconds=30)
        )
        await ctx.run_typed("write", write_to_other_system, retry_opts)
    except TerminalError as err:
        # Handle the terminal error after retries exhausted
        # For example, undo previous actions (see sagas guide) and
        # propagate the error back to the caller
        raise err
    return "written"


@restate.durable_task
async def draw_a_uuid(ctx):  # noqa: ANN001, ANN201
    """003:84, 003:94, 004:36, 004:42."""
    my_uuid = ctx.uuid()
    effects.hit("my_uuid", my_uuid)
    stumble(ctx, times=2)
    return str(my_uuid)


@restate.durable_task
async def draw_a_float(ctx):  # noqa: ANN001, ANN201
    """003:104, 004:48."""
    effects.hit("floats", (
    ctx.random().random()
    ))
    stumble(ctx, times=2)


@restate.durable_task
async def read_the_clock(ctx, plan: list[str]):  # noqa: ANN001, ANN201
    """003:114, 004:54."""
    current_time = await ctx.time()
    effects.hit("current_time", current_time)
    await ctx.run_typed("write", write_to_other_system, restate.RunOptions(initial_retry_interval=0.05))
    return current_time


# fmt: on


@restate.durable_task
def write_in_a_def_task(ctx: restate.DurableContext, plan: list[str]) -> str:
    """003:38 in a `def` task: the same verb, not awaited."""
    options = restate.RunOptions(initial_retry_interval=timedelta(milliseconds=100), max_attempts=10)
    return ctx.run_typed("write", attempt_planned, options, "write")


# -- each option by itself ---------------------------------------------------------------------------------------------


@restate.durable_task
def with_options(ctx: restate.DurableContext, plan: list[str], options: dict[str, Any]) -> list[Any]:
    """Run one step with these options; say what came out of it."""
    try:
        value = ctx.run("write", attempt_planned, restate.RunOptions(**options), "write")
    except TerminalError as error:
        return [type(error).__name__, error.status_code, getattr(error, "attempts", None)]
    return [value]


@restate.durable_task
def without_options(ctx: restate.DurableContext, plan: list[str]) -> str:
    """A failure is treated like one of the handler."""
    ctx.run("before", effects.hit, "before", ctx.task_id)
    return ctx.run("write", attempt_planned, "write")


@restate.durable_task
def failing_handler(ctx: restate.DurableContext, failures: int) -> int:
    """What a failure of the handler is."""
    ctx.run("before", effects.hit, "before", ctx.task_id)
    stumble(ctx, failures)
    return ctx.attempt


# -- a step is no place for the context --------------------------------------------------------------------------------


def use(ctx: Any, verb: str) -> Any:
    """Call one verb of a context; what it gives may have to be awaited."""
    effects.hit("use", ctx.task_id)
    return {
        "run": lambda: ctx.run("nested", effects.hit, "nested"),
        "run_typed": lambda: ctx.run_typed("nested", effects.hit, "nested"),
        "uuid": ctx.uuid,
        "random": ctx.random,
        "time": ctx.time,
        "now": ctx.now,
    }[verb]()


def use_and_swallow(ctx: Any, verb: str) -> str:
    """The same, with an action that hides its mistake."""
    with suppress(Exception):
        use(ctx, verb)
    return "nothing happened"


@restate.durable_task
def context_in_a_step(ctx: restate.DurableContext, verb: str) -> None:
    ctx.run("outer", use, ctx, verb)
    ctx.run("after", effects.hit, "after")


@restate.durable_task
async def context_in_an_async_step(ctx: restate.AsyncDurableContext, verb: str) -> None:
    async def outer() -> None:
        result = use(ctx, verb)
        if asyncio.iscoroutine(result):
            await result

    await ctx.run("outer", outer)
    await ctx.run("after", effects.hit, "after")


@restate.durable_task
async def context_in_a_threaded_step(ctx: restate.AsyncDurableContext, verb: str) -> None:
    await ctx.run("outer", use, ctx, verb)
    await ctx.run("after", effects.hit, "after")


@restate.durable_task
def context_in_a_step_that_swallows(ctx: restate.DurableContext, verb: str) -> None:
    ctx.run("outer", use_and_swallow, ctx, verb)
    ctx.run("after", effects.hit, "after")


@restate.durable_task
def attributes_in_a_step(ctx: restate.DurableContext) -> list[Any]:
    return ctx.run("read", lambda: [ctx.task_id, ctx.attempt, ctx.request.id, ctx.logger.name, ctx.is_replaying])


@restate.durable_task
def run_context(ctx: restate.DurableContext) -> dict[str, Any]:
    """000:21: what a step may use instead."""

    def look() -> dict[str, Any]:
        step = restate.current_step()
        step.logger.info("seen from inside of %s", step.name)
        effects.hit("look", step.idempotency_key)
        seen = {"name": step.name, "attempt": step.attempt, "task_id": step.task_id, "retries": step.request.retries}
        if step.attempt == 1:
            raise OSError("once")
        return seen

    first = ctx.run("look", look, restate.RunOptions(initial_retry_interval=0.02))
    second = ctx.run("look again", lambda: str(restate.current_step().idempotency_key))
    try:
        restate.current_step()
    except restate.DurableError as error:
        outside = type(error).__name__
    else:
        outside = "known"
    return {**first, "other_key": second, "outside": outside}


# -- what steps return -------------------------------------------------------------------------------------------------


class User(pydantic.BaseModel):
    id: str
    name: str


@dataclass
class Account:
    id: str
    balance: int


class Envelope:
    """A custom serializer: JSON in an envelope."""

    def serialize(self, obj: Any) -> bytes:
        return b"envelope:" + json.dumps(obj).encode()

    def deserialize(self, data: bytes) -> Any:
        return json.loads(data.removeprefix(b"envelope:"))


def read_repr(data: bytes) -> Any:
    return ast.literal_eval(data.decode())


kombu.serialization.register("repr", repr, read_repr, "application/x-python", "utf-8")


def user() -> User:
    return User(id="123", name="Alice")


def account() -> Account:
    return Account("A-1", 100)


def items() -> list[str]:
    return ["item1", "item2"]


def users() -> list[User]:
    return [user()]


def nothing() -> None:
    """A webhook, say."""


PAYLOADS: dict[str, tuple[Callable[[], Any], restate.RunOptions]] = {
    "string": (lambda: "Hello, World!", restate.RunOptions()),
    "json": (lambda: {"a": [1, 2.5, True, None]}, restate.RunOptions()),
    "model": (user, restate.RunOptions()),
    "model by type_hint": (lambda: User(id="123", name="Alice"), restate.RunOptions(type_hint=User)),
    "models": (users, restate.RunOptions()),
    "dataclass": (account, restate.RunOptions()),
    "slice": (items, restate.RunOptions()),
    "void": (nothing, restate.RunOptions()),
    "custom serializer": (lambda: {"a": 1}, restate.RunOptions(serializer=Envelope())),
    "registered serializer": (lambda: {"a": 1}, restate.RunOptions(serializer="repr")),
    "compressed": (lambda: "x" * 1000, restate.RunOptions(compression="zlib")),
}


def payload(kind: str) -> Any:
    effects.hit("payload", kind)
    return PAYLOADS[kind][0]()


@restate.durable_task
def return_payload(ctx: restate.DurableContext, kind: str) -> str:
    """Record a payload; say of every attempt what the step gave."""
    action, options = PAYLOADS[kind]

    def counted() -> Any:
        effects.hit("payload", kind)
        return action()

    counted.__annotations__ = action.__annotations__
    effects.hit("given", repr(ctx.run("payload", counted, options)))
    stumble(ctx)
    return repr(ctx.run("again", action, options))


# -- operations to be wrapped (001:14-20) and patterns (001:186-239) ---------------------------------------------------


def database() -> sqlite3.Connection:
    path = Path(os.environ[effects.FOLDER_VARIABLE]) / "users.sqlite"
    return sqlite3.connect(path)


def query_user(user_id: int) -> User:
    """001:190-199."""
    effects.hit("query_user", user_id)
    with closing(database()) as connection:
        row = connection.execute("SELECT id, name FROM users WHERE id = ?", (user_id,)).fetchone()
    if row is None:
        raise LookupError("sql: no rows in result set")
    return User(id=str(row[0]), name=row[1])


@restate.durable_task
def query_a_database(ctx: restate.DurableContext, user_id: int) -> dict[str, Any]:
    found = ctx.run("query user", query_user, user_id)
    effects.hit("found", found.name)
    stumble(ctx)
    return found.model_dump()


class ApiResponse(pydantic.BaseModel):
    served: int


def get_resource(url: str) -> ApiResponse:
    """001:204-215."""
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310
        return ApiResponse.model_validate_json(response.read())


@restate.durable_task
def call_an_http_api(ctx: restate.DurableContext, url: str) -> int:
    """001:27: the response of an HTTP request is recorded; a failed request is repeated."""
    response = ctx.run("get resource", get_resource, url)
    effects.hit("response", response.served)
    stumble(ctx)
    return response.served


@restate.durable_task
async def call_an_http_api_async(ctx: restate.AsyncDurableContext, url: str) -> int:
    """The same, from a task whose event loop does not wait for the request."""
    response = await ctx.run("get resource", get_resource, url)
    stumble(ctx)
    return response.served


@restate.durable_task
def post_webhook(ctx: restate.DurableContext, url: str) -> str:
    """001:88-92."""

    def post() -> None:
        urllib.request.urlopen(url, data=b"{}", timeout=10).close()  # noqa: S310

    assert ctx.run("webhook", post) is None
    stumble(ctx)
    return "posted"


class Receipt(pydantic.BaseModel):
    number: int
    amount: int


def charge(amount: int, card_token: str) -> Receipt:
    execution = effects.hit("charge", card_token)
    if execution <= 2:
        raise ConnectionError("payment service unavailable")
    return Receipt(number=execution, amount=amount)


@restate.durable_task
def payment(ctx: restate.DurableContext, amount: int, card_token: str) -> dict[str, int]:
    """001:221-227."""
    receipt = ctx.run(
        "payment-charge",
        charge,
        restate.RunOptions(max_duration=timedelta(minutes=3), initial_retry_interval=timedelta(milliseconds=500)),
        amount,
        card_token,
    )
    return receipt.model_dump()


@restate.durable_task
def idempotent_payment(ctx: restate.DurableContext, url: str) -> int:
    """001:234-238."""
    idempotency_key = str(ctx.uuid())

    def call_with_idempotency() -> int:
        headers = {"Idempotency-Key": idempotency_key}
        with urllib.request.urlopen(urllib.request.Request(url, b"{}", headers), timeout=10) as response:  # noqa: S310
            charged = json.load(response)["charged"]
        if effects.hit("reply lost", ctx.task_id) <= 2:
            raise TimeoutError("the reply was lost, the charge was not")
        return charged

    return ctx.run("charge", call_with_idempotency, restate.RunOptions(initial_retry_interval=0.02))


@restate.durable_task
def my_db_request(ctx: restate.DurableContext, plan: list[str]) -> str:
    """000:37-50: Go's options, under their Python names."""
    options = restate.RunOptions(
        # After 10 seconds, give up retrying
        max_duration=timedelta(seconds=10),
        # On the first retry, wait 100 milliseconds before next attempt
        initial_retry_interval=timedelta(milliseconds=100),
        # Grow retry interval with factor 2
        retry_interval_factor=2.0,
    )
    return ctx.run("my_db_request", attempt_planned, options, "db")


@restate.durable_task
def my_operation(ctx: restate.DurableContext, plan: list[str]) -> str:
    """001:134-141."""
    options = restate.RunOptions(
        max_duration=timedelta(minutes=5),
        initial_retry_interval=timedelta(seconds=1),
        retry_interval_factor=2.0,
    )
    return ctx.run("my-operation", attempt_planned, options, "operation")


@restate.durable_task
def names_that_do_not_exist(ctx: restate.DurableContext, option: str) -> None:
    """001:139-140 name options that no version of the Go library has."""
    ctx.run("my-operation", effects.hit, restate.RunOptions(**{option: 1}), "operation")


class UnrecoverableError(Exception):
    """What 001:120 calls unrecoverable."""


def fetch_external_data(recoverable: bool) -> str:
    execution = effects.hit("fetch", recoverable)
    if not recoverable:
        raise UnrecoverableError("gone")
    if execution < 3:
        raise ConnectionError("later")
    return f"data {execution}"


def fetch_or_give_up(recoverable: bool) -> str:
    """001:117-126: some errors are worth another try, some are not."""
    try:
        return fetch_external_data(recoverable)
    except UnrecoverableError as err:
        raise restate.TerminalError(err, 400) from err


@restate.durable_task
def distinguish_errors(ctx: restate.DurableContext, recoverable: bool) -> str:
    return ctx.run("fetch", fetch_or_give_up, recoverable)


@restate.durable_task
def non_retryable_errors(ctx: restate.DurableContext) -> list[Any]:
    """The same without a word in the action."""

    def fetch() -> str:
        effects.hit("fetch", ctx.task_id)
        raise UnrecoverableError("gone")

    options = restate.RunOptions(max_attempts=5, non_retryable=(UnrecoverableError,))
    try:
        return [ctx.run("fetch", fetch, options)]
    except TerminalError as error:
        effects.hit("caught", error.error_type)
        stumble(ctx)
        return [error.error_type, str(error), error.status_code]


@restate.durable_task
def saga(ctx: restate.DurableContext) -> str:
    """000:58, 003:55: undo previous actions, and propagate the error to the caller."""
    compensations: list[tuple[str, Callable[[str], int]]] = []

    def undo(what: str) -> int:
        return effects.hit("undo", what)

    def book(what: str) -> str:
        effects.hit("book", what)
        if what == "car":
            raise ConnectionError("no car")
        return what

    try:
        for what in ("flight", "hotel", "car"):
            compensations.append((what, undo))
            ctx.run(f"book {what}", book, restate.RunOptions(max_attempts=3, initial_retry_interval=0.02), what)
    except TerminalError:
        for what, compensation in reversed(compensations):
            ctx.run(f"undo {what}", compensation, what)
        stumble(ctx, times=3)  # the first attempt after the compensations fails, too
        raise
    return "booked"


@restate.durable_task
def slow_step(ctx: restate.DurableContext) -> str:
    """000:64: business logic that takes its time."""

    def slow() -> str:
        effects.hit("slow", ctx.task_id)
        effects.block("slow")
        return "at last"

    return ctx.run("slow", slow)


# -- context propagation (000:71-107) ----------------------------------------------------------------------------------

user_id: ContextVar[str] = ContextVar("user_id", default="nobody")


def process_with_user_id() -> str:
    return user_id.get()


async def process_with_user_id_async() -> str:
    await asyncio.sleep(0)
    return user_id.get()


@restate.durable_task
def with_value(ctx: restate.DurableContext) -> list[str]:
    user_id.set("user-123")
    seen = [ctx.run("sync", process_with_user_id), ctx.run("async", process_with_user_id_async)]
    stumble(ctx)
    return [*seen, ctx.run("after", process_with_user_id)]


@restate.durable_task
async def with_value_async(ctx: restate.AsyncDurableContext) -> list[str]:
    user_id.set("user-123")
    seen = [await ctx.run("in a thread", process_with_user_id), await ctx.run("async", process_with_user_id_async)]
    stumble(ctx)
    return [*seen, await ctx.run("after", process_with_user_id)]


@restate.durable_task
def value_of_another_task(ctx: restate.DurableContext) -> str:
    return ctx.run("read", process_with_user_id)


# -- deterministic helpers ---------------------------------------------------------------------------------------------


@restate.durable_task
def draw(ctx: restate.DurableContext) -> dict[str, Any]:
    """000:119, 000:131-133, 001:155, 001:164-181, 002:45, 002:51-53."""
    drawn: dict[str, Any] = {
        "uuids": [str(ctx.uuid()), str(ctx.uuid())],
        "uint64": ctx.random().getrandbits(64),
        "float64": ctx.random().random(),
        "between": [ctx.random().random() for _ in range(100)],
        # restate.RandSource(ctx) feeds a generator of one's own, as rand.NewPCG(rng.Uint64(), rng.Uint64()) does
        "fed": random.Random(ctx.random().getrandbits(128)).sample(range(1000), 5),
        "named": ctx.random("faker").choices("abcdef", k=8),
        "shuffled": ctx.random().sample(range(10), 10),
    }
    effects.hit("drawn", json.dumps(drawn))
    stumble(ctx, times=2)
    return drawn


@restate.durable_task
def draw_uuids_and_numbers(ctx: restate.DurableContext) -> None:
    """Neither depends on how many of the other kind were drawn before, or replayed."""
    for _ in range(ctx.attempt):
        ctx.random("more").random()
    effects.hit("uuid", ctx.uuid())
    effects.hit("number", ctx.random().random())
    stumble(ctx)


@restate.durable_task
def read_clocks(ctx: restate.DurableContext) -> list[Any]:
    """003:111: several readings, each its own, all the same on every attempt."""
    first, second = ctx.time(), ctx.time()
    now = ctx.now()
    ctx.run("between", effects.hit, "between")
    third = ctx.time()
    readings = [first, second, now.isoformat(), third]
    effects.hit("readings", json.dumps(readings))
    ctx.run("stumble", attempt_twice, restate.RunOptions(initial_retry_interval=0.05))
    return readings


def attempt_twice() -> None:
    if restate.current_step().attempt == 1:
        raise OSError("the first execution fails")


# -- best practices (001:241-249) and what not to do (001:251-277) -----------------------------------------------------


def fetch_data() -> str:
    return f"data {effects.hit('fetch_data')}"


@restate.durable_task
def always_use_run(ctx: restate.DurableContext) -> None:
    """001:243: what is not wrapped is done again by every attempt."""
    effects.hit("wrapped", ctx.run("fetch", fetch_data))
    effects.hit("unwrapped", f"data {effects.hit('fetch_unwrapped')}")
    stumble(ctx)


@restate.durable_task
def keep_run_functions_small(ctx: restate.DurableContext) -> None:
    """001:244: of two steps the finished one is not repeated; of one with both duties, both are."""

    def reserve() -> None:
        effects.hit("reserve")

    def send() -> None:
        if effects.hit("send") == 1:
            raise ConnectionError("mail server")

    def reserve_and_send() -> None:
        effects.hit("reserve in one")
        if effects.hit("send in one") == 1:
            raise ConnectionError("mail server")

    ctx.run("reserve", reserve)
    ctx.run("send", send)
    ctx.run("both", reserve_and_send)


@restate.durable_task
def uuids_bad_and_good(ctx: restate.DurableContext) -> None:
    """001:254-258."""
    # BAD: Using non-deterministic UUID
    effects.hit("bad", uuid.uuid4())
    # GOOD: Using deterministic UUID
    effects.hit("good", ctx.uuid())
    stumble(ctx)


@restate.durable_task
def random_bad_and_good(ctx: restate.DurableContext) -> None:
    """001:260-265."""
    # BAD: Using standard random
    effects.hit("bad", random.randrange(2**64))
    # GOOD: Using deterministic random
    rng = ctx.random()
    effects.hit("good", rng.getrandbits(64))
    stumble(ctx)


@restate.durable_task
def parent_context_bad(ctx: restate.DurableContext) -> None:
    """001:267-270: accessing the parent context."""

    def bad() -> str:
        effects.hit("bad")
        return ctx.run("key", lambda: "value")  # ERROR! Wrong context

    ctx.run("bad", bad)


@restate.durable_task
def parent_context_good(ctx: restate.DurableContext) -> str:
    """001:272-276: only the run context inside of a step."""

    def good() -> str:
        step = restate.current_step()
        return f"{fetch_data()} for {step.name}"

    seen = ctx.run("good", good)
    stumble(ctx)
    return seen


@restate.durable_task
def timeouts_by_criticality(ctx: restate.DurableContext) -> dict[str, int]:
    """001:249: each operation has its own policy."""

    def down(what: str) -> None:
        effects.hit(what)
        raise ConnectionError(what)

    attempts = {}
    for what, most in (("newsletter", 1), ("invoice", 4)):
        try:
            ctx.run(what, down, restate.RunOptions(max_attempts=most, initial_retry_interval=0.02), what)
        except restate.RetriesExhausted as error:
            attempts[what] = error.attempts
    return attempts


@restate.durable_task
def fetch_user_data(ctx: restate.DurableContext, user: str) -> str:
    """001:284-286."""

    def fetch() -> str:
        if effects.hit("fetch", user) == 1:
            raise ConnectionError("users are away")
        return user

    fetched = ctx.run("fetch-user-data", fetch, restate.RunOptions(max_attempts=3, initial_retry_interval=0.02))
    stumble(ctx, times=2)
    return fetched


@restate.durable_task
def time_spent(ctx: restate.DurableContext) -> float:
    """Wall time is one more thing that has to be wrapped (001:19)."""
    effects.hit("wrapped clock", ctx.run("clock", time.time))
    stumble(ctx)
    return ctx.run("clock again", time.time)
