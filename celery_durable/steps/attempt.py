"""One attempt: what its journal holds, where its code is, and what it still has to tell the journal.

The rules of replay live here; what a step does lives in :mod:`step`. Imports neither Celery nor Redis.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from celery_durable import django
from celery_durable.config.settings import AttemptSettings
from celery_durable.drivers.siblings import Siblings
from celery_durable.exceptions import (
    ConfigurationError,
    ContextClosedError,
    ContextInStepError,
    DurableError,
    InvalidStepError,
    JournalMismatchError,
    JournalUnavailableError,
    JournalUnreadableError,
)
from celery_durable.interrupts import EndRun, FailAttempt, Fenced, Interrupt, JournalLost, RetryStep, Sleep, Stall
from celery_durable.journal.entries import Entry, annotated, damaged, read_entry
from celery_durable.journal.layout import LAYOUT, UNBRANCHED, Cancellation, Fields, Kind, step_field
from celery_durable.journal.port import Journal, Opened
from celery_durable.journal.positions import in_order, path_of
from celery_durable.values.failure import failure_of, text_of

from .places import Here, Places

if TYPE_CHECKING:
    from .step import Step

logger = logging.getLogger("celery_durable")

T = TypeVar("T")

MANY_ENTRIES = 10_000
MANY_BYTES = 64 * 2**20
_PAIRS_AT_AN_END = 500
LONGEST_SILENCE = 1.0
"""Seconds since a step was recorded, after which Redis is asked before an action starts."""
_OUT_OF_TOUCH = (Fenced, JournalLost)
UNKNOWN_BUILD = "unknown"
"""In place of that of what version 0.1.0 recorded."""


running_step: ContextVar[Any] = ContextVar("celery_durable_step", default=None)
"""The :class:`~celery_durable.steps.step.Step` whose action this code belongs to."""


class Surroundings(NamedTuple):
    """What user code may read of the task that the attempt belongs to."""

    task_id: str
    task: str
    request: Any = None
    logger: logging.Logger = logger
    direct: bool = False
    """Called as a plain function: no retries, errors as they are."""
    eager: bool = False
    """Never wait."""
    verdicts: tuple[type[BaseException], ...] = ()
    """Exceptions by which user code says what becomes of the task: no failures of a step."""
    limits: tuple[type[BaseException], ...] = ()
    """Exceptions that strike from outside, wherever the code is, and once: Celery's soft time limit."""
    atomic_blocks: Mapping[str, int] = MappingProxyType({})
    """Of Django's connections: those that whoever has called the task is in, which are not the task's."""

    @property
    def is_local(self) -> bool:
        """Whether it is no worker that runs the task, but its caller: a test, say, whose thread has its connections."""
        return self.direct or self.eager


class _Patched(NamedTuple):
    """A change that a run takes on at a place, and that is not recorded yet."""

    here: Here
    patch: str


class Attempt:
    """One execution of the body of a task."""

    def __init__(self, journal: Journal, opened: Opened, about: Surroundings, terms: AttemptSettings) -> None:
        self.journal = journal
        self.about = about
        self.terms = terms
        # As one: with more than 30 attributes an object's own dict is slower to reach.
        self._opened = opened
        self.seed = opened.fields.get(b"seed", b"").decode()
        self.interrupt: Interrupt | None = None
        self.violation: Interrupt | None = None
        """The context was used inside a step, from a thread that does not say which."""
        self.struck_by: BaseException | None = None
        """What cancelled the body of an async task (a time limit): the error of the step that it hits."""
        self.closed = False
        self.running: set[Step] = set()
        """Steps whose action runs; whoever takes one out decides how that execution has ended."""
        self.progressed_at = self.heard_at = time.monotonic()
        """When it gave its last sign of life; when Redis was last heard of by its code."""
        self._clock_zero = time.monotonic() - opened.now / 1000
        self._fields = opened.fields
        self._recorded = sum(name.startswith(b"step:") for name in opened.fields)
        self._places = Places(partial(_by_use, opened.fields, direct=about.direct))
        self.siblings = Siblings(self._places)
        self._draws: dict[str, int] = {}
        self._randoms: dict[tuple[str, str | None], random.Random] = {}
        self.stalled: dict[str, Any] = json.loads(opened.fields.get(b"stalled") or b"{}")
        """What kept the attempt before this one from going on."""
        # What it says first, if it says anything, is that it has got past that.
        self._unsent: dict[str, str] = {"stalled": ""} if self.stalled else {}
        self._build = opened.fields.get(b"build", b"").decode()
        """That of the entries that name none; empty where that is not known."""
        self._signs = self._build != terms.build
        """Whether what this attempt records names its build."""
        self._patches: dict[str, tuple[str, ...]] = {}
        """Of positions that were taken: which changes stand before them, and are not recorded yet."""
        self._pending: list[_Patched] = []
        self.keeps_back = False
        """What is unsent waits for a thread to send it: it is large, or something large is being sent."""
        self._progressed = False
        self._cancelled = False
        self._entries = len(opened.fields)
        self._bytes = sum(map(len, opened.fields.values()))
        self._warned = self._entries > MANY_ENTRIES or self._bytes > MANY_BYTES
        self._home = threading.get_ident()
        self._asked: dict[Callable[[], Any], tuple[Coroutine[Any, Any, Any], str]] = {}
        """Steps and waits that nobody has awaited yet."""

    @property
    def number(self) -> int:
        return self._opened.number

    @property
    def opened_at(self) -> int:
        return self._opened.now

    @property
    def recoveries(self) -> int:
        return self._opened.recoveries

    @property
    def reopened(self) -> bool:
        return self._opened.reopened

    def check_whole(self) -> None:
        """End the run, if something is missing, or not allowed, without which it cannot go on."""
        layout = self._fields.get(b"v", b"").decode() or LAYOUT
        if int(layout) > int(LAYOUT):
            raise self._written_by_newer("its layout", f"layout {layout}", f"layout {LAYOUT} or older", "")
        if not self.seed:
            raise self.end_run(
                JournalUnreadableError(
                    f"task {self.about.task_id}: the journal has lost its field seed, on which every random value "
                    f"depends; restore it, or send the task under a new id"
                )
            )
        try:
            self.terms.check()
        except ConfigurationError as error:
            # Before an action runs whose value could not be recorded.
            raise self.end_run(ConfigurationError(f"task {self.about.task_id}, {self.about.task}: {error}")) from None

    def begin_here(self) -> None:
        """The body is this asyncio task, in this thread."""
        self._home = threading.get_ident()
        self._places.begin_in_task()
        if not self.about.direct:
            # Called as a function it may be on a loop that is not ours.
            self.siblings.begin()

    # -- who may use it

    def check_usable(self, *, draws: bool = False) -> None:
        """Refuse a verb after the attempt, after an interrupt was swallowed, and inside a step.

        *draws*: what asks for nothing but a value goes on as long as the attempt lets finish what has begun.
        """
        inside = running_step.get()
        if inside is None and self.interrupt is None and not (self.running or self.closed):
            return
        if self.closed:
            raise ContextClosedError(
                f"task {self.about.task_id}: the context was used after its attempt had ended; "
                f"use it in the body of the task only"
            )
        if self.interrupt is not None and not (draws and self.siblings.is_ending):
            raise self.interrupt
        if inside is not None or (self.running and threading.get_ident() != self._home):
            attempt = self if inside is None else inside.attempt
            name = "another thread" if inside is None else f"step {inside.name!r}"
            error = ContextInStepError(
                f"task {attempt.about.task_id}: the context was used inside {name}; inside a step use its arguments "
                f"and current_step(), and call the context before or after it"
            )
            attempt.interrupt = EndRun(error)
            if inside is None:
                self.violation = attempt.interrupt
            else:
                inside.violation = attempt.interrupt
            raise error

    def check_not_atomic(self, verb: str, name: str, entry: Entry | None) -> None:
        """Refuse to record for good amid a transaction, which a later attempt would have rolled back."""
        alias = django.entered_since(self.about.atomic_blocks)
        if alias is None:
            return
        text = (
            f"task {self.about.task_id}: {verb} {name!r} was called inside of transaction.atomic() on the database "
            f"connection {alias!r}: a retry or a sleep rolls the transaction back, and its steps are not executed "
            f"again; open the transaction inside the step"
        )
        if not self.terms.allow_atomic:
            raise self.end_run(InvalidStepError(f"{text} (durable_allow_atomic=True makes this a warning)"))
        if entry is None:  # else it was said
            logger.warning("%s", text)

    def stop(self, interrupt: Interrupt) -> Interrupt:
        """End the attempt; the same interrupt is raised again by whatever the body does next with its context."""
        if self.interrupt is None or (isinstance(interrupt, _OUT_OF_TOUCH) and not isinstance(self.interrupt, Fenced)):
            # Without its journal an attempt cannot end as it was about to.
            self.interrupt = interrupt
        elif isinstance(self.interrupt, (Sleep, RetryStep, FailAttempt)) and isinstance(interrupt, EndRun):
            # What cannot go on is not to be tried again.
            self.interrupt = interrupt
        elif isinstance(self.interrupt, Sleep) and isinstance(interrupt, (Sleep, RetryStep, FailAttempt)):
            # Siblings wait: the first to wake up wakes the run, and a failed one does not wait for sleepers.
            asleep_longer = isinstance(interrupt, Sleep) and interrupt.until >= self.interrupt.until
            self.interrupt = self.interrupt if asleep_longer else interrupt
        elif isinstance(self.interrupt, RetryStep) and isinstance(interrupt, RetryStep):
            # Siblings failed: the next attempt begins when the last of them is due.
            self.interrupt.delay = max(self.interrupt.delay, interrupt.delay)
        return self.interrupt

    def end_run(self, error: DurableError) -> Interrupt:
        return self.stop(EndRun(error))

    def leave_behind(self) -> None:
        """The run goes on without this code; what its step still returns is progress after the failure."""
        self.interrupt = Fenced()
        self._progressed = False
        self._fields[b"failures"] = b"1"

    # -- time

    def now(self) -> int:
        """Milliseconds since the epoch by Redis' clock, as it was when the attempt opened."""
        return self.at(time.monotonic())

    def at(self, moment: float) -> int:
        """The same of a moment of the monotonic clock."""
        return int((moment - self._clock_zero) * 1000)

    # -- logs

    @cached_property
    def logger(self) -> logging.Logger:
        """The task's logger, silent about what was logged before; of this attempt alone."""
        own = logging.Logger(self.about.logger.name)  # noqa: LOG001  getLogger() would keep it for ever
        own.parent = self.about.logger
        own.addFilter(lambda _record: not self.is_replaying)
        return own

    # -- positions and entries

    @property
    def is_replaying(self) -> bool:
        """Whether steps recorded by earlier attempts are still ahead."""
        return self._recorded > 0

    def claim(self, name: str, kind: str = Kind.STEP) -> tuple[str, Entry | None]:
        """The next position in program order, with what the journal holds for it."""
        try:
            position = self._places.next()
        except InvalidStepError as error:
            raise self._out_of_place(error) from None
        if self._pending and (patches := self._patches_before(position)):
            self._patches[position] = patches
        if not self._recorded:
            return position, None
        field_name = step_field(position)
        field = field_name.encode()
        raw = self._fields.pop(field, None)
        if raw is None:
            return position, None
        self._recorded -= 1
        try:
            entry = read_entry(field_name, raw)
        except JournalUnreadableError as error:
            raise self._unreadable(error) from None
        if entry.name != name or entry.kind != kind or not entry.is_known:
            self._fields[field] = raw
            self._recorded += 1
            raise self._other_path(position, entry, f"{kind} {name!r}")
        if self._patches and entry.is_final:
            self._patches_are_recorded(position)
        return position, entry

    # -- changes of the code that take effect from where a run has not been yet

    def patched(self, patch: str) -> bool:
        """Whether this run is to take the path of a change, here.

        That it does is recorded with the operation that comes next, and not before: until then old code may take the
        run over.
        """
        self.check_usable()
        if not (isinstance(patch, str) and patch):  # type: ignore[redundant-expr]
            about = f"task {self.about.task_id}: the id of ctx.patched is a text, got {patch!r}"
            raise self.end_run(InvalidStepError(f'{about}: write ctx.patched("check address")'))
        try:
            here = self._places.here()
        except InvalidStepError as error:
            raise self._out_of_place(error) from None
        if self._recorded and (recorded := self._patches_behind(here)) is not None and patch not in recorded:
            return False
        self._pending.append(_Patched(here, patch))
        return True

    def _patches_behind(self, here: Here) -> tuple[str, ...] | None:
        """Those recorded behind this place; None where nothing is recorded there."""
        following = self._fields.get(step_field(here.next).encode())
        if following is not None:
            return self._entry_of(here.next, following).patches
        # Of operations side by side a later one may be recorded first; so may those of branches that begin here.
        steps = {name[5:].decode(errors="replace"): raw for name, raw in self._fields.items() if name[:5] == b"step:"}
        try:
            behind = [place for place in sorted(steps, key=in_order) if here.is_before(place)]
        except JournalUnreadableError as error:
            raise self._unreadable(error) from None
        if not behind:
            return None
        return tuple(patch for place in behind for patch in self._entry_of(place, steps[place]).patches)

    def _patches_before(self, position: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.patch for one in self._pending if one.here.is_before(position)))

    def _patches_are_recorded(self, position: str) -> None:
        """With the operation at this position; whoever finds what comes behind it finds that, too."""
        if self._patches.pop(position, None):
            path = path_of(position)
            self._pending = [one for one in self._pending if one.here.path != path or not one.here.is_before(position)]

    def _entry_of(self, position: str, raw: bytes) -> Entry:
        try:
            return read_entry(step_field(position), raw)
        except JournalUnreadableError as error:
            raise self._unreadable(error) from None

    def begun(self, position: str) -> dict[str, list[int | str]]:
        """What the code around a step has begun: by that a Retry tells what has followed the step's failure."""
        return self._places.begun(position)

    def recorded_failure(self, position: str, entry: Entry) -> BaseException:
        """What to raise where the journal has a failure."""
        try:
            return failure_of(entry.error or {})
        except Exception:
            return self._unreadable(damaged(step_field(position), str(entry.error)))

    def check_all_awaited(self) -> None:
        """After a good end of the body: of a step that nobody has awaited nothing has happened."""
        for flight, name in self._asked.values():
            # One that was cancelled before it began was waited for.
            if inspect.getcoroutinestate(flight) == inspect.CORO_CREATED:
                flight.close()
                about = f"task {self.about.task_id} did not wait for {name!r}"
                raise self.end_run(InvalidStepError(f"{about}: write await ctx.run(...), await ctx.sleep(...)"))

    def check_nothing_left(self) -> None:
        """After the body: steps of the journal that the code did not reach mean that it took another path."""
        if self._recorded and self.interrupt is None:
            left = [name.decode(errors="replace")[5:] for name in self._fields if name.startswith(b"step:")]
            try:
                position = min(left, key=in_order)
                entry = read_entry(step_field(position), self._fields[step_field(position).encode()])
            except JournalUnreadableError as error:
                raise self._unreadable(error) from None
            raise self._other_path(position, entry, "the end of the task")

    def _unreadable(self, error: JournalUnreadableError) -> Interrupt:
        return self.end_run(JournalUnreadableError(f"task {self.about.task_id}: {error}"))

    def _other_path(self, position: str, entry: Entry, asked: str) -> Interrupt:
        build = self.build_of(entry)
        if entry.is_known:
            return self._misfit(position, str(entry), asked, build)
        if entry.has_known_kind and build == self.terms.build:
            return self._unreadable(damaged(step_field(position), str(entry)))
        return self._written_by_newer(position, str(entry), asked, build)

    def build_of(self, entry: Entry) -> str:
        """Which build recorded an entry; empty if that is not known."""
        return entry.build or self._build

    def _misfit(self, position: str, found: str, expected: str, build: str) -> Interrupt:
        """What is recorded is not what this code does."""
        error = JournalMismatchError(
            f"task {self.about.task_id} took another path than the journal recorded.\n"
            f"{self._compared(position, found, expected, build)}"
            f"Either the code has changed while the run was under way, or it decides by something that is not the same "
            f"on every attempt (a clock, a random number, the order of a set, a value that was read outside a step). "
            f"Bring the former order of steps back and retry the task, or send it under a new id."
        )
        return self.refuse(error, position, found, expected, build)

    def _written_by_newer(self, position: str, found: str, expected: str, build: str) -> Interrupt:
        """This version cannot read what is recorded. A worker of a newer one can, whatever its build."""
        error = JournalMismatchError(
            f"task {self.about.task_id}: its journal was written by a newer version of celery-durable.\n"
            f"{self._compared(position, found, expected, build)}"
            f"Upgrade celery-durable in the workers of this task, then retry the task, or send it under a new id."
        )
        return self._stall(error, position, found, expected, build)

    def _compared(self, position: str, found: str, expected: str, build: str) -> str:
        compared = f"  position: {position}\n  recorded: {found}\n  asked for: {expected}\n"
        if build == self.terms.build:
            return compared
        return f"{compared}  by build: {build or UNKNOWN_BUILD}, here: {self.terms.build}\n"

    @property
    def was_begun_by_another_build(self) -> bool:
        return self._signs

    def refuse_arguments(self, error: BaseException) -> Interrupt:
        """Another build has begun the run, whose parameters were others."""
        return self.refuse(error, "its arguments", "those of its first message", text_of(error), self._build)

    def refuse(self, error: BaseException, position: str, found: str, expected: str, build: str) -> Interrupt:
        """This code cannot go on with what *build* recorded: the run ends by *error* if that is its own.

        Else a worker that has that build may, or another one whose code fits.
        """
        if build != self.terms.build:
            return self._stall(error, position, found, expected, build)
        self._send_entries_only()
        return self.stop(EndRun(error))

    def _stall(self, error: BaseException, position: str, found: str, expected: str, build: str) -> Interrupt:
        self._send_entries_only()
        builds = {"found_build": build or UNKNOWN_BUILD, "expected_build": self.terms.build}
        return self.stop(Stall(error, {"position": position, "found": found, "expected": expected, **builds}))

    def _send_entries_only(self) -> None:
        """The journal is to stay as it is, but for what siblings have done."""
        self._unsent = {name: text for name, text in self._unsent.items() if name.startswith("step:")}

    def _out_of_place(self, error: InvalidStepError) -> Interrupt:
        return self.end_run(InvalidStepError(f"task {self.about.task_id}: {error}"))

    @contextmanager
    def branch(self, key: str) -> Iterator[None]:
        """A branch with a name, for what is called inside."""
        self.check_usable(draws=True)
        try:
            leave = self._places.name(key)
        except InvalidStepError as error:
            raise self._out_of_place(error) from None
        try:
            yield
        finally:
            leave()

    @property
    def _branch_path(self) -> str:
        try:
            return self._places.path
        except InvalidStepError as error:
            raise self._out_of_place(error) from None

    # -- what the journal has to be told

    def note(self, position: str, entry: str) -> None:
        """Keep an entry for the next write."""
        if self._signs or self._patches:
            entry = self._annotated(position, entry)
        self._unsent[step_field(position)] = entry

    def _annotated(self, position: str, entry: str) -> str:
        notes: dict[str, Any] = {"build": self.terms.build} if self._signs else {}
        if position in self._patches:
            notes["patches"] = self._patches[position]
        return annotated(entry, **notes) if notes else entry

    def tell(self, *, with_next: bool = False) -> None:
        """Send what is unsent, without waiting."""
        if self._unsent and not self.keeps_back:
            if self._places.branched:
                self._note_layout()
            self.journal.send(self._unsent, with_next=with_next)
            self._unsent = {}

    def record_late(self, position: str, entry: str) -> bool:
        """Record a step that was given up, in any thread; False if another attempt has begun since."""
        if self._signs or self._patches:
            entry = self._annotated(position, entry)
        fields = {step_field(position): entry, "progress": str(self.number)}
        if self.terms.progress_forgives:
            fields["failures"] = "0"
        return self.journal.record_aside(fields)

    def record(self, position: str, entry: str) -> None:
        """Send the final entry of a step, with all that is unsent; it counts when its reply has been read."""
        if self._signs or self._patches:
            entry = self._annotated(position, entry)
        self._unsent[step_field(position)] = entry
        if self._patches:
            self._patches_are_recorded(position)
        if not self._progressed:
            self._progressed = True
            self._unsent["progress"] = str(self.number)
            if self.failures and self.terms.progress_forgives:
                self._unsent["failures"] = "0"
        self._entries += 1
        self._bytes += len(entry) if entry.isascii() else len(entry.encode())
        if not self._warned and (self._entries > MANY_ENTRIES or self._bytes > MANY_BYTES):
            self._warned = True
            logger.warning(
                "task %s: its journal has %d entries and %d bytes, and every attempt loads them all; "
                "split the task, or record less per step",
                self.about.task_id, self._entries, self._bytes,
            )  # fmt: skip
        self.tell()

    def send_large(self) -> Callable[[], None]:
        """What sends all that was kept back, in any thread, and waits until it is acknowledged.

        What is said meanwhile is kept back, too, until :meth:`sent_large`.
        """
        if self._places.branched:
            self._note_layout()
        words, self._unsent = self._unsent, {}

        def send() -> None:
            self.journal.send(words)
            self.journal.settle()

        return send

    def sent_large(self, most: float) -> None:
        """That is over; what was said meanwhile follows, if nothing in it has more than so many characters."""
        self.keeps_back = any(len(text) > most for text in self._unsent.values())
        self.tell()

    def last_words(self) -> dict[str, str]:
        """What is unsent, to travel with the script that ends the attempt."""
        if len(self._unsent) > _PAIRS_AT_AN_END:
            self.tell()
        if self._unsent and self._places.branched:
            self._note_layout()
        words, self._unsent = self._unsent, {}
        return words

    def _note_layout(self) -> None:
        """Say how the branches are numbered, together with the first entry of one."""
        self._places.branched = False
        if self._fields.get(b"v") != LAYOUT.encode():
            self._unsent["v"] = LAYOUT

    @property
    def cancel_requested(self) -> bool:
        """Whether the run is to be cancelled, and its code does not know yet."""
        return self.journal.cancel_requested and not self._cancelled

    def hears_of_cancellation(self) -> bool:
        """As :attr:`cancel_requested`, by asking Redis if it was not asked for a second."""
        if not self.cancel_requested and time.monotonic() - self.heard_at > LONGEST_SILENCE:
            self.heard_at = time.monotonic()
            self.journal.look_for_cancellation()
        return self.cancel_requested

    @property
    def is_out_of_touch(self) -> bool:
        """Whether Redis is to be asked before an action starts: for the lease, or whether the run is cancelled."""
        return time.monotonic() - self.heard_at > LONGEST_SILENCE or self.journal.lease_in_doubt

    @property
    def is_in_doubt(self) -> bool:
        """Whether it is not sure that an action may start."""
        # As is_out_of_touch and cancel_requested say, without two more calls per step.
        journal = self.journal
        if self.closed or self.interrupt is not None or (journal.cancel_requested and not self._cancelled):
            return True
        return time.monotonic() - self.heard_at > LONGEST_SILENCE or journal.lease_in_doubt

    @property
    def may_start(self) -> bool:
        """Whether an action may start this very moment, as far as is known without asking Redis."""
        ended = self.closed or isinstance(self.interrupt, _OUT_OF_TOUCH)
        return not (ended or self.cancel_requested or self.journal.lease_in_doubt)

    def check_goes_on(self) -> None:
        """Refuse to let an action begin after the attempt."""
        if self.closed or isinstance(self.interrupt, _OUT_OF_TOUCH):
            raise self.interrupt or Fenced()

    def take_cancellation(self) -> None:
        """The run's code is being told that it is cancelled, once."""
        self._cancelled = True
        self._unsent["cancel"] = Cancellation.RAISED

    # -- counts that outlive the attempt

    @property
    def changes(self) -> int:
        """How often ``self.retry(args=...)`` has changed the arguments."""
        return int(self._fields.get(b"changed", 0))

    @property
    def arguments(self) -> bytes | None:
        """The models among the arguments as an earlier attempt accepted them, as JSON."""
        return self._fields.get(self._arguments)

    def keep_arguments(self, text: str) -> None:
        """Keep what was accepted, with the next write."""
        self._unsent[self._arguments.decode()] = text

    @property
    def _arguments(self) -> bytes:
        return b"arguments:%d" % self.changes

    @property
    def has_begun(self) -> bool:
        """Whether the body of an earlier attempt has left something in the journal."""
        return any(b":" in name for name in self._fields)

    @property
    def resume(self) -> bytes | None:
        """What a message is to say that brings the run back."""
        return self._fields.get(b"resume")

    @property
    def failures(self) -> int:
        """Failed attempts since the run last recorded a step."""
        return int(self._fields.get(b"failures", 0))

    def failures_now(self) -> int:
        """The count with the failure that is being handled."""
        return 1 + (0 if self._progressed and self.terms.progress_forgives else self.failures)

    def failing_since(self, failures: int) -> int:
        """When the first of these failed attempts began."""
        return self.opened_at if failures == 1 else int(self._fields.get(b"failing_since", self.opened_at))

    # -- deterministic helpers

    def random(self, name: str | None = None) -> random.Random:
        self.check_usable(draws=True)
        branch = self._branch_path
        stream = self._randoms.get((branch, name))
        if stream is None:
            key = ":".join([self.seed, branch + "random", *([] if name is None else [name])])
            stream = self._randoms[branch, name] = random.Random(key)  # noqa: S311  documented as not for cryptography
        return stream

    def uuid(self) -> UUID:
        return self._drawn("uuid", lambda place: str(derived_uuid(self.seed, "uuid", place)), UUID)

    def time(self) -> int:
        return self._drawn("time", lambda _: str(time.time_ns() // 1_000_000), int)

    def datetime(self) -> datetime:
        return self._drawn("now", lambda _: datetime.now(timezone.utc).isoformat(), datetime.fromisoformat)

    def _drawn(self, kind: str, draw: Callable[[str], str], read: Callable[[str], T]) -> T:
        """The next value of its kind: as recorded, or drawn now, at its place, and recorded with the next write."""
        self.check_usable(draws=True)
        branch = f"{kind}:{self._branch_path}"
        self._draws[branch] = number = self._draws.get(branch, 0) + 1
        field = f"{branch}{number}"
        recorded = self._fields.get(field.encode())
        if recorded is None:
            text = self._unsent[field] = draw(field.removeprefix(f"{kind}:"))
            return read(text)
        try:
            return read(recorded.decode())
        except ValueError:
            raise self._unreadable(damaged(field, recorded)) from None

    # -- steps of an async task that run side by side

    def in_flight(self, perform: Callable[[], Coroutine[Any, Any, T]], name: str) -> Coroutine[Any, Any, T]:
        """A step or a wait, to be awaited; the attempt does not end before it has, once it has begun."""
        self._asked[perform] = flight, _ = self._flight(perform), name
        return flight

    async def _flight(self, perform: Callable[[], Coroutine[Any, Any, T]]) -> T:
        del self._asked[perform]
        self.siblings.flying += 1
        try:
            return await perform()
        finally:
            self.siblings.landed_one()

    def lost(self, error: JournalUnavailableError) -> Interrupt:
        return self.stop(JournalLost(error))


def _by_use(fields: Fields, *, direct: bool) -> bool:
    """Whether branches are numbered by first use: in journals of 0.1.0; and where nothing is replayed, on any loop."""
    if direct:
        return True
    of_branch = (b"." in name and name.startswith((b"step:", b"uuid:", b"time:", b"now:")) for name in fields)
    return fields.get(b"v") == UNBRANCHED.encode() and any(of_branch)


def derived_uuid(seed: str, *path: object) -> UUID:
    """A version-4 UUID that depends on the seed and the path alone."""
    digest = hashlib.sha256(":".join([seed, *map(str, path)]).encode()).digest()
    return UUID(bytes=digest[:16], version=4)
