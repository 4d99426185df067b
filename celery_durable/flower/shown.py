"""How a page writes what a record says: as plain text. The templates escape it."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from urllib.parse import quote

from celery_durable.records import STARTED, AttemptRecord, Run, StepRecord, arguments_of, cut

_LONGEST_CALL = 120
_LONGEST_VALUE = 4_000
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def utf8(text: str | bytes | None) -> bytes | None:
    """What a template sends. What is no Unicode, such as a strange byte in the name of a file, becomes an escape."""
    return text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text


def path(task_id: str) -> str:
    """An id as a part of an address."""
    return quote(task_id, safe="")


def time(when: datetime | None, zone: tzinfo) -> str:
    return "" if when is None else when.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def exact(when: datetime | None) -> str:
    """For programs, and for those who point at a time."""
    return "" if when is None else when.isoformat(timespec="milliseconds")


def span(duration: timedelta) -> str:
    """A duration in its two largest units."""
    seconds = duration.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    left = round(seconds)
    words: list[str] = []
    for size, unit in _UNITS:
        number, left = divmod(left, size)
        if number or words:
            words.append(f"{number} {unit}")
    return " ".join(word for word in words[:2] if not word.startswith("0 "))


def distance(when: datetime, now: datetime) -> str:
    """How far away a time is: ``in 2 h``, ``3 min 5 s ago``."""
    return f"in {span(when - now)}" if when > now else f"{span(now - when)} ago"


def call(run: Run) -> str:
    """The arguments of a run, in one short line."""
    return cut(arguments_of(run), _LONGEST_CALL)


def value(given: object) -> str:
    return cut(repr(given), _LONGEST_VALUE)


def took(record: AttemptRecord, now: datetime) -> str:
    """How long an attempt has taken, as far as that is known."""
    if record.ended is not None:
        return span(record.ended - record.began)
    return span(now - record.began) if record.how == STARTED else ""


def spent(step: StepRecord) -> str:
    """How long the last execution of a step has taken, as far as that is known."""
    return "" if step.ms is None else span(timedelta(milliseconds=step.ms))


def title(step: StepRecord) -> str:
    """The facts of a step that a row has no room for."""
    facts = [f"{step.kind} {step.name}: {step.state}"]
    if step.executions > 1:
        facts.append(f"{step.executions} executions")
    facts += [f"{word} {exact(when)}" for word, when in (("first", step.first), ("at", step.at)) if when is not None]
    return ", ".join(facts)


def counts(attempt: AttemptRecord) -> str:
    """How many steps an attempt has executed and replayed, as far as that is known."""
    return "" if attempt.executed is None else f"{attempt.executed} executed, {attempt.replayed} replayed"
