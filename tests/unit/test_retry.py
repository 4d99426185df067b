"""Which message is the Retry of a failed run, and what it takes back."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_durable import JournalUnreadableError
from celery_durable.delivery.call import Call
from celery_durable.journal.entries import done_entry, open_entry, started_entry
from celery_durable.journal.port import Delivery
from celery_durable.journal.reopening import decided, replayed_failures, taken_back
from celery_durable.operate.tasks import retry
from celery_durable.operate.verbs import retrying

Begun = dict[str, list[Any]]


def failed(name: str = "charge", begun: Begun | None = None, at: int = 5) -> str:
    facts = {} if begun is None else {"begun": begun}
    return open_entry(name, "failed", 1, at=at, **facts, error={"metadata": {"at": 10_000, "begun": {"": [9, 9]}}})


def done(at: int = 5, ms: int = 0) -> str:
    return done_entry("other", 1, at, ms, {}, '{"at":10000,"ms":9}')


def fields_of(steps: dict[str, str], **more: str) -> dict[bytes, bytes]:
    facts = {**{f"step:{place}": text for place, text in steps.items()}, **more}
    return {name.encode(): text.encode() for name, text in facts.items()}


def taken(steps: dict[str, str]) -> list[str]:
    return [field.removeprefix("step:") for field in taken_back(fields_of(steps))]


def test_what_a_newer_version_has_written_is_not_taken_back() -> None:
    """Its own executions may go on elsewhere; and what looks like a kind is one only where an entry has it."""
    for state in ("started", "retrying", "failed"):
        newer = open_entry("ship", state, 1, "call", begun={"": [1, 0]}, error={})
        assert taken({"1": newer}) == []
    inside = {"metadata": {"kind": "call", "state": "started"}}
    assert taken({"1": open_entry('"kind":"call"', "failed", 1, begun={"": [1, 0]}, error=inside)}) == ["1"]


ALONE: Begun = {"": [1, 0]}
FIRST: Begun = {"": [0, 2], "1.": [1, 0]}
"""The first step of the first of two branches."""
LATER: Begun = {"": [1, 2], "2.": [1, 0]}
"""The first step of the second one, and the body has done something itself."""


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # One after the other.
        ({"1": failed(begun=ALONE)}, ["1"]),
        ({"1": failed(begun=ALONE), "2": done()}, []),
        ({"1": failed(begun=ALONE), "2": failed(begun={"": [2, 0]})}, ["2"]),
        ({"9": failed(begun={"": [9, 0]}), "10": done()}, []),
        ({"1": failed(begun=ALONE), "2": started_entry("refund", 1, 1)}, ["2"]),
        ({"1": failed(begun=ALONE), "1.1": done(), "2.1": done()}, []),
        # Side by side in the body: both were called before one of them failed.
        ({"1": failed(begun={"": [2, 0]}), "2": failed(begun={"": [2, 0]})}, ["1", "2"]),
        ({"1": failed(begun={"": [2, 0]}), "2": done(at=99)}, ["1"]),
        ({"1": failed(begun={"": [2, 0]}), "2": failed(begun={"": [2, 0]}), "3": done(at=0)}, []),
        # In branches.
        (
            {"1.1": failed(begun=FIRST), "2.1": failed(begun={"": [0, 2], "2.": [1, 0]})},
            ["1.1", "2.1"],
        ),
        ({"1.1": failed(begun=FIRST), "2.1": done(), "2.2": done(at=99)}, ["1.1"]),
        ({"1.1": failed(begun=FIRST), "1.2": done()}, []),
        ({"1.1": failed(begun=FIRST), "1": done(at=0)}, []),
        ({"1.1": failed(begun={"": [1, 2], "1.": [1, 0]}), "1": done(at=99)}, ["1.1"]),
        ({"1.1": failed(begun=FIRST), "3.1": done(at=0)}, []),
        ({"1.1": failed(begun=FIRST), "2.7.1": done(at=99)}, ["1.1"]),
        ({"1.1": failed(begun=FIRST), "1.1.1": done(at=0)}, []),
        ({"2.1.1": failed(begun={"": [0, 2], "2.": [0, 3], "2.1.": [1, 0]}), "2.3.1": done(at=99)}, ["2.1.1"]),
        ({"2.1.1": failed(begun={"": [0, 2], "2.": [0, 3], "2.1.": [1, 0]}), "2.1": done(at=0)}, []),
        ({"10.1": failed(begun={"": [0, 10], "10.": [1, 0]}), "1.5": done(at=99)}, ["10.1"]),
        # One that failed when the other one was being compensated: the code around has dealt with both.
        ({"1": failed(begun={"": [3, 0]}), "2": failed(begun={"": [2, 0]}), "3": done()}, []),
        ({"1.1": failed(begun=FIRST), "2.1": failed(begun=LATER), "1": done()}, []),
        # One that failed when a branch compensated its own.
        ({"1.1": failed(begun=FIRST), "1.2": done(), "2.1": failed(begun={"": [0, 2], "2.": [1, 0]})}, ["2.1"]),
        # One that failed after another one was compensated.
        ({"1": failed(begun=ALONE), "2": done(), "3": failed(begun={"": [3, 0]})}, ["3"]),
        (
            {
                "1.1": failed(begun={"": [0, 1], "1.": [1, 0]}),
                "1": done(),
                "2.1": failed(begun={"": [1, 2], "2.": [1, 0]}),
            },
            ["2.1"],
        ),
        # In branches with names.
        ({"1.1": failed(begun={"": [0, 1, "@a"], "1.": [1, 0]}), "@a.1": done(at=99)}, ["1.1"]),
        ({"1.1": failed(begun={"": [0, 1, "@a"], "1.": [1, 0]}), "@b.1": done(at=0)}, []),
        # Of version 0.1.0, whose entries do not say what had begun.
        ({"1": failed()}, ["1"]),
        ({"9": failed(at=9), "10": done(at=1)}, []),
        ({"1.1": failed(at=5), "2.1": failed(at=5), "10.1": failed(at=5)}, ["1.1", "2.1", "10.1"]),
        ({"1.1": failed(at=5), "2.1": failed(at=6)}, ["2.1"]),
        ({"1.1": failed(at=5), "2.1": done(at=9, ms=6)}, ["1.1"]),
        ({"1.1": failed(at=5), "2.1": done(at=9, ms=4)}, []),
        ({"1.1": failed(at=5), "1": done(at=9)}, []),
        # What cannot be read is the attempt's to find.
        ({"1": "rubbish", "x": "rubbish"}, []),
    ],
    ids=str,
)
def test_a_failure_is_taken_back_unless_something_began_because_of_it(
    steps: dict[str, str], expected: list[str]
) -> None:
    assert taken(steps) == expected


def test_the_failures_that_stay_are_told_in_program_order() -> None:
    steps = {"10": failed("b", {"": [10, 0]}), "9": failed("a", {"": [9, 0]}), "11": done()}

    assert replayed_failures(fields_of(steps)) == ["a", "b"]


# -- which message is one ----------------------------------------------------------------------------------------------


def decide(now: int = 2000, **message: Any) -> Delivery:
    """Decide of a run that failed at 1000 ms, by a message that has arrived just now."""
    fields = fields_of({}, ended="1000", seed="5eed", attempt="3", reopened="\nearlier\n")
    return decided(Delivery("id", "task", "", "{}", **message), fields, time.monotonic(), now)


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ({}, "failed at 1000"),
        ({"sent": "other"}, "other"),
        ({"reopen": "asked for"}, "asked for"),
        ({"reopen": "asked for", "failed": "3"}, "asked for"),
        ({"reopen": "asked for", "sent": "5eed"}, "asked for"),
        ({"sent": "other", "asked": 1.5}, "other"),
    ],
)
def test_a_message_that_came_after_the_failure_reopens_it(message: dict[str, Any], name: str) -> None:
    found = decide(**message)

    assert (found.fresh, found.reopen, found.over) == (True, name, "3")


@pytest.mark.parametrize(
    "message",
    [
        {"sent": "5eed"},
        {"sent": "earlier"},
        {"reopen": "earlier"},
        {"reopen": "asked for", "failed": "2"},
        {"sent": "other", "now": 500},
        {"sent": "other", "asked": 0.5},
        {"received": time.monotonic() - 3600},
    ],
    ids=" and ".join,
)
def test_a_copy_and_a_message_that_came_before_reopen_nothing(message: dict[str, Any]) -> None:
    assert not decide(**message).fresh


# -- what `celery_durable.retry` looks at ------------------------------------------------------------------------------


STARTED = b'{"name":"pay","state":"started","attempts":1}'


@pytest.mark.parametrize(
    ("field", "entry", "said"),
    [
        (b"step:1", b"rubbish", "entry step:1 is damaged: b'rubbish'"),
        (b"step:x", STARTED, "entry step:x has no position"),
    ],
    ids=["an entry", "a place"],
)
def test_nothing_is_sent_when_the_journal_cannot_be_read(
    app: Celery, monkeypatch: pytest.MonkeyPatch, field: bytes, entry: bytes, said: str
) -> None:
    call = b'{"args":[],"kwargs":{},"options":{}}'
    fields = {b"status": b"failed", b"task": b"shop.checkout", b"call": call, field: entry, b"step:2": STARTED}
    runs, families = SimpleNamespace(load=lambda _: fields), SimpleNamespace(nearest=lambda *_: None)
    sent: list[Any] = []
    monkeypatch.setattr(retrying, "store_of", lambda _: SimpleNamespace(runs=runs, families=families))
    monkeypatch.setattr(Call, "send", lambda *call: sent.append(call))

    with pytest.raises(JournalUnreadableError, match=said):
        retry("task-1")

    assert sent == []
