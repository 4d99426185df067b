"""What ``celery_durable.retry`` looks at before it sends a failed run again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_durable import JournalUnreadableError
from celery_durable.app import store
from celery_durable.delivery.call import Call
from celery_durable.task.retry_task import retry

STARTED = b'{"name":"pay","state":"started","attempts":1}'


@pytest.mark.parametrize(
    ("field", "entry", "said"),
    [
        (b"step:1", b"rubbish", "entry step:1 is damaged: b'rubbish'"),
        (b"step:x", STARTED, "entry step:x is at no place"),
    ],
    ids=["an entry", "a place"],
)
def test_nothing_is_sent_when_the_journal_cannot_be_read(
    app: Celery, monkeypatch: pytest.MonkeyPatch, field: bytes, entry: bytes, said: str
) -> None:
    call = b'{"args":[],"kwargs":{},"options":{}}'
    fields = {b"status": b"failed", b"task": b"shop.checkout", b"call": call, field: entry, b"step:2": STARTED}
    runs = SimpleNamespace(load=lambda _: fields)
    sent: list[Any] = []
    monkeypatch.setattr(store, "store_of", lambda _: SimpleNamespace(runs=runs))
    monkeypatch.setattr(Call, "send", lambda *call: sent.append(call))

    with pytest.raises(JournalUnreadableError, match=said):
        retry("task-1")

    assert sent == []
