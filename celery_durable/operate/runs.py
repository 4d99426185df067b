"""All durable runs of an app: to find them, to look at them, and to send them on their way."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from celery_durable.app.store import store_of
from celery_durable.delivery.backend import state_of
from celery_durable.exceptions import ConfigurationError, JournalUnreadableError, RunNotFound
from celery_durable.journal.headings import HEADINGS, heading_of
from celery_durable.journal.layout import Fields
from celery_durable.journal.run_id import checked_id, no_journal
from celery_durable.records import Run
from celery_durable.redis.index import Indexed, Range
from celery_durable.redis.keys import not_a_journal
from celery_durable.task.apps import resolve_app

from .following import PAUSE, changes_of
from .reading import SUMMARY, Reader, unread_run
from .search import Search
from .states import STATES, by_state
from .verbs.cancelling import cancel_run
from .verbs.documents import document_of
from .verbs.importing import import_run
from .verbs.purging import purge_run
from .verbs.restarting import restart_run
from .verbs.retrying import retry_run
from .verbs.waking import wake_run

logger = logging.getLogger("celery_durable")

PAGE = 50
"""So many runs a page has, if nobody says how many."""
_LONGEST_PAGE = 1_000
_CURSOR = re.compile("(?P<created>[0-9]{1,15})-(?P<task_id>.+)", re.DOTALL)
_CHUNK = 500
"""So many runs are read at a time, at least, if many of them may not be meant."""


class Page(Sequence[Run]):
    """Some runs, the newest first.

    Attributes:
        cursor: for the next page (text); None: there is none.
    """

    def __init__(self, runs: list[Run], cursor: str | None) -> None:
        self._runs = runs
        self.cursor = cursor

    def __getitem__(self, number: Any) -> Any:
        return self._runs[number]

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        return f"<Page of {len(self)} runs, {'more follow' if self.cursor else 'the last one'}>"


class Runs:
    """The durable runs of an app.

    Args:
        app: the Celery app. Default: the current app; in a thread without one, the only app of the process.

    Raises:
        ConfigurationError: no app is given, and the process has several; or no Redis is configured.
    """

    def __init__(self, app: Any = None) -> None:
        self.app = resolve_app("Runs()") if app is None else app
        self._store = store_of(self.app)
        self._reader = Reader.of(self.app)

    def get(self, task_id: str) -> Run:
        """The run with this id, with its attempts and its steps.

        Raises:
            RunNotFound: it has no journal.
            JournalUnavailableError: Redis does not answer.
            JournalUnreadableError: its journal is damaged, or of a newer layout.
        """
        return self._record(task_id, self._load(task_id))

    def follow(self, task_id: str, *, pause: float = PAUSE) -> Iterator[Run]:
        """The run as it is now, and again after each change, until it has ended.

        Args:
            task_id: the id of the run.
            pause: seconds between two looks. Default 0.5.

        Raises:
            RunNotFound: it has no journal, or none any more.
            JournalUnavailableError: Redis does not answer.
            JournalUnreadableError: its journal is damaged, or of a newer layout.
        """
        shown = None
        for fields in changes_of(self._store.runs, checked_id(task_id, RunNotFound), pause):
            run = self._record(task_id, fields)
            if shown is None or _without_lease(run) != _without_lease(shown):
                yield run
                shown = run
            if run.ended is not None:
                return

    def _load(self, task_id: str) -> Fields:
        return _checked_journal(task_id, self._store.runs.load(checked_id(task_id, RunNotFound)))

    def _record(self, task_id: str, fields: Fields) -> Run:
        [(_, lease)] = self._store.index.load([Indexed.of(task_id)], (b"status",))
        return self._reader.run(task_id, _checked_journal(task_id, fields), lease)

    def list(
        self,
        *,
        state: str | Collection[str] | None = None,
        task: str | Collection[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        text: str | None = None,
        attributes: Mapping[str, str] | None = None,
        limit: int = PAGE,
        cursor: str | None = None,
    ) -> Page:
        """A page of runs, the newest first. Their attempts and steps are not read.

        Args:
            state: only runs in this state, or in one of these (``SUSPENDED``, ``FAILURE``, ...). Default: all.
            task: only runs of the task with this name, or of one of these.
            since: only runs that were created at this time or later (aware datetime).
            until: only runs that were created at this time or earlier.
            text: only runs with this in their id, in the name of their task, or in their arguments (as JSON writes
                them), in small or in capital letters.
            attributes: only runs that have all of these attributes (``ctx.set_attributes``), with these values.
            limit: how many runs a page has at most, from 1 to 1,000. Default 50.
            cursor: that of the page before.

        Raises:
            ConfigurationError: an argument is wrong.
            JournalUnavailableError: Redis does not answer.
        """
        headings, tasks, limit = _headings(state), _names("task", task), _limit(limit)
        span = Range(_ms("until", until), _ms("since", since))
        span = span if cursor is None else _behind(span, cursor)
        search = Search(text, attributes)
        found: list[Run] = []
        last = None
        for indexed, run in self._read(span, headings, tasks, search, limit + 1):
            if last is not None and len(found) == limit:
                return Page(found, f"{last.created}-{last.task_id}")
            found.append(run)
            last = indexed
        return Page(found, None)

    def _read(
        self, span: Range, headings: Sequence[str], tasks: Sequence[str], search: Search, most: int
    ) -> Iterator[tuple[Indexed, Run]]:
        """All runs of a part of the index that a search finds, read *most* at a time."""
        index = self._store.index
        sieve = search.sieve(as_recorded=self._reader.shows_all)
        if not search.is_certain_in_redis:
            most = max(most, _CHUNK)
        while page := index.page(most, span, headings, tasks, sieve):
            loaded = list(zip(page, index.load(page, SUMMARY), strict=True))
            # Their journals have expired, or a worker of an older version has changed them.
            index.refile(run for run, (fields, _) in loaded if _heading(run, fields) != run.heading)
            for run, (fields, lease) in loaded:
                if _heading(run, fields) in headings:
                    record = self._summary(run, fields, lease)
                    if search.finds(record):
                        yield run, record
            if len(page) < most:
                return
            span = span.behind(page[-1])

    def _summary(self, run: Indexed, fields: Fields | None, lease: float | None) -> Run:
        if fields is None:
            return unread_run(run, state_of(run.heading), not_a_journal(self._store.keys(run.task_id)))
        try:
            return self._reader.summary(run.task_id, fields, lease)
        except JournalUnreadableError as error:
            return unread_run(run, state_of(heading_of(fields)), error)

    # -- what an operator does

    def retry(self, task_id: str, *, by: str | None = None) -> str:
        """Send a failed or paused run again under its id, as the task ``celery_durable.retry`` does.

        It goes on from its journal, with fresh budgets. Returns what is replayed and what runs again, as text.

        Args:
            task_id: the id of the run.
            by: who does it; kept in the journal.

        Raises:
            RunNotRetryableError: it is neither FAILURE nor PAUSED, has no journal, or a run that restarts it is alive.
            JournalUnreadableError: an entry is damaged, and nothing was sent.
            JournalUnavailableError: Redis does not answer.
            OperationalError, OSError: the broker cannot be reached, and nothing was sent.
        """
        return str(retry_run(self.app, task_id, str(uuid4()), by=by)["note"])

    def restart(self, task_id: str, *, from_step: str | None = None, by: str | None = None) -> str:
        """Begin a new run with the arguments, headers, queue and callbacks of a run that has ended. Returns its id.

        The old run stays as it is. The new one names it (``Run.restarted_from``). It has a seed of its own, so its
        UUIDs, random numbers and idempotency keys are new.

        With *from_step* it takes over the seed of the old run, and what that has recorded before this step: this is
        replayed. The step, and all behind it, runs again. So ``uuid()`` and ``random()`` give what they gave there. The
        idempotency keys of steps depend on the id, and are new.

        What follows the run (callbacks, the rest of a chain) is sent when the new run ends, under the ids that it has.
        A group or a chord has counted the old run, so the new one is no part of it.

        Args:
            task_id: the id of the old run.
            from_step: the name of a step or of a wait, or its position (``Run.steps[n].place``). Default: none, the
                new run begins from its beginning.
            by: who does it; kept in both journals.

        Raises:
            RunNotRestartableError: the run is alive, or has no journal; a run that restarts it is alive; or it cannot
                be restarted from this step. Then the error says from which.
            JournalUnreadableError: an entry is damaged.
            JournalUnavailableError: Redis does not answer.
        """
        return restart_run(self.app, task_id, str(uuid4()), from_step=from_step, by=by)

    def cancel(self, task_id: str, *, by: str | None = None) -> None:
        """Cancel a live run: see :func:`celery_durable.cancel`.

        Raises:
            RunNotCancellableError: it has not begun, or has ended.
            JournalUnavailableError: Redis does not answer.
        """
        cancel_run(self.app, task_id, str(uuid4()), by=by)

    def wake(self, task_id: str, *, by: str | None = None) -> None:
        """End the wait of a run now: a sleep is over, or the next attempt of a retry begins.

        A run that no worker would go on with (``celery durable doctor`` finds such runs) goes on, too.

        Raises:
            RunNotWakeableError: it does not wait, or it is paused: somebody has to retry or to cancel it.
            JournalUnavailableError: Redis does not answer.
        """
        wake_run(self.app, task_id, str(uuid4()), by=by)

    def purge(self, task_id: str, *, by: str | None = None) -> None:
        """Delete the journal of a run that has ended. Its result stays.

        A mark stays, too, for as long as the journal would have: a message of the run that comes late begins nothing.

        Args:
            task_id: the id of the run.
            by: who does it; it is logged, because no journal is left that could keep it.

        Raises:
            RunNotPurgeableError: it has not ended, its outcome is not delivered, or it has no journal.
            JournalUnavailableError: Redis does not answer.
        """
        purge_run(self.app, task_id, by=by)

    def export(self, task_id: str, *, by: str | None = None) -> dict[str, Any]:
        """All that the journal of a run holds, as a document that JSON can write.

        ``durable_redact`` does not apply: the document has the arguments and results as they are recorded.

        Args:
            task_id: the id of the run.
            by: who does it; it is logged. The journal keeps what changes the run, and this does not.

        Returns:
            ``{"format": 1, "id": ..., "fields": {name: text}}``. A value that is no text is ``{"base64": text}``.

        Raises:
            RunNotFound: it has no journal.
            JournalUnreadableError: its journal is of a newer layout.
        """
        document = document_of(task_id, self._load(task_id))
        logger.info("task %s: its journal is exported%s", task_id, f" by {by}" if by else "")
        return document

    def import_(self, document: Mapping[str, Any], *, by: str | None = None) -> str:
        """Bring a run back that :meth:`export` has written: it is found again, and a failure can be retried.

        Only a run that has ended comes back, because another one may go on where it was exported. It is kept from now
        on as long as the settings say (``durable_retention``, ``durable_failure_retention``). Returns its id.

        Args:
            document: what :meth:`export` gave.
            by: who does it; kept in the journal.

        Raises:
            RunNotImportableError: the document is damaged, or of a newer version; the run had not ended; or its id has
                a journal here.
        """
        return import_run(self.app, document, str(uuid4()), by=by)

    # -- how many, and how they stand

    def states(self, task_ids: Collection[str]) -> dict[str, str]:
        """The states of these runs, by their ids. Ids without a journal are left out."""
        found = self._store.index.load([Indexed.of(task_id) for task_id in task_ids], (b"status", b"waits"))
        return {
            task_id: state_of(heading_of(fields))
            for task_id, (fields, _) in zip(task_ids, found, strict=True)
            if fields and b"status" in fields
        }

    def counts(self, *, task: str | Collection[str] | None = None) -> dict[str, int]:
        """How many runs are in each state. States without runs are left out.

        Args:
            task: only runs of the task with this name, or of one of these. Default: of all.

        A state that only a newer version of the library knows comes last, under the name that the index has for it.
        """
        counts: Counter[str] = Counter()
        wanted = _names("task", task)
        for (state, name), number in by_state(self._store.index.counts()).items():
            if not wanted or name in wanted:
                counts[state] += number
        return {state: counts[state] for state in (*STATES, *counts) if state in counts}


def _heading(run: Indexed, fields: Fields | None) -> str | None:
    """What the journal says; if its key holds something else, what the index says."""
    if fields is None:
        return run.heading
    return heading_of(fields) if b"status" in fields else None


def _checked_journal(task_id: str, fields: Fields) -> Fields:
    if b"status" not in fields:
        raise RunNotFound(no_journal(task_id))
    return fields


def _without_lease(run: Run) -> Run:
    # It is renewed all the time.
    return replace(run, lease=None)


# -- arguments ---------------------------------------------------------------------------------------------------------


def _names(what: str, given: Any) -> list[str]:
    names = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"{what} must be a text or several, got {given!r}")
    return list(names)


def _headings(state: str | Collection[str] | None) -> tuple[str, ...]:
    wanted = _names("state", state)
    if unknown := sorted(set(wanted) - set(STATES)):
        raise ConfigurationError(f"state must be one of {', '.join(STATES)}, got {', '.join(unknown)}")
    return tuple(heading for heading in HEADINGS if not wanted or state_of(heading) in wanted)


def _limit(given: Any) -> int:
    if not isinstance(given, int) or not 1 <= given <= _LONGEST_PAGE:
        raise ConfigurationError(f"limit must be from 1 to {_LONGEST_PAGE:,}, got {given!r}")
    return given


def _ms(name: str, when: Any) -> int | None:
    if when is None:
        return None
    if not isinstance(when, datetime) or when.tzinfo is None:
        raise ConfigurationError(f"{name} must be an aware datetime, got {when!r}: say its time zone")
    return int(when.timestamp() * 1000)


def _behind(span: Range, cursor: Any) -> Range:
    read = _CURSOR.fullmatch(cursor) if isinstance(cursor, str) else None
    if read is None:
        raise ConfigurationError(f"cursor must be that of a page of runs, got {cursor!r}")
    return span.behind(Indexed.of(read["task_id"], int(read["created"])))
