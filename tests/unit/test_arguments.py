"""Arguments that do not fit fail at once; models among them are validated once for all attempts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date
from typing import Any, ClassVar

import pydantic
import pytest
from celery import Celery, states

from celery_durable import (
    DurableContext,
    DurableTask,
    TerminalError,
    durable_task,
)
from tests.unit.conftest import Action
from tests.unit.tasks import SLOW, failure_of

pytestmark = pytest.mark.usefixtures("app")


def test_arguments_that_do_not_fit_fail_at_once() -> None:
    entered = Action(1)

    @durable_task
    def order(ctx: DurableContext, number: int) -> Any:
        return entered()

    assert order.apply((1, 2)).state == states.FAILURE
    assert order.apply(()).state == states.FAILURE
    assert entered.executions == 0


class Order(pydantic.BaseModel):
    number: int


def test_models_among_the_parameters_are_validated() -> None:
    seen: list[Any] = []

    @durable_task
    def place(ctx: DurableContext, order: Order, times: int = 1) -> Order:
        seen.append(order)
        return order

    assert place.apply(({"number": "5"},)).result == {"number": 5}
    assert seen == [Order(number=5)]
    failed = place.apply(({"number": "five"},))
    assert "number" in str(failure_of(failed, TerminalError))
    assert len(seen) == 1


class Stay(pydantic.BaseModel):
    """To begin in the future: as long as nothing was paid."""

    begins: date
    at: float = pydantic.Field(default_factory=time.monotonic)

    @pydantic.field_validator("begins")
    @classmethod
    def is_to_come(cls, begins: date) -> date:
        if Stay.paid:
            raise ValueError("in the past")
        return begins

    paid: ClassVar[list[str]] = []


@pytest.fixture
def unpaid() -> Iterator[None]:
    Stay.paid.clear()
    yield
    Stay.paid.clear()


@pytest.mark.parametrize("base", [False, True], ids=["durable_task", "base=DurableTask"])
def test_a_model_that_was_accepted_is_accepted_by_later_attempts(app: Celery, unpaid: None, base: bool) -> None:
    seen: list[Any] = []
    review = Action(OSError(), OSError(), "done")

    def book(self: Any, stay: Stay, more: Stay | None = None) -> Any:
        seen.append((stay, more))
        self.run("pay", lambda: Stay.paid.append("paid"))
        return self.run("review", review, SLOW)

    def book_by_class(self: Any, stay: Stay, more: Stay | None = None) -> Any:
        return book(self.ctx, stay, more)

    made = app.task(base=DurableTask, bind=True, pydantic=True)(book_by_class) if base else durable_task(book)
    sent = {"begins": "2026-01-31"}
    assert made.apply((sent, sent)).result == "done"
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2], "also what a default factory made"
    assert seen[0][0].begins == date(2026, 1, 31)
    assert Stay.paid == ["paid"]


def test_a_model_that_was_refused_is_refused_again(app: Celery, unpaid: None) -> None:
    Stay.paid.append("paid")

    @durable_task
    def book(ctx: DurableContext, stay: Stay) -> None:
        raise AssertionError("it ran")

    for _ in range(2):
        assert "in the past" in str(failure_of(book.apply(({"begins": "2026-01-31"},)), TerminalError))


class Secretive(Stay):
    token: pydantic.SecretStr


def test_a_model_that_cannot_be_recorded_is_accepted_all_the_same(app: Celery, unpaid: None) -> None:
    seen: list[Any] = []
    review = Action(OSError(), "done")

    @durable_task
    def book(ctx: DurableContext, stay: Secretive) -> Any:
        seen.append(stay.token.get_secret_value())
        ctx.run("pay", lambda: Stay.paid.append("paid"))
        return ctx.run("review", review, SLOW)

    assert book.apply(({"begins": "2026-01-31", "token": "t0p"},)).result == "done"
    assert seen == ["t0p", "t0p"]
