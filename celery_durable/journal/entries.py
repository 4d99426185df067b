"""What an entry says: how it is written as text, and how it is read again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from celery_durable.exceptions import JournalUnreadableError

from .layout import Kind, State


class Entry:
    """One operation in the journal; a value stays text until someone asks for it."""

    # The class is written out: each replayed step makes an entry, and reads it faster than a named tuple. A dataclass
    # would be as fast, but to make that class takes a part of the import time of this package.
    __slots__ = (
        "build",
        "error",
        "executions",
        "first",
        "kind",
        "metadata",
        "name",
        "patches",
        "state",
        "until",
        "value",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        state: str,
        executions: int = 1,
        first: int | None = None,
        until: int | None = None,
        error: dict[str, Any] | None = None,
        metadata: dict[str, str] | None = None,
        value: bytes = b"",
        build: str = "",
        patches: tuple[str, ...] = (),
        kind: str = Kind.STEP,
    ) -> None:
        self.name = name
        self.state = state
        self.executions = executions
        self.first = first
        self.until = until
        self.error = error
        self.metadata = {} if metadata is None else metadata
        self.value = value
        self.build = build
        """The build that has recorded it. Empty: the build of the run."""
        self.patches = patches
        """Changes that the code has taken on just before this entry (``ctx.patched``)."""
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment] # it has a dict in it

    @property
    def settled(self) -> bool:
        return self.state in State.SETTLED

    @property
    def is_final(self) -> bool:
        """Whether nothing but a cancellation may replace it."""
        return self.settled or self.state == State.SLEEPING

    @property
    def is_known(self) -> bool:
        """Whether this version writes such entries, and so can read them."""
        return self.state in State.KNOWN and self.has_known_kind

    @property
    def has_known_kind(self) -> bool:
        return self.kind in Kind.KNOWN

    def __str__(self) -> str:
        if not self.has_known_kind:
            return f"{self.kind} {self.name!r} (of a newer version)"
        return f"{self.kind if self.is_known else self.state} {self.name!r}"


_VALUE = b',"value":'
_HEAD_OF_DONE = r'\{"name":"(?:[^"\\]|\\.)*","state":"done"'


@cache  # it is compiled at the first replay: to compile it is a tenth of the time that importing this package takes
def _plain_done() -> re.Pattern[bytes]:
    """Nearly every entry looks like this. To read it by this pattern takes a third of the time of a JSON parser."""
    return re.compile(
        rb'\{"name":"([^"\\]*)","state":"done","attempts":(\d+),"at":\d+,"ms":\d+,'
        rb'(?:"encoding":"(\w+)",(?:"read":"([\w ]+)",)?)?(?:"build":"([^"\\]*)",)?"value":(.*)\}',
        re.DOTALL,  # the value is taken without a look at its characters
    )


def done_entry(name: str, executions: int, at: int, ms: int, metadata: Mapping[str, str], value: str) -> str:
    """A step's result as text. The value stands last, so the rest can be read without decoding it."""
    head = f'{{"name":{quoted(name)},"state":"done","attempts":{executions},"at":{at},"ms":{ms}'
    if metadata:
        head += "".join(f",{quoted(key)}:{quoted(text)}" for key, text in metadata.items())
    return f'{head},"value":{value}}}'


def started_entry(name: str, executions: int, first: int) -> str:
    """A step whose action is about to start."""
    return f'{{"name":{quoted(name)},"state":"started","attempts":{executions},"first":{first}}}'


def open_entry(name: str, state: str, executions: int, kind: str = Kind.STEP, /, **facts: Any) -> str:
    """An operation that has no result, or none yet."""
    # A step does not say its kind: version 0.1.0 would take that for metadata of the value. Patterns that look for the
    # state find it behind the name and the kind, before any fact that may hold the same text.
    said = {} if kind == Kind.STEP else {"kind": kind}
    return json.dumps({"name": name, **said, "state": state, "attempts": executions, **facts}, separators=(",", ":"))


def annotated(entry: str, **notes: Any) -> str:
    """An entry's text with further facts. The others stay where readers look for them."""
    more = "".join(f",{quoted(name)}:{json.dumps(fact, separators=(',', ':'))}" for name, fact in notes.items())
    # Inside a JSON string a quote is escaped: in a step that is done the first of these is the key.
    head, found, value = entry.partition(',"value":') if re.match(_HEAD_OF_DONE, entry) else (entry[:-1], "}", "")
    return f"{head}{more}{found}{value}"


_HEAD = frozenset({"name", "state", "attempts", "at", "ms", "build", "patches"})


def read_entry(field_name: str, raw: bytes) -> Entry:
    """Read the text of an entry. Its value stays text."""
    if plain := _plain_done().fullmatch(raw):
        name, executions, encoding, read, build, value = plain.groups(b"")
        metadata = {}
        if encoding:
            metadata["encoding"] = encoding.decode()
            if read:
                metadata["read"] = read.decode()
        return Entry(name.decode(), State.DONE, int(executions), None, None, None, metadata, value, build.decode())
    if not raw.endswith(b"}"):
        raise damaged(field_name, raw)
    # Inside a JSON string a quote is escaped, so the first of these in a step that is done is the key.
    head, found, value = raw.partition(_VALUE) if re.match(_HEAD_OF_DONE.encode(), raw) else (raw, b"", b"")
    try:
        return _entry_of(json.loads(head + b"}"), value[:-1]) if found else _entry_of(json.loads(raw), None)
    except (ValueError, KeyError, TypeError):
        raise damaged(field_name, raw) from None


def _entry_of(facts: dict[str, Any], value: bytes | None) -> Entry:
    """The entry of these facts, and of its value's text.

    Raises:
        ValueError, KeyError, TypeError: this version knows such entries, and this one is damaged.
    """
    name, state, until, error = str(facts["name"]), str(facts["state"]), facts.get("until"), facts.get("error")
    kind = str(facts["kind"]) if "kind" in facts else Kind.STEP if until is None else Kind.SLEEP
    build, patches = str(facts.get("build", "")), tuple(map(str, facts.get("patches", ())))
    if state not in State.KNOWN or kind not in Kind.KNOWN:
        return Entry(name, state, build=build, patches=patches, kind=kind)
    if state in State.WITH_ERROR and not isinstance(error, dict):
        raise TypeError(error)
    if kind == Kind.SLEEP and not isinstance(until, int):
        raise TypeError(until)
    metadata = {} if value is None else {key: text for key, text in facts.items() if key not in _HEAD}
    executions, first = int(facts["attempts"]), facts.get("first")
    return Entry(name, state, executions, first, until, error, metadata, value or b"", build, patches, kind)


def damaged(field_name: str, held: bytes | str) -> JournalUnreadableError:
    """The error for a field that holds what no version of this library writes."""
    return JournalUnreadableError(
        f"entry {field_name} is damaged: {held[:80]!r}; restore it, or send the task under a new id"
    )
