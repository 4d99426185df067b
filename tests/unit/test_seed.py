"""What a context draws is the same on every attempt: ids, random numbers, and readings of the clock."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_durable import (
    AsyncDurableContext,
    DurableContext,
)
from tests.unit.conftest import VERBS, Action, Run

programs = st.lists(st.sampled_from(sorted(VERBS)), max_size=20)


def values(ctx: DurableContext, program: list[str]) -> list[tuple[str, Any]]:
    return [(verb, VERBS[verb](ctx)) for verb in program]


@given(programs, st.integers(2, 4))
def test_every_value_is_the_same_on_every_attempt(program: list[str], attempts: int) -> None:
    run = Run()
    first = values(run.attempt(), program)
    for _ in range(attempts - 1):
        assert values(run.attempt(), program) == first


@given(programs, programs, st.sampled_from(sorted(set(VERBS) - {"step"})))
def test_calls_of_one_kind_may_come_and_go_without_changing_the_others(
    before: list[str], after: list[str], kind: str
) -> None:
    run = Run()
    first = values(run.attempt(), [*before, kind, kind, *after])
    without = values(run.attempt(), [verb for verb in [*before, *after] if verb != kind])
    assert without == [pair for pair in first if pair[0] != kind]
    run.reach_the_end()


@given(programs)
def test_what_is_drawn_before_a_step_starts_outlives_the_process(program: list[str]) -> None:
    run = Run()
    ctx = run.attempt()
    first = values(ctx, program)
    with pytest.raises(KeyboardInterrupt):
        ctx.run("killed", Action(KeyboardInterrupt()))
    run.die()
    assert values(run.attempt(), program) == first


def test_a_uuid_is_of_version_four_and_no_two_are_equal(run: Run) -> None:
    ctx = run.attempt()
    drawn = [ctx.uuid() for _ in range(100)]
    assert len(set(drawn)) == 100
    assert {(one.version, one.variant) for one in drawn} == {(4, "specified in RFC 4122")}


def test_each_uuid_is_shown_in_the_journal(run: Run) -> None:
    ctx = run.attempt()
    drawn = [str(ctx.uuid()), str(ctx.uuid())]
    run.end()
    assert [run.journal.fields[f"uuid:{n}".encode()].decode() for n in (1, 2)] == drawn


def test_other_runs_draw_other_values() -> None:
    drawn = [(ctx.uuid(), ctx.random().random()) for ctx in (Run().attempt(), Run().attempt())]
    assert len({*drawn[0], *drawn[1]}) == 4


def test_random_is_one_generator_and_each_name_another(run: Run) -> None:
    ctx = run.attempt()
    assert isinstance(ctx.random(), random.Random)
    assert ctx.random() is ctx.random()
    assert ctx.random("a") is ctx.random("a")
    assert len({ctx.random().random(), ctx.random("a").random(), ctx.random("b").random()}) == 3


def test_time_is_in_milliseconds_and_now_is_aware(run: Run) -> None:
    ctx = run.attempt()
    before = time.time_ns() // 1_000_000
    reading, now = ctx.time(), ctx.now()
    assert type(reading) is int
    assert before <= reading <= time.time_ns() // 1_000_000
    assert now.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - now) < timedelta(minutes=1)


def test_a_reading_of_the_clock_is_sent_before_an_action_starts(run: Run) -> None:
    ctx = run.attempt()
    reading, now, uuid = ctx.time(), ctx.now(), ctx.uuid()
    assert run.names("time") == run.names("uuid") == []
    seen: list[Any] = []
    ctx.run("look", lambda: seen.append({kind: run.names(kind) for kind in ("time", "now", "uuid")}))
    assert seen == [{"time": ["time:1"], "now": ["now:1"], "uuid": ["uuid:1"]}]
    run.die()
    ctx = run.attempt()
    assert (ctx.time(), ctx.now(), ctx.uuid()) == (reading, now, uuid)


def test_what_is_drawn_last_is_written_when_the_attempt_ends(run: Run) -> None:
    reading = run.attempt().time()
    assert run.attempt().time() == reading


def test_an_async_context_draws_the_same_values(run: Run) -> None:
    ctx = run.attempt()
    drawn = (ctx.uuid(), ctx.random().random(), ctx.random("a").random(), ctx.time(), ctx.now())

    async def body(ctx: AsyncDurableContext) -> tuple[Any, ...]:
        return ctx.uuid(), ctx.random().random(), ctx.random("a").random(), await ctx.time(), await ctx.now()

    assert asyncio.run(body(run.async_attempt())) == drawn
