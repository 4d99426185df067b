"""What is shown of a run, of its attempts and of its steps. The records are frozen: they say how things were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeVar

STARTED = "STARTED"
"""Celery's state of a run that is under way."""


class _Moment:
    """A time that is made when somebody looks at it. Most receivers of a signal do not, and a step has no time to lose.

    The record has the milliseconds instead, as ``<name>_ms``. Without them it is None, which is also its default.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, record: object, kind: type | None = None) -> datetime | None:
        if record is None:
            return None
        ms = vars(record).get(f"{self._name}_ms")
        when = vars(record)[self._name] = None if ms is None else moment(ms)
        return when


@dataclass(frozen=True)
class StepRecord:
    """A step or a wait of a run, as its journal says it.

    Attributes:
        kind: ``step`` or ``sleep``.
        name: its name.
        place: its position in program order (``3``; ``2.1`` is the first of the second branch).
        state: ``started``, ``retrying``, ``done``, ``failed``, ``cancelled``, or ``sleeping``.
        executions: how often it was started.
        first: when it was first started, if that is recorded (aware datetime, UTC).
        at: when it ended (aware datetime), or when its sleep is over; None: it has not.
        ms: how long its last execution took, in milliseconds. None: it has not ended, or has failed.
        error: its last error, as one line; empty if there was none.
        preview: what it returned, as text that is cut to 200 characters.
    """

    kind: str
    name: str
    place: str
    state: str
    executions: int
    first: datetime | None = _Moment()  # type: ignore[assignment]
    at: datetime | None = _Moment()  # type: ignore[assignment]
    ms: int | None = None
    error: str = ""
    preview: str = ""


@dataclass(frozen=True)
class AttemptRecord:
    """An attempt of a run.

    Attributes:
        number: the first is 1.
        began: when it began (aware datetime, UTC).
        ended: when it ended; None: it has not, or it died, and nobody knows when.
        how: the state in which it left the run (``RETRY``, ``SUSPENDED``, ``PAUSED``, ``FAILURE``, ...);
            ``STARTED``: it goes on; ``RELEASED``: its process has ended in order, and has given the run back; ``DIED``:
            its process was lost.
        worker: the host, the worker (a token) and the process that had it.
        build: the build of its code; empty if it is not known.
        executed: how many steps it has executed. None: it goes on, or its process was lost, or an older version of
            the library had it.
        replayed: how many steps it has replayed, or None.
    """

    number: int
    began: datetime
    ended: datetime | None
    how: str
    worker: str
    build: str
    executed: int | None = None
    replayed: int | None = None


@dataclass(frozen=True)
class ActionRecord:
    """What somebody has done with a run.

    Attributes:
        what: ``retry``, ``restart``, ``cancel``, ``wake``, or ``import``.
        by: who; empty: nobody has said.
        at: when (aware datetime, UTC, by Redis' clock).
        run: the id of the run that restarts this one, if that is what was done; else empty.
    """

    what: str
    by: str
    at: datetime
    run: str = ""


@dataclass(frozen=True)
class Run:
    """A run, as its journal says it. A signal may know less of it: see :mod:`celery_durable.signals`.

    Attributes:
        id: the id of the task.
        task: the name of the task.
        state: Celery's state (``STARTED``, ``RETRY``, ``SUCCESS``, ``FAILURE``, ``REVOKED``, ``IGNORED``), or
            ``SUSPENDED`` (it sleeps), ``STALLED`` (it waits for code that fits its journal), or ``PAUSED`` (no retry is
            left, and it waits for somebody to retry or to cancel it).
        args, kwargs: its arguments. None: this process does not read their serializer.
        created: when its first attempt began (aware datetime, UTC, by Redis' clock, as all times here).
        began: when its newest attempt began.
        ended: when it ended; None: it is live.
        worker: what has, or had, its newest attempt.
        lease: until when that attempt has the run, if it is not renewed; None: nobody has it.
        waits_for: what a run that waits does so for, as text; empty: it does not wait.
        until: until when it waits (a STALLED run: for the next worker to try it); None: it does not, or for no time.
        build: the build of the code that began it; empty if it is not known.
        error: why it has failed or is paused, as one line; empty: neither.
        restarted_from: the id of the run that it restarts; empty: it restarts none.
        attributes: what its code has said by ``ctx.set_attributes``, texts by name.
        attempts: its attempts, the oldest first; empty in a list of runs.
        steps: its steps and waits in program order; empty in a list of runs.
        actions: what people have done with it, the oldest first; empty in a list of runs.
    """

    id: str
    task: str
    state: str
    args: Any
    kwargs: Any
    created: datetime
    began: datetime
    ended: datetime | None
    worker: str
    lease: datetime | None
    waits_for: str
    until: datetime | None
    build: str
    error: str
    restarted_from: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    attempts: tuple[AttemptRecord, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    actions: tuple[ActionRecord, ...] = ()


# -- what records are made of ------------------------------------------------------------------------------------------

_LONGEST_PREVIEW = 200
_LONGEST_ERROR = 500


T = TypeVar("T")


def made(kind: type[T], /, **attributes: Any) -> T:
    """A record with all of these attributes, without its constructor, which takes four times as long.

    A time may be given as milliseconds, with ``_ms`` behind its name. Only what is made for each step needs all this.
    """
    record = object.__new__(kind)
    vars(record).update(attributes)
    return record


def moment(ms: float) -> datetime:
    """A time of the journal, *ms* since the epoch."""
    return datetime.fromtimestamp(ms / 1000, timezone.utc)


def error_line(facts: dict[str, Any] | None, redacted: Callable[[str], Any] = str) -> str:
    """An error of the journal as one line; empty if there is none. *redacted* gives what is shown of its text."""
    if not facts:
        return ""
    text = redacted(f"{facts.get('type', 'Exception')}: {facts.get('message', '')}")
    return cut(str(text).replace("\n", " "), _LONGEST_ERROR)


def arguments_of(run: Run) -> str:
    """The arguments of a run, as in a call."""
    if run.args is None:
        return "(of a serializer that is not accepted here)"
    # What is redacted may be no arguments any more, but a text about them.
    texts = [repr(argument) for argument in run.args] if isinstance(run.args, (list, tuple)) else [str(run.args)]
    if isinstance(run.kwargs, dict):
        texts += [f"{name}={value!r}" for name, value in run.kwargs.items()]
    else:
        texts.append(str(run.kwargs))
    return ", ".join(texts)


def preview_of(text: str, written_by: str = "") -> str:
    """A value for people: the beginning of its JSON; of what something else was *written_by*, only that and its size.

    Such are serializers and compressions.
    """
    return f"<{written_by}, {len(text)} characters>" if written_by else cut(text, _LONGEST_PREVIEW)


def number_of_runs(number: int) -> str:
    """``1 run``, ``5,000 runs``."""
    return f"{number:,} run{'' if number == 1 else 's'}"


def cut(text: str, most: int) -> str:
    """A text, or the beginning of one that has more than so many characters."""
    return text if len(text) <= most else text[: most - 3] + "..."
