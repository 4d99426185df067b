"""The tasks of the golden journals. Their bodies are never changed: the journals beside them are of these."""

import asyncio
import json
import os
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from math import nan
from typing import Any
from uuid import UUID

from celery import Celery
from celery.exceptions import Ignore
from pydantic import BaseModel

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
    RetriesExhausted,
    RetryPolicy,
    RunOptions,
    TaskCancelled,
    TerminalError,
    durable_task,
)

executed: list[str] = []
"""The actions that this process has executed."""
broken: set[str] = set()
"""Those that fail for now: while journals are recorded."""


def app_with(journal: str) -> Celery:
    """Return an app that has these tasks, and its journals there."""
    app = Celery("golden", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(
        durable_redis_url=journal,
        accept_content=["json", "pickle"],
        result_accept_content=["json"],
        task_ignore_result=False,
    )
    app.finalize()
    return app


# -- actions -----------------------------------------------------------------------------------------------------------


def act(name: str, value: Any = "done") -> Any:
    executed.append(name)
    if name in broken:
        raise ConnectionError(f"{name} is broken")
    return value


def fail(name: str, error: BaseException) -> None:
    executed.append(name)
    raise error


def die(name: str) -> str:
    executed.append(name)
    if name in broken:
        os._exit(1)
    return "survived"


class Size(Enum):
    """Of a parcel."""

    SMALL = "s"
    LARGE = "l"


class Item(BaseModel):
    """Of an order."""

    sku: str
    price: Decimal
    sent: datetime | None = None


class Letter(BaseModel):
    """Has what a parcel has."""

    weight: int


class Parcel(BaseModel):
    """Has what a letter has."""

    weight: int


@dataclass
class Route:
    """Which way."""

    stops: list[str]
    size: Size
    opened: bytes


class Declined(TerminalError):
    """A terminal error of the user's own."""


class Reversed:
    """A serializer of the user's own."""

    def serialize(self, value: Any) -> bytes:
        return json.dumps(value).encode()[::-1]

    def deserialize(self, data: bytes) -> Any:
        return json.loads(data[::-1])


def items() -> list[Item]:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    return act("items", [Item(sku="a", price=Decimal("1.10"), sent=at), Item(sku="b", price=Decimal(2))])


def route() -> Route:
    return act("route", Route(["x", "y"], Size.LARGE, b"\x00\xff"))


def sending() -> Letter | Parcel:
    return act("sending", Parcel(weight=7))


def size() -> Size:
    return act("size", Size.SMALL)


def pair() -> tuple[int, str]:
    return act("pair", (1, "one"))


PLAIN = {"text": 'Zoë ☃ "quoted" \\ ,"value":1', "n": 1, "f": 0.1, "none": None, "list": [True, [], {}]}
TAGGED = [
    datetime(2026, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001
    datetime(2026, 1, 2, tzinfo=timezone.utc),
    date(2026, 1, 2),
    timedelta(days=1, microseconds=5),
    UUID(int=7),
    Decimal("1.20"),
    b"\x00\xff",
    {1, 2},
    float("inf"),
]

# -- tasks -------------------------------------------------------------------------------------------------------------

EVERY = timedelta(seconds=3600)
BY_STEP = RunOptions(initial_retry_interval=3600, max_attempts=5)
ONCE = RunOptions(max_attempts=1)


@durable_task(name="golden.values")
def values(ctx: DurableContext, order: str) -> str:
    """Every way in which a value is kept."""
    seen: list[Any] = [
        ctx.run("plain", act, "plain", PLAIN),
        ctx.run("tagged", act, "tagged", TAGGED),
        ctx.run("nan", act, "nan", nan),
        ctx.run("nothing", act, "nothing", None),
        ctx.run("items", items),
        ctx.run("route", route),
        ctx.run("sending", sending),
        ctx.run("size", size),
        ctx.run("pair", pair),
        ctx.run("hinted", act, RunOptions(type_hint=list[Item]), "hinted", [Item(sku="h", price=Decimal(3))]),
        ctx.run("compressed", act, RunOptions(compression="zlib"), "compressed", {"long": "x" * 500}),
        ctx.run("pickled", act, RunOptions(serializer="pickle"), "pickled", Size.LARGE),
        ctx.run("custom", act, RunOptions(serializer=Reversed()), "custom", [1, {"a": None}]),
        ctx.run("custom, compressed", act, RunOptions(serializer=Reversed(), compression="bzip2"), "both", "y" * 50),
        ctx.run('quoted " \\ name ☃', act, "quoted", order),
        ctx.run("limited", act, BY_STEP, "limited", 1),
    ]
    ctx.sleep(EVERY)
    return f"{list(map(_shown, seen))} {ctx.run('after', act, 'after')}"


def _shown(value: Any) -> str:
    models = isinstance(value, list) and all(isinstance(each, BaseModel) for each in value)
    return str([each.model_dump_json() for each in value]) if models else repr(value)


@durable_task(name="golden.draws")
def draws(ctx: DurableContext) -> list[str]:
    """Seed, draws, and waits: one that is over, and one that is not."""
    before = [ctx.uuid(), ctx.random().random(), ctx.random("named").random(), ctx.time(), ctx.now()]
    ctx.sleep(0, "short")
    ctx.run("between", act, "between")
    ctx.sleep(EVERY, "long")
    after = [ctx.uuid(), ctx.random().random(), ctx.random("named").random()]
    return [*map(repr, [*before, *after]), str(ctx.run("after", act, "after"))]


@durable_task(name="golden.failures")
def failures(ctx: DurableContext) -> list[str]:
    """Every way in which a step ends badly, each caught; then one that is to be tried again."""
    seen = []
    for name, action, args, options in (
        ("terminal", fail, ("terminal", TerminalError("no", 402, {"bank": ["b"], "value": 1})), RunOptions()),
        ("declined", fail, ("declined", Declined("card", 409)), RunOptions()),
        ("never", fail, ("never", KeyError("k")), RunOptions(non_retryable=(KeyError,), max_attempts=3)),
        ("spent", fail, ("spent", ValueError("v")), ONCE),
    ):
        try:
            ctx.run(name, action, options, *args)
        except RetriesExhausted as error:
            seen.append(f"exhausted {error} {error.attempts} {error.last_error_type}")
        except TerminalError as error:
            seen.append(f"{type(error).__name__} {error} {error.status_code} {error.metadata} {error.error_type}")
    return [*seen, ctx.run("again", act, BY_STEP, "again")]


@durable_task(name="golden.policy", task_retry_policy=RetryPolicy(initial_retry_interval=3600, max_attempts=3))
def policy(ctx: DurableContext) -> str:
    """A step that the task's policy retries, and that spends it."""
    ctx.run("before", act, "before")
    return str(ctx.run("flaky", act, "flaky"))


@durable_task(name="golden.dies")
def dies(ctx: DurableContext) -> str:
    """Processes die: one between two steps, one in a step whose executions are counted."""
    ctx.uuid()
    first = ctx.run("first", act, "first")
    return f"{first} {ctx.run('deadly', die, RunOptions(max_attempts=4), 'deadly')}"


@durable_task(name="golden.cancelled")
def cancelled(ctx: DurableContext) -> str:
    """Undone where it is cancelled."""
    try:
        ctx.run("reserve", act, "reserve")
        ctx.sleep(EVERY, "patience")
    except TaskCancelled:
        ctx.run("undo", act, BY_STEP, "undo")
        raise
    return str(ctx.run("charge", act, "charge"))


@durable_task(name="golden.branches")
async def branches(ctx: AsyncDurableContext) -> str:
    """Coroutines side by side, nested ones among them, each with steps, draws and a wait."""

    async def branch(name: str, inner: bool = True) -> list[Any]:
        seen = [await ctx.run(f"{name} first", act, f"{name} first", name), str(ctx.uuid()), ctx.random().random()]
        if inner:
            seen += await asyncio.gather(*(branch(f"{name} {place}", inner=False) for place in "xy"))
        await ctx.sleep(EVERY, f"{name} waits")
        return [*seen, await ctx.run(f"{name} last", act, f"{name} last", name)]

    begun = await ctx.run("begin", act, "begin")
    # One after the other as they are made: each begins with the context at once.
    both = await asyncio.gather(branch("a"), branch("b"), ctx.run("beside", act, "beside"))
    return f"{begun} {both!r} {await ctx.run('end', act, 'end')}"


@durable_task(name="golden.changed", bind=True)
def changed(self: Any, ctx: DurableContext, number: int) -> list[int]:
    """Goes on with other arguments."""
    first: int = ctx.run("number", act, "number", number)
    if number == 1:
        raise self.retry(args=[2], countdown=3600)
    return [first, number]


@durable_task(name="golden.ignored")
def ignored(ctx: DurableContext) -> None:
    """Ends as Celery's Ignore."""
    ctx.run("before", act, "before")
    raise Ignore


@durable_task(name="golden.succeeds")
def succeeds(ctx: DurableContext) -> dict[str, Any]:
    """Has an outcome to keep."""
    return {"kept": ctx.run("before", act, "before"), "id": str(ctx.uuid())}


@durable_task(name="golden.fails")
def fails(ctx: DurableContext) -> str:
    """Ends terminally, unless it is mended and retried."""
    ctx.run("before", act, "before")
    return str(ctx.run("last", refuse, "last"))


def refuse(name: str) -> str:
    executed.append(name)
    if name in broken:
        raise TerminalError("refused", 410, {"by": name})
    return "mended"
