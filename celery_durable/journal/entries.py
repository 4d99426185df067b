"""What an entry says: how it is written as text, and how it is read again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

from celery_durable.exceptions import JournalUnreadableError


class Entry(NamedTuple):
    """One step in the journal; a value stays text until someone asks for it."""

    name: str
    state: str
    attempts: int = 1
    first: int | None = None
    until: int | None = None
    error: dict[str, Any] | None = None
    marks: dict[str, str] = {}  # noqa: RUF012  nobody changes it
    value: bytes = b""
    build: str = ""
    """Which one recorded it; empty: that of the run."""
    patches: tuple[str, ...] = ()
    """Changes that the code had already, just before this entry (``ctx.patched``)."""

    @property
    def settled(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def kind(self) -> str:
        return "sleep" if self.until is not None else "step"

    @property
    def is_final(self) -> bool:
        """Whether nothing is written in its place any more."""
        return self.settled or self.state == "sleeping"

    @property
    def is_known(self) -> bool:
        """Whether this version writes such entries; others it cannot read."""
        return self.state in _STATES

    def __str__(self) -> str:
        return f"{self.kind if self.is_known else self.state} {self.name!r}"


_STATES = {state: state for state in ("started", "retrying", "done", "failed", "cancelled", "sleeping")}
_FAILED = frozenset({"failed", "cancelled"})
_VALUE = b',"value":'
_HEAD_OF_DONE = r'\{"name":"(?:[^"\\]|\\.)*","state":"done"'


@cache  # not compiled before the first replay: that would be a tenth of what it costs to import this package
def _plain_done() -> re.Pattern[bytes]:
    """What nearly every entry looks like: reading it so costs a third of parsing it."""
    return re.compile(
        rb'\{"name":"([^"\\]*)","state":"done","attempts":(\d+),"at":\d+,"ms":\d+,'
        rb'(?:"encoding":"(\w+)",(?:"read":"([\w ]+)",)?)?(?:"build":"([^"\\]*)",)?"value":'
    )


def done_entry(name: str, attempts: int, at: int, ms: int, marks: Mapping[str, str], value: str) -> str:
    """A step's result as text. ``value`` stands last, so that reading the rest need not decode it."""
    head = f'{{"name":{quoted(name)},"state":"done","attempts":{attempts},"at":{at},"ms":{ms}'
    if marks:
        head += "".join(f",{quoted(mark)}:{quoted(text)}" for mark, text in marks.items())
    return f'{head},"value":{value}}}'


def started_entry(name: str, attempts: int, first: int) -> str:
    """A step whose action is about to start."""
    return f'{{"name":{quoted(name)},"state":"started","attempts":{attempts},"first":{first}}}'


def open_entry(name: str, state: str, attempts: int, **facts: Any) -> str:
    """A step that has no result (yet), or a wait."""
    return json.dumps({"name": name, "state": state, "attempts": attempts, **facts}, separators=(",", ":"))


def annotated(entry: str, **notes: Any) -> str:
    """An entry's text with some further facts; those of its own writer stay where readers look for them."""
    more = "".join(f",{quoted(name)}:{json.dumps(fact, separators=(',', ':'))}" for name, fact in notes.items())
    # Inside a JSON string a quote is escaped: in a step that is done the first of these is the key.
    head, found, value = entry.partition(',"value":') if re.match(_HEAD_OF_DONE, entry) else (entry[:-1], "}", "")
    return f"{head}{more}{found}{value}"


_HEAD = frozenset({"name", "state", "attempts", "at", "ms", "build", "patches"})


def read_entry(field_name: str, raw: bytes) -> Entry:
    """The text of a step, its value left as it is."""
    if not raw.endswith(b"}"):
        raise damaged(field_name, raw)
    if plain := _plain_done().match(raw):
        marks = {}
        if plain[3]:
            marks["encoding"] = plain[3].decode()
            if plain[4]:
                marks["read"] = plain[4].decode()
        build = plain[5].decode() if plain[5] else ""
        return Entry(plain[1].decode(), "done", int(plain[2]), None, None, None, marks, raw[plain.end() : -1], build)
    # Inside a JSON string a quote is escaped, so the first of these in a step that is done is the key.
    head, found, value = raw.partition(_VALUE) if re.match(_HEAD_OF_DONE.encode(), raw) else (raw, b"", b"")
    try:
        facts = json.loads(head + b"}" if found else head)
        name, state = str(facts["name"]), str(facts["state"])
        state = _STATES.get(state, state)
        attempts = int(facts["attempts"] if state in _STATES else facts.get("attempts", 0))
        build, patches = str(facts.get("build", "")), tuple(map(str, facts.get("patches", ())))
    except (ValueError, KeyError, TypeError):
        raise damaged(field_name, raw) from None
    error = facts.get("error")
    if state in _FAILED and not isinstance(error, dict):
        raise damaged(field_name, raw)
    marks = {mark: text for mark, text in facts.items() if mark not in _HEAD} if found else {}
    first, until = facts.get("first"), facts.get("until")
    return Entry(name, state, attempts, first, until, error, marks, value[:-1], build, patches)


def damaged(field_name: str, held: bytes | str) -> JournalUnreadableError:
    """What to raise of a field that holds what nothing of ours writes."""
    return JournalUnreadableError(
        f"entry {field_name} is damaged: {held[:80]!r}; restore it, or send the task under a new id"
    )
