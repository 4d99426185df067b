"""What can never work ends the run at once, by name."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from celery_durable import (
    ConfigurationError,
    ContextInStepError,
    DurableContext,
    EntryNotRecordableError,
    InvalidStepError,
    RunOptions,
)
from tests.unit.tasks import applied, failure_of

pytestmark = pytest.mark.usefixtures("app")


def wrong_name(ctx: DurableContext) -> None:
    ctx.run(wrong_name)


def wrong_arguments(ctx: DurableContext) -> None:
    ctx.run("max", lambda: 1, max_attempts=5)


def nested(ctx: DurableContext) -> None:
    ctx.run("outer", lambda: ctx.run("inner", lambda: 1))


def swallowing(ctx: DurableContext) -> None:
    def swallow() -> None:
        with suppress(BaseException):
            ctx.uuid()

    ctx.run("outer", swallow)


def opaque(ctx: DurableContext) -> None:
    ctx.run("make", object)


def wrong_serializer(ctx: DurableContext) -> None:
    ctx.run("make", lambda: 1, RunOptions(serializer="nonsense"))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (wrong_name, InvalidStepError),
        (wrong_arguments, InvalidStepError),
        (nested, ContextInStepError),
        (swallowing, ContextInStepError),
        (opaque, EntryNotRecordableError),
        (wrong_serializer, ConfigurationError),
    ],
    ids=lambda value: value.__name__,
)
def test_an_error_of_the_code_ends_the_run_at_once_and_by_name(body: Any, kind: type[Exception]) -> None:
    attempts = []

    def counted(ctx: DurableContext) -> None:
        attempts.append(ctx.attempt)
        body(ctx)

    assert counted.__name__ == "counted"
    failure_of(applied(counted), kind)
    assert attempts == [1]


def test_a_wrong_option_inside_the_body_does_not_retry_the_task() -> None:
    attempts = []

    def body(ctx: DurableContext) -> None:
        attempts.append(ctx.attempt)
        ctx.run("step", lambda: 1, RunOptions(max_retries=3))

    failure_of(applied(body), ConfigurationError)
    assert attempts == [1]
