"""Reads a record from the fields of a journal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import inf
from typing import Any

from celery_durable.app.store import store_of
from celery_durable.config.redaction import Redaction
from celery_durable.config.settings import Redact
from celery_durable.delivery.backend import PAUSED, WAITS_FOR, state_of
from celery_durable.delivery.call import Call
from celery_durable.exceptions import JournalUnreadableError
from celery_durable.journal.actions import read_actions
from celery_durable.journal.attributes import read_attributes
from celery_durable.journal.headings import heading_of
from celery_durable.journal.layout import Cancellation, Fields, Kind, Left, State, Status, Wait, entries_of
from celery_durable.journal.past_attempt import counts_of_newest, past_attempt
from celery_durable.journal.positions import in_order
from celery_durable.records import ActionRecord, AttemptRecord, Run, StepRecord, moment
from celery_durable.redis.index import Indexed
from celery_durable.task.of_app import durable_tasks

SUMMARY = (
    b"status", b"waits", b"task", b"call", b"created", b"opened", b"ended", b"owner", b"build", b"due", b"stalled",
    b"outcome", b"paused", b"attributes", b"restarted_from",
)  # fmt: skip
"""The fields that a list of runs needs."""

_WAITING = {Wait.RETRY: State.RETRYING, Wait.SLEEP: State.SLEEPING, Wait.PAUSE: State.RETRYING}
"""What a run waits for → the state of the steps for which it waits."""

RELEASED = "RELEASED"
_HOW = {Left.RELEASED: RELEASED, Status.RUNNING: "DIED"}
"""How an attempt was left that has not left the run in a state."""


def unread_run(indexed: Indexed, state: str, why: JournalUnreadableError) -> Run:
    """What the index knows of a run whose journal cannot be read: a list shows it, and why, beside the others."""
    try:
        created = moment(indexed.created)
    except (ValueError, ArithmeticError, OSError):  # no time that anybody could mean
        created = _EPOCH
    return Run(
        id=indexed.task_id, task=indexed.task, state=state, args=None, kwargs=None, created=created, began=created,
        ended=None, worker="", lease=None, waits_for="", until=None, build="", error=str(why),
    )  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """Reads records as one app may see them.

    Attributes:
        accept: the content types that it reads arguments of.
        redact: what it shows instead of values; None: the values.
        of_tasks: the same for each task that the app knows, by its name.
    """

    accept: frozenset[str]
    redact: Redact | None = None
    of_tasks: Mapping[str, Redact | None] = field(default_factory=dict)

    @classmethod
    def of(cls, app: Any) -> Reader:
        """That of an app, by its settings and those of its tasks."""
        of_tasks = {name: task.durable_settings.redact for name, task in durable_tasks(app).items()}
        return cls(frozenset(app.conf.accept_content), store_of(app).settings.redact, of_tasks)

    @property
    def shows_all(self) -> bool:
        """Whether it shows all values as they are recorded."""
        return self.redact is None and not any(self.of_tasks.values())

    def run(self, task_id: str, fields: Fields, lease_ms: float | None) -> Run:
        """The record of a run with its attempts, steps and actions.

        Raises:
            JournalUnreadableError: a field does not say what it should.
        """
        with _damage_told(task_id):
            steps = tuple(_steps(fields, self._redaction(fields)))
            attempts, actions = tuple(_attempts(fields)), tuple(_actions(fields))
            return replace(self._read(task_id, fields, lease_ms, steps), attempts=attempts, actions=actions)

    def summary(self, task_id: str, fields: Fields, lease_ms: float | None) -> Run:
        """The record of a run without its attempts, steps and actions: the fields of :data:`SUMMARY` are enough.

        Raises:
            JournalUnreadableError: a field does not say what it should.
        """
        with _damage_told(task_id):
            return self._read(task_id, fields, lease_ms, ())

    def _redaction(self, fields: Fields) -> Redaction:
        task = _text(fields, b"task")
        return Redaction(self.of_tasks.get(task, self.redact), task)

    def _read(self, task_id: str, fields: Fields, lease_ms: float | None, steps: tuple[StepRecord, ...]) -> Run:
        redaction, call = self._redaction(fields), _call_of(fields, self.accept)
        live = heading_of(fields) not in Status.ENDED
        return Run(
            id=task_id,
            task=_text(fields, b"task"),
            state=state_of(heading_of(fields)),
            args=None if call is None else redaction.shown("args", call.args),
            kwargs=None if call is None else redaction.shown("kwargs", call.kwargs),
            created=_time(fields, b"created") or _EPOCH,
            began=_time(fields, b"opened") or _EPOCH,
            ended=None if live else _time(fields, b"ended"),
            worker=_text(fields, b"owner"),
            lease=moment(lease_ms) if lease_ms and live else None,
            waits_for=_waits_for(fields, steps),
            until=_until(fields),
            build=_text(fields, b"build"),
            error=redaction.error(_why(fields).get("error")),
            restarted_from=_text(fields, b"restarted_from"),
            attributes=_attributes_of(fields, redaction),
            steps=steps,
        )


@contextmanager
def _damage_told(task_id: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"  # the repr of some errors has the text that could not be read
        raise JournalUnreadableError(
            f"the journal of task {task_id} is damaged: {said}; look at its fields, and delete it"
        ) from error


# -- its parts ---------------------------------------------------------------------------------------------------------


def _attempts(fields: Fields) -> Iterator[AttemptRecord]:
    newest = int(fields.get(b"attempt", b"1"))
    if newest == 0:  # a restart that nobody has begun
        return
    for number in range(1, newest):
        past = past_attempt(fields, number)
        if past is not None:
            state = _HOW.get(past.how) or state_of(past.how)
            times = moment(past.began), None if past.left is None else moment(past.left)
            yield AttemptRecord(number, *times, state, past.owner, _build(past.build, fields), *past.counts)
    opened, left = _time(fields, b"opened") or _EPOCH, _left(fields)
    times = opened, _time(fields, b"ended") if left is None else moment(left)
    build = _build(_text(fields, b"attempt_build"), fields)
    yield AttemptRecord(
        newest, *times, _how_newest(fields, left), _text(fields, b"owner"), build, *counts_of_newest(fields)
    )


def _left(fields: Fields) -> float | None:
    """When the newest attempt has left the run (ms), and somebody else could go on or end it; None: it has not."""
    left = float(fields.get(b"left") or 0)
    # A worker of an older version does not delete what an earlier attempt has said.
    return left if left and left >= float(fields.get(b"opened") or 0) else None


def _how_newest(fields: Fields, left: float | None) -> str:
    if left is None:  # it goes on, or has ended the run
        return state_of(heading_of(fields))
    if b"paused" in fields:  # somebody may have retried it since
        return PAUSED
    return state_of(fields[b"waits"].decode()) if b"waits" in fields else RELEASED


def _actions(fields: Fields) -> Iterator[ActionRecord]:
    for action in read_actions(fields):
        yield ActionRecord(action["what"], action["by"], moment(action["at"]), action.get("run", ""))


def _build(attempt_build: str, fields: Fields) -> str:
    # The first attempt has the build of the run.
    return attempt_build.partition(":")[2] if attempt_build else _text(fields, b"build")


def _steps(fields: Fields, redaction: Redaction) -> Iterator[StepRecord]:
    entries = entries_of(fields)
    over = _sleeps_over(fields)
    for place in sorted(entries, key=in_order):
        entry = json.loads(entries[place])
        if entry["state"] == State.SLEEPING and entry["until"] <= over:
            entry["state"] = State.DONE
        yield _step(place, entry, redaction)


def _sleeps_over(fields: Fields) -> float:
    """Until when sleeps are over (ms): the entry of a sleep is not replaced when it is."""
    left = _left(fields)
    if left is not None:
        return left
    return time.time() * 1000 if _text(fields, b"status") == Status.RUNNING else inf


def _step(place: str, entry: dict[str, Any], redaction: Redaction) -> StepRecord:
    ended = entry.get("at", entry.get("until"))  # a sleep that was cancelled has both
    return StepRecord(
        kind=entry.get("kind", Kind.SLEEP if "until" in entry else Kind.STEP),
        name=entry["name"],
        place=place,
        state=entry["state"],
        executions=entry["attempts"],
        first=moment(entry["first"]) if "first" in entry else None,
        at=None if ended is None else moment(ended),
        ms=entry.get("ms"),
        error=redaction.error(entry.get("error")),
        preview=_preview(entry, redaction) if "value" in entry else "",
    )


def _preview(entry: dict[str, Any], redaction: Redaction) -> str:
    return redaction.preview(entry["name"], json.dumps(entry["value"], ensure_ascii=False), entry)


def _waits_for(fields: Fields, steps: tuple[StepRecord, ...]) -> str:
    if _text(fields, b"status") != Status.SUSPENDED:
        return ""
    waits = heading_of(fields)
    if waits == Wait.STALL:
        said = f"{WAITS_FOR[waits]}: {_misfit_in(json.loads(fields.get(b'stalled') or b'{}'))}"
        is_cancelled = _text(fields, b"cancel") == Cancellation.REQUESTED
        return f"{said}. It is cancelled, and such code is told so" if is_cancelled else said
    what = WAITS_FOR.get(waits, "its due time")
    names = [repr(step.name) for step in steps if step.state == _WAITING.get(waits)]
    return f"{what}: {', '.join(names)}" if names else what


def _misfit_in(stalled: dict[str, Any]) -> str:
    said = f"{stalled.get('found', '?')} is recorded at {stalled.get('position', '?')}"
    if "expected" in stalled:
        said += f", and build {stalled.get('expected_build') or '?'} asks for {stalled['expected']}"
    if "fails_at" in stalled:
        when = moment(stalled["fails_at"]).isoformat(sep=" ", timespec="seconds")
        said += f"; it fails at {when} if no such code comes"
    return said


def _why(fields: Fields) -> dict[str, Any]:
    """Why the run has failed, or is paused."""
    kept = fields.get(b"paused" if heading_of(fields) == Wait.PAUSE else b"outcome")
    return json.loads(kept) if kept else {}


def _until(fields: Fields) -> datetime | None:
    # A paused run has a due time, too, which tells nobody anything.
    waits = _text(fields, b"status") == Status.SUSPENDED and heading_of(fields) != Wait.PAUSE
    return _time(fields, b"due") if waits else None


def _attributes_of(fields: Fields, redaction: Redaction) -> dict[str, str]:
    try:
        attributes = read_attributes(fields)
    except JournalUnreadableError:  # the rest is shown all the same
        return {}
    return {name: str(redaction.shown(f"attribute {name}", value)) for name, value in attributes.items()}


def _call_of(fields: Fields, accept: frozenset[str]) -> Call | None:
    try:
        return Call.load(fields[b"call"], accept)
    except Exception:  # another serializer, or a journal that was damaged: the rest is shown all the same
        return None


# -- times -------------------------------------------------------------------------------------------------------------


_EPOCH = moment(0)


def _time(fields: Fields, name: bytes) -> datetime | None:
    return moment(float(fields[name])) if fields.get(name) else None


def _text(fields: Fields, name: bytes) -> str:
    return fields.get(name, b"").decode()
