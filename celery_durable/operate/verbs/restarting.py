"""Begins a new run with the call of an old one: from its beginning, or from one of its steps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery_durable.app.store import Store, store_of
from celery_durable.delivery.backend import state_of
from celery_durable.delivery.call import Call
from celery_durable.delivery.message import BROKER_ERRORS
from celery_durable.exceptions import DurableError, RunNotRestartableError
from celery_durable.journal.actions import ancestors_of, descent, newest_restart, restarts_of
from celery_durable.journal.headings import heading_of
from celery_durable.journal.layout import UNBRANCHED, Fields, Status, Wait, is_paused, is_replaced, new_seed
from celery_durable.journal.restarting import before_step
from celery_durable.journal.run_id import checked_id, no_journal
from celery_durable.redis.family import Relative, Standing

logger = logging.getLogger("celery_durable")

_KEPT_UNBEGUN = 24 * 3600.0
"""Seconds for which a restart is kept that has broken off before its run could begin."""

# A plain task leaves no word of its end.
_IS_REPLACED = (
    "was replaced by another task (Task.replace), which has its id now: if that is durable, wait until it has ended, "
    "else send the task under a new id"
)

_OF_EVERY_RUN = (b"task", b"fingerprint", b"nesting", b"changed")
"""The fields that belong to the call: a message is compared with them."""
_OF_ITS_ENTRIES = (b"v", b"seed", b"build")
"""The fields by which entries are read."""


def restart_run(app: Any, task_id: str, new_id: str, *, from_step: str | None = None, by: str | None = None) -> str:
    """Begin a run with the id *new_id* that does again what the run *task_id* has done. Returns that id.

    It may be called again with the same *new_id*: the run begins once.

    Raises:
        RunNotRestartableError: the old run is alive, or has no journal, or cannot be restarted from this step.
        JournalUnreadableError: its journal is damaged, or of a newer layout.
    """
    store = store_of(app)
    fields = store.runs.load(checked_id(task_id, RunNotRestartableError))
    if new_id in restarts_of(fields):  # this was asked before, and may have broken off then
        _note_in_ancestors(store, fields, new_id, by)
        _begin_once_more(store, task_id, new_id)
        return new_id
    _check_ended(task_id, fields)
    if (relative := store.families.nearest(task_id, fields)) and relative.standing is Standing.AT_WORK:
        raise RunNotRestartableError(said_of(relative, task_id, fields))
    with reading_call(task_id, RunNotRestartableError):
        name = fields[b"task"].decode()
        call, text = Call.for_restart(fields[b"call"], frozenset(app.conf.accept_content), new_id)
    new = _fields_of(task_id, fields, from_step) | {b"call": text.encode()}
    # If this breaks off, the new run is paused: nobody begins it before it is known as a restart of the old one.
    is_planted = store.runs.plant(new_id, new, _KEPT_UNBEGUN, "restart", by, new_id)
    if not _is_noted(store, task_id, fields, new_id, new, by):
        if is_planted:
            _uproot(store, new_id)
        raise _outrun(task_id)
    _begin(store, new_id)
    logger.info("task %s: is restarted as %s", task_id, new_id)
    try:
        # It begins no run, so a late copy of this message does nothing.
        call.send(app, name, {"hint": 1}, seed=new[b"seed"].decode())
    except BROKER_ERRORS as error:
        logger.warning("task %s: cannot be sent now; a worker sends it from the journal: %r", new_id, error)
    return new_id


def _is_noted(store: Store, task_id: str, fields: Fields, new_id: str, new: Fields, by: str | None) -> bool:
    """Note in the old run, and in those that it restarts, that a new one does this work. False: another run does it."""
    if not store.runs.note_restart(task_id, by, new_id, newest_restart(fields)):
        return False
    _note_in_ancestors(store, fields, new_id, by)
    # One of them may have been retried, or restarted, a moment ago.
    return store.families.may_begin(new_id, new)


def _note_in_ancestors(store: Store, fields: Fields, new_id: str, by: str | None) -> None:
    for ancestor in ancestors_of(fields):
        store.runs.note(ancestor, "restart", by, new_id, new_id)


@contextmanager
def reading_call(task_id: str, refusal: type[DurableError]) -> Iterator[None]:
    """Read the saved call of a run in this block. If that fails, *refusal* says so."""
    try:
        yield
    except Exception as error:
        said = f"{type(error).__name__}: {error}"  # the repr of some errors has the text that could not be read
        raise refusal(f"task {task_id}: its saved call cannot be read by this app: {said}") from error


def said_of(relative: Relative, task_id: str, fields: Fields) -> str:
    """Why the work of a run is not begun beside this relative, and what to do."""
    said = "was restarted as" if relative.task_id in restarts_of(fields) else "does the same work as"
    if relative.standing is Standing.DONE:
        how = "has succeeded since: if the work is to be done once more, restart it"
    elif is_replaced(relative.fields):
        how = _IS_REPLACED
    elif relative.fields.get(b"waits") == Wait.PAUSE.encode():
        how = "is paused: retry it, or cancel it first"
    else:
        how = "has not ended: wait for it, or cancel it first"
    return f"task {task_id} {said} {relative.task_id}, which {how}"


def _begin(store: Store, task_id: str) -> None:
    """Let a restart that was planted begin. If that was done before, nothing changes."""
    store.runs.unpause(task_id, task_id, "0", slack=store.settings.lease)


def _begin_once_more(store: Store, task_id: str, new_id: str) -> None:
    """The same for a wish that comes again: somebody may have begun the work since it came first."""
    new = store.runs.load(new_id)
    is_unbegun = is_paused(new) and new.get(b"attempt") == b"0"
    if not new or (is_unbegun and not store.families.may_begin(new_id, new)):
        raise _outrun(task_id)
    _begin(store, new_id)


def _outrun(task_id: str) -> RunNotRestartableError:
    return RunNotRestartableError(f"task {task_id}: somebody has restarted or retried it just now: look at it again")


def _uproot(store: Store, task_id: str) -> None:
    """Take back a restart that was planted just now. No message of it was sent yet."""
    store.runs.terminate(task_id, Status.REVOKED, 0.0, "{}")
    store.runs.purge(task_id)


def _check_ended(task_id: str, fields: Fields) -> None:
    status = fields.get(b"status", b"").decode()
    if not status:
        raise RunNotRestartableError(no_journal(task_id))
    if is_replaced(fields):
        raise RunNotRestartableError(f"task {task_id} {_IS_REPLACED}")
    if status not in Status.ENDED:
        raise RunNotRestartableError(
            f"task {task_id} has not ended, it is {state_of(heading_of(fields))}: cancel it first, so that nothing is "
            f"done twice at once"
        )


def _fields_of(task_id: str, fields: Fields, from_step: str | None) -> Fields:
    """The journal of the new run, without its call."""
    new = {name: fields[name] for name in _OF_EVERY_RUN if name in fields}
    new |= {b"v": UNBRANCHED.encode(), b"seed": new_seed().encode(), **descent(task_id, fields)}
    new |= {b"status": Status.SUSPENDED.encode(), b"waits": Wait.PAUSE.encode(), b"attempt": b"0", b"recoveries": b"0"}
    if from_step is None:
        return new
    new |= before_step(task_id, fields, from_step)
    new |= {name: fields[name] for name in _OF_ITS_ENTRIES if name in fields}
    # As if an attempt of that build had been the last one: then entries that name no build are of the build of the run.
    return new | {b"attempt_build": b"0:" + fields.get(b"build", b"")}
