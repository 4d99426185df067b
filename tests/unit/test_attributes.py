"""`ctx.set_attributes`: short texts by which people find a run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from celery_durable import AsyncDurableContext, DurableContext, InvalidStepError, durable_task
from celery_durable.exceptions import JournalUnreadableError
from celery_durable.interrupts import EndRun
from celery_durable.journal.attributes import pair_text
from tests.unit.conftest import Action, Run


@pytest.fixture
def written(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the attributes that were written, the oldest first."""
    texts: list[str] = []
    send = run.journal.send

    def watched(fields: Mapping[str, str], **options: Any) -> None:
        texts.extend(text for name, text in fields.items() if name == "attributes")
        send(fields, **options)

    monkeypatch.setattr(run.journal, "send", watched)
    return texts


def test_attributes_are_written_with_what_comes_next(run: Run, written: list[str]) -> None:
    ctx = run.attempt()

    ctx.set_attributes(order="o1")
    ctx.set_attributes(customer="ann", order="o2")
    assert written == []
    ctx.run("one", Action(1))

    assert written == ['{"order":"o2","customer":"ann"}']


def test_attributes_without_a_step_are_written_at_the_end(run: Run) -> None:
    run.attempt().set_attributes(order="o1")

    run.end()

    assert run.entry("attributes") == {"order": "o1"}


def test_later_attributes_stay_beside_earlier_ones(run: Run) -> None:
    run.attempt().set_attributes(order="o1", state="new")
    run.attempt().set_attributes(state="paid")
    run.end()

    assert run.entry("attributes") == {"order": "o1", "state": "paid"}


def test_a_replay_costs_no_write(run: Run, written: list[str]) -> None:
    def body(ctx: DurableContext) -> None:
        ctx.set_attributes(order="o1", state="new")
        ctx.run("pay", Action(1))
        ctx.set_attributes(state="paid")
        ctx.run("ship", Action(2))

    for _ in range(3):
        body(run.attempt())
        run.end()

    assert written == ['{"order":"o1","state":"new"}', '{"order":"o1","state":"paid"}']


def test_what_is_set_back_is_written_again(run: Run, written: list[str]) -> None:
    ctx = run.attempt()
    for number, state in enumerate(["new", "paid", "paid", "new"]):
        ctx.set_attributes(state=state)
        ctx.run(f"step {number}", Action(1))

    assert written == ['{"state":"new"}', '{"state":"paid"}', '{"state":"new"}']


def test_an_async_task_sets_them_without_await(run: Run) -> None:
    async def body() -> None:
        ctx = run.async_attempt()
        ctx.set_attributes(order="o1")
        await ctx.run("one", Action(1))

    asyncio.run(body())

    assert run.entry("attributes") == {"order": "o1"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"order": 7}, r"the value of an attribute is a text of up to 256 characters, got 'order': 7"),
        ({"order": None}, r"got 'order': None"),
        ({"order": "o" * 257}, r"got 'order': 'oooo"),
        ({"n" * 257: "o1"}, r"the name of an attribute is a text of up to 256 characters, got 'nnnn"),
        ({"order": "\ud800"}, r"got 'order': '\\ud800'"),
        ({f"n{number}": "x" for number in range(17)}, r"a run has up to 16 attributes, and these would be 17"),
    ],
)
def test_what_is_no_short_text_ends_the_run(run: Run, wrong: dict[str, Any], said: str) -> None:
    ctx = run.attempt()

    with pytest.raises(EndRun) as ended:
        ctx.set_attributes(**wrong)

    assert type(ended.value.error) is InvalidStepError
    with pytest.raises(InvalidStepError, match=rf"^task task-1: .*{said}.*: write ctx.set_attributes\(order=\"o1\"\)$"):
        raise ended.value.error


def test_attributes_of_earlier_attempts_count(run: Run) -> None:
    run.attempt().set_attributes(**{f"n{number}": "x" for number in range(16)})
    ctx = run.attempt()

    ctx.set_attributes(n0="y")
    with pytest.raises(EndRun, match="these would be 17"):
        ctx.set_attributes(further="x")


def test_a_damaged_field_is_told(run: Run) -> None:
    ctx = run.attempt()
    run.end()
    run.journal.fields[b"attributes"] = b'{"order'
    ctx = run.attempt()

    with pytest.raises(EndRun) as ended:
        ctx.set_attributes(order="o1")

    assert type(ended.value.error) is JournalUnreadableError
    assert "entry attributes is damaged" in str(ended.value.error)


@pytest.mark.usefixtures("app")
def test_eager_and_direct_calls_take_them() -> None:
    @durable_task(name="attributes.sync")
    def sync(ctx: DurableContext) -> int:
        ctx.set_attributes(order="o1")
        return 1

    @durable_task(name="attributes.in_async")
    async def in_async(ctx: AsyncDurableContext) -> int:
        ctx.set_attributes(order="o1")
        return 1

    assert (sync(), sync.apply().result, in_async.apply().result, in_async()) == (1, 1, 1, 1)


def test_a_pair_is_found_in_the_text_of_all(run: Run) -> None:
    attributes = {"order": "o1", "said": 'a "quoted", word\\', "näme": "wert"}
    run.attempt().set_attributes(**attributes)
    run.end()

    text = run.journal.fields[b"attributes"].decode()

    assert all(pair_text(*pair) in text for pair in attributes.items())
    assert pair_text("order", "o") not in text
    assert pair_text("rder", "o1") not in text
