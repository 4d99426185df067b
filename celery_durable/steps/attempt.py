"""One attempt, put together from its parts. Neither Celery nor Redis is imported here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

from celery_durable import tracing
from celery_durable.config.redaction import Redaction
from celery_durable.config.settings import AttemptSettings
from celery_durable.drivers.info import TaskInfo
from celery_durable.drivers.pulse import Pulse
from celery_durable.drivers.siblings import Siblings
from celery_durable.exceptions import ConfigurationError, InvalidStepError, JournalUnreadableError
from celery_durable.interrupts import Fenced, Interrupt
from celery_durable.journal.layout import LAYOUT, UNBRANCHED, Fields
from celery_durable.journal.port import Journal, Opened
from celery_durable.records import STARTED, AttemptRecord, Run, moment
from celery_durable.values.failure import text_of

from .attributes import Attributes
from .determinism import every_step_awaited
from .draws import Draws
from .outbox import Outbox
from .program_order import ProgramOrder
from .replay import Replay
from .run_state import RunState

T = TypeVar("T")


class _Part(Generic[T]):
    """A part of an attempt that is made when it is first asked for. All threads get the same one."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make

    def __get__(self, attempt: Attempt, _kind: type | None = None) -> T:
        # A thread that logs may ask at the same time as the body. Only one of what they make is kept.
        return vars(attempt).setdefault(self._make.__name__, self._make(attempt))  # type: ignore[no-any-return]


class Attempt:
    """One execution of the body of a task. The parts that only operations need are made for the first of them."""

    def __init__(self, journal: Journal, opened: Opened, info: TaskInfo, settings: AttemptSettings) -> None:
        self.info = info
        self.settings = settings
        self.pulse = Pulse(journal, info, settings)
        self.state = RunState(opened, progress_forgives=settings.progress_forgives)
        self._fields = opened.fields
        self._clock_ahead = opened.now / 1000 - time.monotonic()

    @_Part
    def order(self) -> ProgramOrder:
        return ProgramOrder(partial(_by_use, self._fields, direct=self.info.direct))

    @_Part
    def outbox(self) -> Outbox:
        return Outbox(self.pulse, self._fields, self.state, self.order)

    @_Part
    def replay(self) -> Replay:
        return Replay(self.pulse, self._fields, self.state.build, self.order, self.outbox)

    @_Part
    def draws(self) -> Draws:
        return Draws(self.pulse, self.state.seed, self._fields, self.order, self.outbox)

    @_Part
    def attributes(self) -> Attributes:
        return Attributes(self.pulse, self._fields, self.outbox)

    @_Part
    def siblings(self) -> Siblings:
        """The asyncio tasks of the attempt, if it has an ``async def`` body."""
        return Siblings(self.pulse, self.order.strands)

    @_Part
    def may_be_traced(self) -> bool:
        """Whether its steps can have spans. It is asked once: a process gets its provider of traces when it starts."""
        return tracing.may_record()

    @_Part
    def shown_run(self) -> Run | None:
        """What observers are shown of the run while this attempt goes on. Only who listens pays for it.

        None: the caller runs the task, and no observer is told of that.
        """
        if self.info.is_local:
            return None
        state, info, worker, build = self.state, self.info, self.pulse.journal.owner, self.settings.build
        created, began, shown = moment(state.created), moment(state.opened_at), self.redaction.shown
        args, kwargs = (shown(where, getattr(info.request, where)) for where in ("args", "kwargs"))
        return Run(
            id=info.task_id, task=info.task, state=STARTED, args=args, kwargs=kwargs,
            created=created, began=began, ended=None, worker=worker, lease=None, waits_for="", until=None,
            build=state.build, error="", attempts=(AttemptRecord(state.number, began, None, STARTED, worker, build),),
        )  # fmt: skip

    @_Part
    def redaction(self) -> Redaction:
        """What observers are shown of its data. A time limit that strikes the redactor ends its code."""
        return Redaction(self.settings.redact, self.info.task, self.pulse.limits)

    @property
    def replayed(self) -> int:
        """So many steps have given back what earlier attempts had recorded."""
        return self.replay.replayed if "replay" in vars(self) else 0

    @property
    def is_fenced(self) -> bool:
        """Whether it has found that another attempt has the run, or that the run has ended elsewhere."""
        return isinstance(self.pulse.interrupt, Fenced)

    # -- its beginning and its end

    def check_whole(self) -> None:
        """End the run if it can never go on: for its layout, for a lost seed, or for its settings."""
        pulse, layout = self.pulse, self.state.layout
        if layout != LAYOUT and int(layout) > int(LAYOUT):
            raise self.replay.written_by_newer("its layout", f"layout {layout}", f"layout {LAYOUT} or older", "")
        if not self.state.seed:
            raise pulse.end_run(
                JournalUnreadableError(
                    f"task {self.info.task_id}: the journal has lost its field seed, on which every random value "
                    f"depends; restore it, or send the task under a new id"
                )
            )
        try:
            self.settings.check()
        except ConfigurationError as error:
            # No action runs before this check: its value could not be recorded.
            raise pulse.end_run(ConfigurationError(f"task {self.info.task_id}, {self.info.task}: {error}")) from None

    def begin_here(self) -> None:
        """The body is this asyncio task, in this thread."""
        self.pulse.home = threading.get_ident()
        self.order.begin_in_task()
        if not self.info.direct:
            # A task that is called as a function may be on a loop of the user's.
            self.siblings.begin()

    def refuse_arguments(self, error: BaseException) -> Interrupt:
        """The arguments do not fit this code: the build that began the run had other parameters, perhaps."""
        found, expected = "those of its first message", text_of(error)
        return self.replay.refuse(error, "its arguments", found, expected, self.state.build)

    def drain_staged(self) -> dict[str, str]:
        """Take out what is staged: the script that ends the attempt writes it."""
        # Without an operation there is no outbox. Its first write would say that the run has got past a stall.
        if not ("outbox" in vars(self) or self.state.stalled):
            return {}
        counts = f"{self.state.number} {self.state.executed} {self.replay.replayed}"
        return {**self.outbox.drain_staged(), "executed": counts}

    def check_nothing_left(self) -> None:
        """Refuse a good end of the body if it has not reached all that earlier attempts have recorded."""
        if self.state.replays:
            self.replay.check_nothing_left()

    def check_all_awaited(self) -> None:
        """Refuse a good end of the body if it has not awaited all that it has called."""
        name = every_step_awaited(self.siblings.in_flight) if "siblings" in vars(self) else None
        if name is not None:
            text = f"task {self.info.task_id} did not wait for {name!r}"
            raise self.pulse.end_run(InvalidStepError(f"{text}: write await ctx.run(...), await ctx.sleep(...)"))

    # -- time

    def now(self) -> int:
        """The time by Redis' clock, in milliseconds since the epoch. The clock was read when the attempt was opened."""
        return self.at(time.monotonic())

    def at(self, moment: float) -> int:
        """The time by Redis' clock at a *moment* of the monotonic clock."""
        return int((moment + self._clock_ahead) * 1000)

    # -- what its code asks for

    @cached_property
    def logger(self) -> logging.Logger:
        """A logger of this attempt alone. It drops what an earlier attempt has logged."""
        own = logging.Logger(self.info.logger.name)  # noqa: LOG001  getLogger() would keep it for ever
        own.parent = self.info.logger
        own.addFilter(lambda _record: not self.replay.ahead)
        return own


def _by_use(fields: Fields, *, direct: bool) -> bool:
    """Whether branches are numbered when they first use the context.

    Journals of version 0.1.0 have such numbers. So has a direct call: it may be on any loop, and replays nothing.
    """
    if direct:
        return True
    of_branch = (b"." in name and name.startswith((b"step:", b"uuid:", b"time:", b"now:")) for name in fields)
    return fields.get(b"v") == UNBRANCHED.encode() and any(of_branch)
