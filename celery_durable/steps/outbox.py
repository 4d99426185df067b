"""What an attempt has still to tell its journal. It is staged first, and then sent together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from typing import Any

from celery_durable.drivers.pulse import Pulse
from celery_durable.journal.entries import annotated
from celery_durable.journal.layout import LAYOUT, Fields, step_field

from .program_order import ProgramOrder
from .run_state import RunState

logger = logging.getLogger("celery_durable")

MANY_ENTRIES = 10_000
MANY_BYTES = 64 * 2**20
_PAIRS_AT_AN_END = 500


class Outbox:
    """The fields that one attempt has still to write."""

    def __init__(self, pulse: Pulse, fields: Fields, state: RunState, order: ProgramOrder) -> None:
        self._pulse = pulse
        self._journal = pulse.journal
        self._state = state
        self._order = order
        self._patches = order.patches
        # The first write of this attempt says that the run has got past its stall.
        self.staged: dict[str, str] = {"stalled": ""} if state.stalled else {}
        """Fields that are not sent yet."""
        self.keeps_back = False
        """What is staged waits for a thread: it is large, or a thread is sending something large."""
        self.names_build = state.build != pulse.settings.build
        """Whether entries name their build. They do if another build has begun the run."""
        self._says_layout = fields.get(b"v") != LAYOUT.encode()
        self._size = _Size(fields)

    def stage(self, position: str, entry: str) -> None:
        """Keep an entry for the next write."""
        if self.names_build or self._patches.taken:
            entry = self._annotated(position, entry)
        self.staged[step_field(position)] = entry

    def record(self, position: str, entry: str, most: float = inf) -> None:
        """Send the final entry of an operation, with all that is staged. It counts when its reply has been read.

        If the entry has more than *most* characters, it is kept back for a thread.
        """
        if len(entry) > most:
            self.keeps_back = True
        if self.names_build or self._patches.taken:
            entry = self._annotated(position, entry)
            self._patches.are_recorded(position)
        self.staged[step_field(position)] = entry
        if not self._state.progressed:
            self._state.progressed = True
            self.staged.update(self._state.progress())
        size = self._size
        size.entries += 1
        size.bytes += len(entry) if entry.isascii() else len(entry.encode())
        if not size.said and (size.entries > MANY_ENTRIES or size.bytes > MANY_BYTES):
            self._warn_of_size()
        self.send_staged()

    def record_late(self, position: str, entry: str) -> bool:
        """Record a step that was given up, in any thread; False if another attempt has begun since."""
        if self.names_build or self._patches.taken:
            entry = self._annotated(position, entry)
        return self._journal.record_aside({step_field(position): entry, **self._state.progress_after_all()})

    def _annotated(self, position: str, entry: str) -> str:
        notes: dict[str, Any] = {"build": self._pulse.settings.build} if self.names_build else {}
        if position in self._patches.taken:
            notes["patches"] = self._patches.taken[position]
        return annotated(entry, **notes) if notes else entry

    def _warn_of_size(self) -> None:
        self._size.said = True
        logger.warning(
            "task %s: its journal has %d entries and %d bytes, and every attempt loads them all; "
            "split the task, or record less per step",
            self._pulse.info.task_id, self._size.entries, self._size.bytes,
        )  # fmt: skip

    # -- sending

    def send_staged(self, *, with_next: bool = False) -> None:
        """Send what is staged, without waiting.

        *with_next*: the next write may take it along.
        """
        if self.staged and not self.keeps_back:
            if self._order.branched:
                self._stage_layout()
            self._journal.send(self.staged, with_next=with_next)
            self.staged = {}

    def send_large(self) -> Callable[[], None]:
        """A function that sends all that was kept back, and waits for the reply. Any thread may call it.

        What is staged until :meth:`sent_large` is kept back, too.
        """
        fields = self._take_staged()

        def send() -> None:
            self._journal.send(fields)
            self._journal.flush()

        return send

    def sent_large(self, most: float) -> None:
        """That is over. Send what was staged meanwhile, unless a text of it has more than *most* characters."""
        self.keeps_back = any(len(text) > most for text in self.staged.values())
        self.send_staged()

    def drain_staged(self) -> dict[str, str]:
        """Take out what is staged: the script that ends the attempt writes it."""
        if len(self.staged) > _PAIRS_AT_AN_END:
            self.send_staged()
        return self._take_staged() if self.staged else {}

    def stage_again(self, drained: dict[str, str]) -> None:
        """Keep what was taken out: the script has not written it."""
        self.staged = {**drained, **self.staged}

    def drop_all_but_steps(self) -> None:
        """Leave the journal as it is, except for what siblings have done."""
        self.staged = {name: text for name, text in self.staged.items() if name.startswith("step:")}

    def _take_staged(self) -> dict[str, str]:
        if self._order.branched:
            self._stage_layout()
        fields, self.staged = self.staged, {}
        return fields

    def _stage_layout(self) -> None:
        """Say how the branches are numbered, together with the first entry of one."""
        self._order.branched = False
        if self._says_layout:
            self.staged["v"] = LAYOUT


class _Size:
    """How large the journal is that every attempt loads."""

    __slots__ = ("bytes", "entries", "said")

    def __init__(self, fields: Fields) -> None:
        self.entries = len(fields)
        self.bytes = sum(map(len, fields.values()))
        self.said = self.entries > MANY_ENTRIES or self.bytes > MANY_BYTES
        """A warning of it was logged."""
