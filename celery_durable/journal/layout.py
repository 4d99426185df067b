"""The layout of a journal: what each field of a run's hash says.

A run is one hash, and every value in it is text. It has layout 1, or 2 from the first entry of a branch on. In layout 2
branches are numbered when they are made, in layout 1 when they first use the context.

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
    waits        what a suspended run waits for: retry | sleep | stall | pause
    left         since when it waits; of a run whose process has ended in order, when that gave it back (ms)
    paused       the error after which no attempt was left, JSON as in the outcome; until the next attempt begins
    outcome      how the run ended, JSON           delivered    1: the result backend has it, callbacks are sent
    replaced     1: its task has given the id to another one (Task.replace), which begins a new journal
    cancel       requested | raised                resent       messages sent by recovery since the last attempt began
    reserved     <until> <token>: a Retry is about to reopen the failed run, and looks whether others do its work
    reopened     the requests that have reopened it after a failure or a pause, one a line
    changed      how often self.retry() has changed the arguments
    attributes   texts that its code gave it, by name, JSON: {"order": "o1"}
    executed     <n> <executed> <replayed>: how many steps attempt n has executed, and replayed; written when it ends
    actions      what people have done with it, one JSON document a line: {"what", "by", "at"}, and "request": the name
                 of the wish, which is fulfilled once, or "run": another run that came of it
    restarted_from  the run that this one restarts
    ancestors    that run, the one that it restarts, and so on, JSON: ids, the oldest first
    purged       when somebody has deleted the journal. What is left is this, the seed, so that a message that comes
                 late begins nothing, and the ids of the runs that do the same work
    former       what that one had drawn, JSON: {"until": the position from which this one runs again,
                 "drawn": {field: value}}
    attempt.<n>  an attempt before the newest one: how it was left (what it waited for, or the status, or released: its
                 process has ended in order), when it began, when it was left (nothing: it died), its process, how many
                 steps it has executed and replayed, its build; the newest 99
    step:<n>     the n-th operation, an entry: {"name", "kind", "state", "attempts", ...}; "build" if another one than
                 the run's recorded it, "patches" that ctx.patched() let in before it
                 a step, whose kind is not written: started | retrying | done (with its "value") | failed | cancelled
                 a sleep: sleeping | cancelled, with "until"; version 0.1.0 did not write its kind, either
    uuid:<n>     the n-th uuid()                   time:<n>, now:<n>   the n-th time(), now()
                 (<b>.<n>: the n-th of branch b, a coroutine that runs beside the body; @<key>.<n>: of a named one)
    arguments:<n>  the arguments that are models, as they were accepted after the n-th change by self.retry()
"""

from __future__ import annotations

import os

LAYOUT = "2"
"""The newest layout that this version reads. A run has it from the first entry of a branch on."""
UNBRANCHED = "1"
"""The layout of a run before that. A version that knows only this one numbers branches by another rule."""

Fields = dict[bytes, bytes]
"""A journal as it was loaded. An entry stays bytes until the code reaches it."""


# These are names for plain texts, and no Enum: each step reads some of them, and an Enum makes the import slower.


class Status:
    """What becomes of a run."""

    RUNNING = "running"
    SUSPENDED = "suspended"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REVOKED = "revoked"
    """Somebody has ended it, by ``cancel`` or ``control.revoke``."""
    IGNORED = "ignored"
    UNKNOWN = "unknown"
    """The id has no journal."""

    LIVE = frozenset({RUNNING, SUSPENDED})
    ENDED = frozenset({SUCCEEDED, FAILED, REVOKED, IGNORED})


REPLACED = "replaced"
"""The field of an ended run whose id another task has (``Task.replace``)."""


def is_replaced(fields: Fields) -> bool:
    """Whether another task has its id. That one may be at its work, or may have yet to begin."""
    return REPLACED.encode() in fields


RESERVED = "reserved"
"""The field of a failed run that a Retry is about to reopen."""


def is_at_work(fields: Fields) -> bool:
    """Whether somebody may do the work of the run."""
    return fields.get(b"status", b"").decode() in Status.LIVE or is_replaced(fields)


class Wait:
    """What a suspended run waits for."""

    RETRY = "retry"
    """A step, its task or the broker has it executed again."""
    SLEEP = "sleep"
    STALL = "stall"
    """A worker whose code fits its journal."""
    PAUSE = "pause"
    """Somebody who retries or cancels it: no attempt is left. It is due in the far future."""


class Left:
    """How an attempt was left, if neither a status nor what the run waits for says it."""

    RELEASED = "released"
    """Its process has ended in order, and has given the run back."""


def is_paused(fields: Fields) -> bool:
    """Whether it waits for somebody to retry or to cancel it."""
    return (fields.get(b"status"), fields.get(b"waits")) == (Status.SUSPENDED.encode(), Wait.PAUSE.encode())


class Kind:
    """Which operation an entry is of."""

    STEP = "step"
    SLEEP = "sleep"

    KNOWN = frozenset({STEP, SLEEP})
    """This version knows these. A newer one may write others."""


class State:
    """How far an operation has come."""

    STARTED = "started"
    RETRYING = "retrying"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SLEEPING = "sleeping"

    KNOWN = frozenset({STARTED, RETRYING, DONE, FAILED, CANCELLED, SLEEPING})
    SETTLED = frozenset({DONE, FAILED, CANCELLED})
    """Nothing replaces such an entry."""
    WITH_ERROR = frozenset({FAILED, CANCELLED})
    UNENDED = frozenset({STARTED, RETRYING})
    """It has begun, and it has not ended for good."""


class Cancellation:
    """How far the cancellation of a run has come."""

    REQUESTED = "requested"
    RAISED = "raised"
    """Its code has been told."""


def new_seed() -> str:
    """Drawn once per run. All that is random in the run depends on it."""
    return os.urandom(16).hex()


def step_field(position: str) -> str:
    return f"step:{position}"


def entries_of(fields: Fields) -> dict[str, bytes]:
    """The entries of a journal by their positions. What is no UTF-8 in a position is replaced: it is damaged."""
    # It is a list first, because the body may take an entry out meanwhile.
    return {name[5:].decode(errors="replace"): raw for name, raw in list(fields.items()) if name[:5] == b"step:"}
