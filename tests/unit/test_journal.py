"""The text of entries, and the journal in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_durable import JournalUnreadableError
from celery_durable.journal.entries import annotated, done_entry, open_entry, read_entry, started_entry
from celery_durable.journal.layout import new_seed
from celery_durable.journal.memory import MemoryJournal
from celery_durable.journal.port import Delivery, Finished, Opened

names = st.text(st.characters(codec=None, categories=None)) | st.sampled_from(['x","value":1', "\\", '"', "é", "{}"])
counts = st.integers(1, 10**6)
moments = st.integers(0, 10**14)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps)
metadata = st.dictionaries(st.sampled_from(["encoding", "member", "serializer", "compression", "charset"]), st.text())


@given(names, counts, moments, moments, metadata, values)
def test_a_result_reads_as_it_was_written(
    name: str, attempts: int, at: int, ms: int, metadata: dict[str, str], value: str
) -> None:
    text = done_entry(name, attempts, at, ms, metadata, value)
    entry = read_entry("step:1", text.encode())
    assert (entry.name, entry.state, entry.executions, entry.metadata) == (name, "done", attempts, metadata)
    assert entry.value == value.encode()
    assert entry.settled
    assert json.loads(text)["value"] == json.loads(value)


@pytest.mark.parametrize("metadata", [{}, {"encoding": "typed"}, {"serializer": "own"}], ids=len)
@pytest.mark.parametrize("value", ["{}", '{"a":{"b":"}"}}', '[\n  {"a": 1}\n]'], ids=repr)
def test_a_value_ends_where_its_entry_ends(value: str, metadata: dict[str, str]) -> None:
    raw = done_entry("pay", 1, 5, 7, metadata, value).encode()
    assert read_entry("step:1", raw).value == value.encode()
    for more in (b"\n", b" ", b","):
        with pytest.raises(JournalUnreadableError, match="step:1 is damaged"):
            read_entry("step:1", raw + more)


@given(names, counts, moments)
def test_a_start_reads_as_it_was_written(name: str, attempts: int, first: int) -> None:
    entry = read_entry("step:1", started_entry(name, attempts, first).encode())
    assert (entry.name, entry.state, entry.executions, entry.first) == (name, "started", attempts, first)
    assert not entry.settled


@given(names, st.sampled_from(["retrying", "failed"]), counts, st.dictionaries(st.text(), st.text()))
def test_a_failure_reads_as_it_was_written(name: str, state: str, attempts: int, error: dict[str, str]) -> None:
    entry = read_entry("step:1", open_entry(name, state, attempts, first=5, error=error).encode())
    assert (entry.name, entry.state, entry.executions, entry.first) == (name, state, attempts, 5)
    assert entry.error == error
    assert entry.settled is (state == "failed")


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff\xfe", b"null", b"[]", b"{}", b'{"name":"pay"}', b'{"name":"pay","state":"done"}', b"not JSON"],
    ids=repr,
)
def test_a_damaged_entry_is_named_with_what_it_holds(raw: bytes) -> None:
    with pytest.raises(JournalUnreadableError) as damaged:
        read_entry("step:7", raw)
    assert "step:7" in str(damaged.value)
    assert repr(raw) in str(damaged.value)


TRICKY = 'say ,"value": \\ "x","state":"done" ☃'


@pytest.mark.parametrize("name", ["pay", TRICKY])
@pytest.mark.parametrize("metadata", [{}, {"encoding": "typed"}, {"serializer": TRICKY, "compression": "z"}], ids=len)
@pytest.mark.parametrize(
    "notes", [{}, {"build": "b1"}, {"build": TRICKY}, {"patches": [TRICKY, "b"]}, {"build": "b1", "patches": ["a"]}]
)
def test_what_is_noted_beside_an_entry_is_read_again_and_changes_nothing_else(
    name: str, metadata: dict[str, str], notes: dict[str, Any]
) -> None:
    value = json.dumps({"a": TRICKY, "value": 1})
    raw = (
        annotated(done_entry(name, 2, 5, 7, metadata, value), **notes)
        if notes
        else done_entry(name, 2, 5, 7, metadata, value)
    )

    entry = read_entry("step:1", raw.encode())

    assert (entry.name, entry.state, entry.executions, entry.value.decode()) == (name, "done", 2, value)
    assert entry.metadata == metadata
    assert (entry.build, entry.patches) == (notes.get("build", ""), tuple(notes.get("patches", ())))
    assert json.loads(raw)["value"] == json.loads(value)


@pytest.mark.parametrize("state", ["started", "retrying", "failed", "sleeping"])
def test_an_entry_without_a_value_keeps_its_facts_beside_what_is_noted(state: str) -> None:
    """Metadata of the user's may look like an entry."""
    metadata = {"name": "x", "state": "done", "value": 1}
    error = {"type": "TerminalError", "message": TRICKY, "metadata": metadata}
    bare = open_entry(TRICKY, state, 3, error=error, until=9)

    entry = read_entry("step:1", annotated(bare, build="b1", patches=["a"]).encode())

    plain = read_entry("step:1", bare.encode())
    assert (entry.build, entry.patches) == ("b1", ("a",))
    assert (entry.name, entry.state, entry.until, entry.error) == (TRICKY, state, 9, error)
    assert (plain.name, plain.state, plain.until, plain.error) == (entry.name, entry.state, entry.until, entry.error)


def test_an_entry_of_a_kind_that_is_not_known_is_none_that_is_damaged() -> None:
    entry = read_entry("step:1", b'{"name":"ship","state":"called","child":"x","build":"newer"}')
    assert (entry.name, entry.is_known, entry.build, str(entry)) == ("ship", False, "newer", "called 'ship'")


@pytest.mark.parametrize(
    "facts",
    [
        {"state": "called", "child": "x"},
        {"state": "started"},
        {"state": "done", "attempts": 1, "at": 1, "ms": 1, "value": {"kind": "step"}},
        {"state": "failed", "attempts": "many", "error": "none"},
        {"state": "sleeping", "attempts": 0, "until": 5},
    ],
    ids=lambda facts: facts["state"],
)
def test_an_entry_of_a_newer_kind_is_told_from_all_that_this_version_writes(facts: dict[str, Any]) -> None:
    """Whatever its state is called: that may mean another thing."""
    raw = json.dumps({"name": "ship", "kind": "call", **facts, "build": "b1"}, separators=(",", ":"))
    entry = read_entry("step:1", raw.encode())
    assert (entry.kind, entry.is_known, entry.has_known_kind) == ("call", False, False)
    assert (entry.build, str(entry)) == ("b1", "call 'ship' (of a newer version)")


@pytest.mark.parametrize("state", ["sleeping", "cancelled"])
def test_a_sleep_says_its_kind_and_is_known_without_it(state: str) -> None:
    facts = {"until": 9, "error": {"type": "TaskCancelled"}}
    says = read_entry("step:1", open_entry("nap", state, 0, "sleep", **facts).encode())
    assert says == read_entry("step:1", open_entry("nap", state, 0, **facts).encode())
    assert (says.kind, says.until) == ("sleep", 9)


def test_the_kind_is_the_entry_s_own_and_not_what_its_facts_hold() -> None:
    error = {"type": "TerminalError", "message": TRICKY, "metadata": {"kind": "call", "state": "called"}}
    entry = read_entry("step:1", open_entry(TRICKY, "failed", 1, error=error).encode())
    assert (entry.kind, entry.state, entry.is_known) == ("step", "failed", True)


@pytest.mark.parametrize("until", [None, "tomorrow", 1.5])
def test_a_sleep_that_does_not_say_until_when_is_damaged(until: Any) -> None:
    with pytest.raises(JournalUnreadableError, match="step:3 is damaged"):
        read_entry("step:3", open_entry("nap", "sleeping", 0, "sleep", until=until).encode())


@pytest.mark.parametrize("name", ["pay", "pay \u00e9"], ids=["plain name", "escaped name"])
def test_an_entry_that_was_cut_off_is_damaged(name: str) -> None:
    whole = done_entry(name, 1, 5, 5, {}, "12345").encode()
    for length in range(len(whole)):
        with pytest.raises(JournalUnreadableError):
            read_entry("step:1", whole[:length])


def test_every_run_has_a_seed_of_its_own() -> None:
    assert len({new_seed() for _ in range(100)}) == 100


DELIVERY = Delivery("task-1", "shop.checkout", "", "{}")


def test_attempts_are_numbered_and_see_what_the_last_one_wrote() -> None:
    journal = MemoryJournal()
    first = journal.open(DELIVERY)
    assert isinstance(first, Opened)
    journal.suspend(5.0, {"step:1": "one"})
    second = journal.open(DELIVERY)
    assert isinstance(second, Opened)
    assert (first.number, second.number) == (1, 2)
    assert second.fields[b"step:1"] == b"one"
    assert second.fields[b"seed"] == first.fields[b"seed"]
    assert b"step:1" not in first.fields


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_a_finished_run_opens_no_attempt(status: str) -> None:
    journal = MemoryJournal()
    journal.open(DELIVERY)
    journal.finish(status, {"outcome": "{}"})
    finished = journal.open(DELIVERY)
    assert isinstance(finished, Finished)
    assert finished.fields[b"outcome"] == b"{}"
    assert finished.fields[b"attempt"] == b"1"
