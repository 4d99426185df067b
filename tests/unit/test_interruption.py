"""Strikes hit user code that is running, and never the library's own."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import pytest
from celery import Celery

from celery_durable import DurableContext, RunOptions, durable_task
from celery_durable.drivers import interruption
from celery_durable.drivers.interruption import current_target
from celery_durable.user_code import in_user_code


def look(seen: dict[str, bool], where: str) -> None:
    seen[where] = in_user_code(sys._getframe())  # noqa: SLF001


def test_bodies_and_actions_are_user_code_and_what_the_library_calls_for_itself_is_not(app: Celery) -> None:
    seen: dict[str, bool] = {}

    class Serializer:
        """Of the user, and called amid the recording of a step."""

        def serialize(self, value: Any) -> bytes:
            look(seen, "serializer")
            return str(value).encode()

        def deserialize(self, data: bytes) -> Any:
            look(seen, "deserializer")
            return data.decode()

    async def action_async() -> str:
        return "x"

    @durable_task(name="strike.body")
    def body(ctx: DurableContext) -> None:
        look(seen, "body")
        ctx.run("action", lambda: look(seen, "action"), RunOptions(serializer=Serializer()))
        ctx.run("deep", lambda: sorted([1], key=lambda _: look(seen, "deep")))

    body()
    assert seen == {"body": True, "action": True, "deep": True, "serializer": False, "deserializer": False}
    look(seen, "outside")
    assert not seen["outside"]


def test_only_the_main_thread_listens() -> None:
    places: list[Any] = [current_target()]
    thread = threading.Thread(target=lambda: places.append(current_target()))
    thread.start()
    thread.join()
    assert places[0] is not None
    assert places[1] is None


def test_a_signal_that_the_application_uses_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_main_thread", interruption._InMainThread())  # noqa: SLF001
    own: Any = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGURG, own)
    try:
        assert current_target() is None
        assert signal.getsignal(signal.SIGURG) is own
    finally:
        signal.signal(signal.SIGURG, before)


@pytest.mark.parametrize("name", ["gevent", "greenlet"])
def test_what_is_installed_and_not_used_changes_nothing(name: str) -> None:
    pytest.importorskip(name)
    assert current_target() is not None
