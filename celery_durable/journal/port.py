"""The journal of a run: its layout, what crosses its border, and its shortest implementation (in memory).

A run is one hash; every value is text. Layout 1, or 2 where branches have recorded something in it that are numbered
as they are made; in an older one they are numbered as they use the context first:

    v            layout version                    status       running | suspended
                                                                or succeeded | failed | revoked | ignored
    task         name of the task                  attempt      number of the newest attempt
    fingerprint  hash of the arguments             fence, owner its token (<token>:<n> over its n-th
                                                              connection), and the process that opened it
    call         how to send the task again, JSON  created, opened, due, ended    ms since the epoch, by Redis' clock
    resume       what is new in that since the last suspension, JSON
    seed         of uuid() and random()            progress     newest attempt that recorded a step
    nesting      how often it was replaced         recoveries   attempts in a row that died without progress
    failures, failing_since                        the task retry policy's count
    build        that of the code that began it    attempt_build  <n>:<build>, that of the newest attempt
    stalled      what kept the last attempt from going on, JSON: code that does not fit
    outcome      how the run ended, JSON           delivered    1: the result backend has it, callbacks are sent
    cancel       requested | raised                resent       messages sent by recovery since the last attempt began
    step:<n>     the n-th step: {"name", "state": started | retrying | done | failed | cancelled, "attempts", ...,
                 "value"}, or wait: {"name", "state": sleeping | cancelled, "until"};
                 "build" if another one than the run's recorded it, "patches" that ctx.patched() let in before it
    uuid:<n>     the n-th uuid()                   time:<n>, now:<n>   the n-th time(), now()
                 (<b>.<n>: the n-th of branch b, a coroutine that runs beside the body; @<key>.<n>: of a named one)
    arguments:<n>  the arguments that are models, as they were accepted after the n-th change by self.retry()

Imports neither Celery nor Redis.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from functools import cache
from json.encoder import encode_basestring_ascii as quoted
from math import inf
from typing import Any, NamedTuple, Protocol

from celery_durable.exceptions import JournalUnavailableError, JournalUnreadableError

LAYOUT = "2"
"""The newest that this version reads: that of a run from the first entry of a branch on."""
UNBRANCHED = "1"
"""That of a run before. What knows no newer one would number the branches by another rule."""
LONGEST_READ = 5.0
"""Seconds that a reply may take; after that the connection is not trusted any more."""

Fields = dict[bytes, bytes]
"""A journal as it was loaded; entries stay bytes until they are reached."""


class JournalGone(JournalUnavailableError):
    """The journal of a live run is no longer there: evicted, flushed, or lost with its server."""


class Delivery(NamedTuple):
    """A message that may begin an attempt."""

    task_id: str
    task: str
    fingerprint: str
    call: str
    nesting: int = 0
    fresh: bool = True
    """Reopens a run that had failed when it arrived: neither redelivered nor a retry, or sent for that."""
    reopen: str = ""
    """Names a request to reopen the run, which is then done once, however often its message is delivered."""
    changed: int = 0
    """How often the arguments had been changed on purpose, by ``self.retry(args=...)``; the newest change counts."""
    received: float = inf
    """When it arrived, by this machine's monotonic clock; if that is not known: just now."""
    asked: float | None = None
    """When the first message arrived that this one repeats, by Redis' clock, in seconds since the epoch."""
    sent: str = ""
    """Names its sending, the same for all copies of the message; empty if it does not tell."""
    over: str = ""
    """The number of the attempt whose failure it reopens, and what that takes back: see :mod:`reopening`."""
    taken_back: tuple[str, ...] = ()
    hint: bool = False
    """Sent on behalf of another message, to look at the run again."""
    seed: str = ""
    """Of a new run; drawn now, if the message brings none."""
    build: str = ""
    """That of the code which is to run."""


class Opened(NamedTuple):
    """The lease is ours: an attempt may begin."""

    number: int
    now: int
    recoveries: int
    reopened: bool
    fields: Fields


class Busy(NamedTuple):
    """Another attempt holds the lease, or the run is not due yet: come back in *wait* seconds."""

    wait: float
    reason: str
    early: bool = False
    """It is not due yet."""
    stalled: bool = False
    """What it waits for is a worker whose code fits."""


class Outdated(NamedTuple):
    """The delivery is of an older message than one that has begun an attempt since: it never begins one."""

    reason: str


class Finished(NamedTuple):
    """The run has ended; its outcome is kept."""

    fields: Fields


class Foreign(NamedTuple):
    """The id belongs to another task, or to other arguments."""

    task: str
    fields: Fields


class Result(NamedTuple):
    """A result as Celery's backend keeps it, and publishes it to who waits."""

    key: str | bytes
    text: str | bytes
    expires: int
    """Seconds; 0: never."""


NO_RESULT = Result("", "", 0)
"""Of a task whose result is ignored."""

Verdict = Opened | Busy | Outdated | Finished | Foreign


class Journal(Protocol):
    """What an attempt asks of its journal. Every write is checked against the fence."""

    def open(self, delivery: Delivery) -> Verdict:
        """Take the lease and load the run, or say why not."""
        ...

    def send(self, fields: Mapping[str, str], *, with_next: bool = False) -> None:
        """Write entries without waiting for the reply.

        *with_next*: the write may travel with the next one, as long as it is made if this process dies before.
        """
        ...

    def record_aside(self, fields: Mapping[str, str]) -> bool:
        """Write entries beside what this journal sends and waits for, in any thread; False if it is fenced."""
        ...

    @property
    def owes(self) -> bool:
        """Whether something that was sent is not acknowledged."""
        ...

    def settle_if_connected(self) -> bool:
        """As :meth:`settle`, when replies are there; False if the connection is lost and one has to wait for it."""
        ...

    def settle(self) -> None:
        """Wait until all that was sent is acknowledged; raises Fenced or JournalUnavailableError."""
        ...

    def look_out(self) -> bool:
        """Give a reply that will be quick a moment to arrive; whether it has."""
        ...

    def fileno(self) -> int | None:
        """What becomes readable when a reply arrives; None when nothing is outstanding."""
        ...

    @property
    def lease_in_doubt(self) -> bool:
        """Whether the lease may have lapsed unnoticed: it was not renewed for as long as it lasts."""
        ...

    def prove_lease(self) -> None:
        """Ask whether the lease is still ours; raises Fenced or JournalUnavailableError."""
        ...

    def by_redis(self, moment: float) -> float | None:
        """A moment of the monotonic clock by Redis' one, in seconds since the epoch; None if that is not known."""
        ...

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody has asked to cancel the run."""
        ...

    def look_for_cancellation(self) -> None:
        """Ask whether somebody has, beside what this journal sends and waits for."""
        ...

    def suspend(
        self, delay: float, fields: Mapping[str, str], slack: float = 0.0, *, though_cancelled: bool = False
    ) -> None:
        """Give the lease back until *delay* seconds from now.

        If no message has begun an attempt *slack* seconds after that, a worker sends one. A run that is to be cancelled
        does not wait, unless *though_cancelled*: this attempt knew of that, and could not tell the code.
        """
        ...

    def release(self, *, orderly: bool) -> None:
        """Give the lease back at once: this process is about to die, *orderly* or by what the attempt did to it."""
        ...

    def finish(self, status: str, fields: Mapping[str, str]) -> None:
        """Write the outcome, to be kept until it is delivered."""
        ...

    def conclude(self, fields: Mapping[str, str], keep: float, result: Result) -> bool:
        """Write the outcome of a success with its *result*, and thereby deliver it; it is kept for *keep* seconds.

        False if this Redis cannot write both at once, and has written nothing.
        """
        ...

    def deliver(self, keep: float, *, arrived: bool = True) -> None:
        """The outcome has *arrived*, or never can, and is kept for *keep* seconds; sent without waiting."""
        ...

    def close(self) -> None:
        """Give back what the journal holds of this process."""
        ...


# -- entries -----------------------------------------------------------------------------------------------------------


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


def new_seed() -> str:
    """Drawn once per run; everything random in it is derived from this."""
    return os.urandom(16).hex()


def step_field(position: str) -> str:
    return f"step:{position}"


# -- in memory ---------------------------------------------------------------------------------------------------------


class MemoryJournal:
    """A run in this process only: for direct calls, eager mode and unit tests. It never waits and is never fenced."""

    lease_in_doubt = False
    owes = False
    cancel_requested = False

    def __init__(self) -> None:
        self.fields: Fields = {}

    def open(self, delivery: Delivery) -> Verdict:
        fields = self.fields
        if fields.get(b"status") in (b"succeeded", b"failed"):
            return Finished(fields)
        if not fields:
            said = {"task": delivery.task, "call": delivery.call, "build": delivery.build}
            self.send({"v": UNBRANCHED, **said, "seed": new_seed()})
        number = int(fields.get(b"attempt", 0)) + 1
        self.send({"attempt": str(number), "status": "running"})
        return Opened(number, int(time.time() * 1000), 0, False, dict(fields))

    def send(self, fields: Mapping[str, str], *, with_next: bool = False) -> None:  # noqa: ARG002
        self.fields.update({name.encode(): value.encode() for name, value in fields.items()})

    def record_aside(self, fields: Mapping[str, str]) -> bool:
        self.send(fields)
        return True

    def settle(self) -> None: ...

    def settle_if_connected(self) -> bool:
        return True

    def look_out(self) -> bool:
        return True

    def fileno(self) -> int | None:
        return None

    def prove_lease(self) -> None: ...

    def by_redis(self, moment: float) -> float | None: ...

    def look_for_cancellation(self) -> None: ...

    def suspend(
        self,
        delay: float,  # noqa: ARG002
        fields: Mapping[str, str],
        slack: float = 0.0,  # noqa: ARG002
        *,
        though_cancelled: bool = False,  # noqa: ARG002
    ) -> None:
        self.send({**fields, "status": "suspended"})

    def finish(self, status: str, fields: Mapping[str, str]) -> None:
        self.send({**fields, "status": status})

    def conclude(self, fields: Mapping[str, str], keep: float, result: Result) -> bool:  # noqa: ARG002
        return False

    def deliver(self, keep: float, *, arrived: bool = True) -> None: ...

    def release(self, *, orderly: bool) -> None: ...

    def close(self) -> None: ...
