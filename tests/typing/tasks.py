"""Tasks keep the parameters and the result of their functions; checked by mypy and pyright, never run."""

from typing import Any

from celery import Celery
from celery.canvas import Signature
from celery.result import AsyncResult
from typing_extensions import assert_type

from celery_durable import AsyncDurableContext, DurableContext, DurableTask, RetryPolicy, durable_task

app = Celery("typing")


@durable_task
def bare(ctx: DurableContext, order: int, *, fast: bool = False) -> str:
    return "done"


@durable_task(name="shop.options", task_retry_policy=RetryPolicy(max_attempts=3), queue="slow")
def options(ctx: DurableContext, order: int, *, fast: bool = False) -> str:
    return "done"


@durable_task(bind=True)
def bound(self: DurableTask[Any, Any], ctx: DurableContext, order: int, *, fast: bool = False) -> str:
    return "done"


@durable_task
async def bare_async(ctx: AsyncDurableContext, order: int, *, fast: bool = False) -> str:
    return "done"


@durable_task(max_retries=3)
async def options_async(ctx: AsyncDurableContext, order: int, *, fast: bool = False) -> str:
    return "done"


@durable_task(bind=True)
async def bound_async(self: DurableTask[Any, Any], ctx: AsyncDurableContext, order: int, *, fast: bool = False) -> str:
    return "done"


def of_a_bare_task() -> None:
    assert_type(bare(5, fast=True), str)
    assert_type(bare.delay(5), AsyncResult[str])
    assert_type(bare.delay(5, fast=True).get(), str)
    assert_type(bare.apply_async((5,), {"fast": True}, countdown=3), AsyncResult[str])
    assert_type(bare.s(5), Signature[str])
    assert_type(bare.si(5, fast=True), Signature[str])
    bare.delay()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bare.delay("five")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bare.delay(5, slow=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bare("five")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bare.delay(5).no_such_thing  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018


def of_a_task_with_options() -> None:
    assert_type(options(5, fast=True), str)
    assert_type(options.delay(5), AsyncResult[str])
    assert_type(options.apply_async((5,)), AsyncResult[str])
    assert_type(options.s(5), Signature[str])
    options.delay("five")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def of_a_bound_task() -> None:
    assert_type(bound(5, fast=True), str)
    assert_type(bound.delay(5), AsyncResult[str])
    assert_type(bound.apply_async((5,)), AsyncResult[str])
    assert_type(bound.s(5), Signature[str])
    bound.delay("five")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def of_async_tasks() -> None:
    assert_type(bare_async(5, fast=True), str)
    assert_type(bare_async.delay(5), AsyncResult[str])
    assert_type(bare_async.apply_async((5,)), AsyncResult[str])
    assert_type(bare_async.s(5), Signature[str])
    assert_type(options_async.delay(5, fast=True), AsyncResult[str])
    assert_type(bound_async.delay(5), AsyncResult[str])
    assert_type(bound_async.s(5), Signature[str])
    bare_async.delay("five")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    options_async.delay()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bound_async.delay(5, slow=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def without_a_context() -> None:
    @durable_task  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    def plain(order: int) -> str:
        return "done"


class Billing(DurableTask[[int], str]):
    """A task with a class of its own."""

    def run(self, order: int) -> str:
        return "done"


def of_a_class_based_task() -> None:
    billing = app.register_task(Billing())
    assert_type(billing.delay(5), AsyncResult[str])


@durable_task(app=app)
def of_one_app(ctx: DurableContext, order: int) -> str:
    return "done"


@durable_task(bind=True, app=app, queue="slow")
async def bound_of_one_app(self: DurableTask[Any, Any], ctx: AsyncDurableContext, order: int) -> str:
    return "done"


def of_tasks_of_one_app() -> None:
    assert_type(of_one_app.delay(5), AsyncResult[str])
    assert_type(bound_of_one_app.s(5), Signature[str])
    durable_task(app="shop")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
