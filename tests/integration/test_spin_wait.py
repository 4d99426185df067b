"""Which replies a thread, or a coroutine, looks for before it sleeps."""

import asyncio
from typing import Any

import pytest

from celery_durable.drivers import on_loop
from celery_durable.redis.client.spin_wait import SpinWait
from tests.integration.runs import app_at, execute, new_id, opened, store_at, task_of


def test_the_replies_to_steps_are_looked_out_for_and_no_others(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An opening and an ending take Redis longer, and there is one of each only."""
    looks: list[SpinWait] = []
    monkeypatch.setattr(SpinWait, "spin", lambda self: looks.append(self))  # noqa: PLW0108  a function binds
    with store_at(redis_url) as store:
        journal = opened(store, new_id())
        assert len(looks) == 0

        for number in range(1, 4):
            journal.send({f"step:{number}": "{}"})
            journal.flush()
        assert len(looks) == 3

        journal.connection.transport.close()
        journal.send({"step:4": "{}"})
        journal.flush()
        assert len(looks) == 3

        journal.finish("succeeded", {"outcome": "{}"})
        assert len(looks) == 3


@pytest.mark.parametrize("beside", [False, True])
def test_a_coroutine_looks_out_for_its_reply_where_no_other_waits_for_the_loop(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    looks, turns, read = [], [], []
    look, readable = SpinWait.spin, on_loop._readable  # noqa: SLF001

    def look_and_count(spin_wait: SpinWait) -> bool:
        looks.append(spin_wait)
        return look(spin_wait) or True  # a Redis may be slow; it answers in any case

    def read_and_count(fd: int) -> Any:
        read.append(fd)
        return readable(fd)

    monkeypatch.setattr(SpinWait, "spin", look_and_count)
    monkeypatch.setattr(on_loop, "_readable", read_and_count)

    async def charge() -> int:
        return 1

    async def body(self: Any) -> int:
        loop = asyncio.get_running_loop()
        others = [loop.create_task(asyncio.sleep(60))] if beside else []
        for number in range(1, 6):
            loop.call_soon(turns.append, number)
            await self.ctx.run("charge", charge)
            assert turns[-1] == number  # whatever else is due has its turn in each step
        for other in others:
            other.cancel()
        return 1

    with app_at(redis_url) as app:
        execute(task_of(app, body), task_id=new_id())

    assert turns == [1, 2, 3, 4, 5]
    assert (len(looks), len(read)) == ((0, 5) if beside else (5, 0))
