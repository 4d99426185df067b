"""The Lua files say the words that the layout and the replies define, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import celery_durable.redis
from celery_durable.journal import layout
from celery_durable.journal.layout import Cancellation, Left, State, Status, Wait
from celery_durable.redis.replies import OpenReply, ReleaseResult, WriteReply
from celery_durable.redis.survey import Flaw

FOLDER = Path(celery_durable.redis.__file__).parent / "lua"
PAGE = Path(__file__).parents[2] / "docs" / "journal.md"
FILES = {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.rglob("*.lua"))}

FIELDS = {
    "v", "task", "fingerprint", "call", "resume", "seed", "nesting", "status", "attempt", "fence", "owner", "created",
    "opened", "due", "ended", "progress", "recoveries", "changed", "build", "attempt_build", "stalled", "outcome",
    "delivered", "cancel", "resent", "reopened", "failures", "failing_since", "waits", "left", "actions", "paused",
    "attributes", "executed", "restarted_from", "ancestors", "purged", "reserved",
}  # fmt: skip
OF_LUA = {"number", "string", "table"}
"""Types of the language."""
OF_KEYS = {"index"}
"""What names of keys are made of."""


def members(names: type) -> dict[str, Any]:
    return {name: value for name, value in vars(names).items() if isinstance(value, (str, int)) and name.isupper()}


def code(script: str) -> str:
    """The script without its comments."""
    return re.sub(r"--.*", "", FILES[script])


def words(script: str) -> set[str]:
    """The words that it has as literals: names of fields, statuses, replies; commands of Redis are in capitals."""
    return {text for text in re.findall(r"'([^']*)'", code(script)) if re.fullmatch(r"[a-z_]+", text)}


def returned(script: str) -> set[int]:
    """The numbers that it replies."""
    replies = " ".join(re.findall(r"\breturn\b(.*?)(?:\bend\b|$)", code(script), re.MULTILINE))
    return {int(number) for number in re.findall(r"(?<![\w\['])-?\d+(?![\w\]'])", replies)}


def opening_words() -> set[str]:
    return set(re.findall(r"return \{'(\w+)'", code("open")))


@pytest.mark.parametrize("script", FILES)
def test_each_literal_is_a_word_that_is_defined(script: str) -> None:
    known = {word for names in (Status, State, Wait, Left, Cancellation, Flaw) for word in members(names).values()}
    of_open = members(OpenReply).values() if script == "open" else ()
    assert words(script) - {*known, *of_open} - FIELDS - OF_LUA - OF_KEYS == set()


@pytest.mark.parametrize("described", [layout.__doc__ or "", PAGE.read_text("utf-8")], ids=["layout.py", PAGE.name])
def test_the_layout_is_described_with_each_field_that_a_script_names(described: str) -> None:
    assert set(re.findall(r"\w+", described)) >= FIELDS


STATUSES = {
    "builds": {Status.RUNNING},
    "cancel": {*Status.LIVE, Status.UNKNOWN},
    "claim": {Status.RUNNING},
    "conclude": {Status.SUCCEEDED},
    "counts": {Status.RUNNING},
    "deliver": Status.LIVE,
    "examine": Status.LIVE,
    "index": {Status.SUSPENDED},
    "page": {Status.RUNNING},
    "pause": {Status.SUSPENDED},
    "open": {*Status.LIVE, Status.FAILED},
    "release": {*Status.LIVE, Status.SUCCEEDED},
    "renew": Status.LIVE,
    "reserve": {Status.FAILED},
    "note_restart": Status.LIVE,
    "suspend": {Status.SUSPENDED},
    "plant": {Status.SUSPENDED},
    "purge": {*Status.LIVE, Status.UNKNOWN},
    "terminate": Status.LIVE,
    "wake": {*Status.LIVE, Status.UNKNOWN},
}
"""Those that a script has to tell from others, or writes; the other scripts are given theirs."""


@pytest.mark.parametrize("script", FILES)
def test_each_script_knows_the_statuses_that_it_decides_by(script: str) -> None:
    assert words(script) & set(members(Status).values()) == STATUSES.get(script, set())


def test_every_status_is_live_or_ended() -> None:
    assert {*Status.LIVE, *Status.ENDED, Status.UNKNOWN} == set(members(Status).values())
    assert not Status.LIVE & Status.ENDED


def test_the_states_that_nothing_replaces_are_the_settled_ones() -> None:
    assert set(re.findall(r"(\w+) = true", code("write"))) == State.SETTLED
    assert set(members(State).values()) == State.KNOWN


def test_what_a_retry_takes_back_is_decided_in_one_place_which_is_no_script() -> None:
    """A script that opens a run is given the fields. Others look at entries to write them, and to end a sleep."""
    looking = {script for script in FILES if "state" in re.findall(r"\w+", code(script))}
    assert looking == {"write", "wake", "take_back"}
    assert words("take_back") & set(members(State).values()) == {State.DONE}, "what has ended since stays"


def test_a_cancellation_is_asked_for_in_one_word() -> None:
    asked = {script for script in FILES if Cancellation.REQUESTED in words(script)}
    assert asked == {"cancel", "open", "record", "renew", "suspend"}
    assert not any(Cancellation.RAISED in words(script) for script in FILES), "it is the attempt that writes it"


def test_an_opening_replies_each_word_that_is_known_and_no_other() -> None:
    assert opening_words() | {OpenReply.OPEN} == set(members(OpenReply).values())


WRITES = {
    "conclude": {WriteReply.DONE, WriteReply.FENCED, WriteReply.NO_JOURNAL},
    "deliver": {WriteReply.DONE, WriteReply.FENCED},
    "finish": {WriteReply.DONE, WriteReply.FENCED, WriteReply.NO_JOURNAL},
    "record": {WriteReply.DONE, WriteReply.TO_BE_CANCELLED, WriteReply.FENCED, WriteReply.NO_JOURNAL},
    "renew": {WriteReply.DONE, WriteReply.TO_BE_CANCELLED, WriteReply.FENCED, WriteReply.NO_JOURNAL},
    "supersede": {WriteReply.DONE, WriteReply.FENCED},
    "suspend": {WriteReply.DONE, WriteReply.FENCED, WriteReply.NO_JOURNAL},
}


@pytest.mark.parametrize("script", WRITES)
def test_a_write_replies_each_number_that_is_known_and_no_other(script: str) -> None:
    assert returned(script) == WRITES[script]


def test_a_write_may_reply_each_number_that_is_defined() -> None:
    assert set().union(*WRITES.values()) == set(members(WriteReply).values())


def test_a_release_replies_what_has_become_of_the_run() -> None:
    assert returned("release") == {reply.value for reply in ReleaseResult}


def test_a_run_begins_with_the_older_layout() -> None:
    assert re.findall(r"'v', (\d+)", code("open")) == [layout.UNBRANCHED]
