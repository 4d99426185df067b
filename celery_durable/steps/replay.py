"""What earlier attempts have recorded of a run, and how far the code of this one has come in it."""

from __future__ import annotations

from celery_durable.drivers.pulse import Pulse
from celery_durable.exceptions import InvalidStepError, JournalMismatchError, JournalUnreadableError
from celery_durable.interrupts import EndRun, Interrupt, Stall
from celery_durable.journal.entries import Entry, damaged, read_entry
from celery_durable.journal.layout import Fields, Kind, entries_of, step_field
from celery_durable.journal.positions import in_order
from celery_durable.values.failure import failure_of

from .determinism import check_usable, nothing_left_over, same_kind, same_name
from .outbox import Outbox
from .program_order import Here, ProgramOrder

UNKNOWN_BUILD = "unknown"
"""Stands for the build of what version 0.1.0 recorded."""


class Replay:
    """The recorded operations of a run, as the code of one attempt reaches them."""

    def __init__(self, pulse: Pulse, fields: Fields, build: str, order: ProgramOrder, outbox: Outbox) -> None:
        self._pulse = pulse
        self._fields = fields
        self._build = build
        self._order = order
        self._patches = order.patches
        self._outbox = outbox
        # The body may take one out meanwhile.
        self._recorded = sum([name.startswith(b"step:") for name in list(fields)])
        self.ahead = self._recorded
        """Recorded operations that the code has not reached yet."""
        self.not_replayed = 0
        """Those that it has reached, and that have given back no result: waits, and steps that had none."""

    # -- what is recorded at a position

    def take_position(self, name: str, kind: str = Kind.STEP) -> tuple[str, Entry | None]:
        """The next position in program order, with what the journal holds for it."""
        try:
            position = self._order.next()
        except InvalidStepError as error:
            raise self._pulse.invalid(error) from None
        if self._patches.pending:
            self._patches.take(position)
        if not self.ahead:
            return position, None
        field_name = step_field(position)
        field = field_name.encode()
        raw = self._fields.pop(field, None)
        if raw is None:
            return position, None
        self.ahead -= 1
        try:
            entry = read_entry(field_name, raw)
        except JournalUnreadableError as error:
            raise self._pulse.unreadable(error) from None
        if not (same_name(entry, name) and same_kind(entry, kind)):
            self._fields[field] = raw
            self.ahead += 1
            raise self._other_path(position, entry, f"{kind} {name!r}")
        if self._patches.taken and entry.is_final:
            self._patches.are_recorded(position)
        return position, entry

    @property
    def replayed(self) -> int:
        """So many steps have given back what they had recorded."""
        return self._recorded - self.ahead - self.not_replayed

    def patched(self, patch: str) -> bool:
        """Whether this run takes the path of a change here.

        The answer is recorded with the operation that comes next, and not before: until then old code may take the
        run over.
        """
        check_usable(self._pulse)
        if not (isinstance(patch, str) and patch):  # type: ignore[redundant-expr]
            text = f'the id of ctx.patched is a text, got {patch!r}: write ctx.patched("check address")'
            raise self._pulse.invalid(text)
        try:
            here = self._order.here()
        except InvalidStepError as error:
            raise self._pulse.invalid(error) from None
        try:
            recorded = self._patches_behind(here) if self.ahead else None
        except JournalUnreadableError as error:
            raise self._pulse.unreadable(error) from None
        if recorded is not None and patch not in recorded:
            return False
        self._patches.add(here, patch)
        return True

    def _patches_behind(self, here: Here) -> tuple[str, ...] | None:
        """The changes of the code that are recorded behind this point; None if nothing is recorded there."""
        field_name = step_field(here.next)
        following = self._fields.get(field_name.encode())
        if following is not None:
            return read_entry(field_name, following).patches
        # Of operations side by side, a later one may be recorded first. So may one of a branch that begins here.
        steps = entries_of(self._fields)
        behind = [position for position in sorted(steps, key=in_order) if here.is_before(position)]
        if not behind:
            return None
        entries = (read_entry(step_field(position), steps[position]) for position in behind)
        return tuple(patch for entry in entries for patch in entry.patches)

    def begun(self, position: str) -> dict[str, list[int | str]]:
        """What the code around a step has begun. By that, a Retry knows what has followed the step's failure."""
        return self._order.begun(position)

    def recorded_failure(self, position: str, entry: Entry) -> BaseException:
        """The error to raise for a recorded failure."""
        try:
            return failure_of(entry.error or {})
        except Exception:
            return self._pulse.unreadable(damaged(step_field(position), str(entry.error)))

    def check_nothing_left(self) -> None:
        """After the body: if the journal has steps that the code did not reach, it took another path."""
        if not self.ahead or self._pulse.interrupt is not None:
            return
        try:
            position = nothing_left_over(entries_of(self._fields))
            if position is None:
                return
            field_name = step_field(position)
            entry = read_entry(field_name, self._fields[field_name.encode()])
        except JournalUnreadableError as error:
            raise self._pulse.unreadable(error) from None
        raise self._other_path(position, entry, "the end of the task")

    # -- what this code does not follow

    def build_of(self, entry: Entry) -> str:
        """Which build recorded an entry; empty if that is not known."""
        return entry.build or self._build

    def _other_path(self, position: str, entry: Entry, asked: str) -> Interrupt:
        build = self.build_of(entry)
        if entry.is_known:
            return self._misfit(position, str(entry), asked, build)
        if entry.has_known_kind and build == self._pulse.settings.build:
            return self._pulse.unreadable(damaged(step_field(position), str(entry)))
        return self.written_by_newer(position, str(entry), asked, build)

    def _misfit(self, position: str, found: str, expected: str, build: str) -> Interrupt:
        """What is recorded is not what this code does."""
        error = JournalMismatchError(
            f"task {self._pulse.info.task_id} took another path than the journal recorded.\n"
            f"{self._compared(position, found, expected, build)}"
            f"Either the code has changed while the run was under way, or it decides by something that is not the same "
            f"on every attempt (a clock, a random number, the order of a set, a value that was read outside a step). "
            f"Bring the former order of steps back and retry the task, or send it under a new id."
        )
        return self.refuse(error, position, found, expected, build)

    def written_by_newer(self, position: str, found: str, expected: str, build: str) -> Interrupt:
        """This version cannot read what is recorded. A worker with a newer version can, whatever its build."""
        error = JournalMismatchError(
            f"task {self._pulse.info.task_id}: its journal was written by a newer version of celery-durable.\n"
            f"{self._compared(position, found, expected, build)}"
            f"Upgrade celery-durable in the workers of this task, then retry the task, or send it under a new id."
        )
        return self._stall(error, position, found, expected, build)

    def _compared(self, position: str, found: str, expected: str, build: str) -> str:
        compared = f"  position: {position}\n  recorded: {found}\n  asked for: {expected}\n"
        here = self._pulse.settings.build
        return compared if build == here else f"{compared}  by build: {build or UNKNOWN_BUILD}, here: {here}\n"

    def refuse(self, error: BaseException, position: str, found: str, expected: str, build: str) -> Interrupt:
        """This code cannot go on with what *build* has recorded.

        If it is the build of this code, the run ends by *error*. Else it stalls, until a worker has it whose code fits.
        """
        if build != self._pulse.settings.build:
            return self._stall(error, position, found, expected, build)
        self._outbox.drop_all_but_steps()
        return self._pulse.stop(EndRun(error))

    def _stall(self, error: BaseException, position: str, found: str, expected: str, build: str) -> Interrupt:
        self._outbox.drop_all_but_steps()
        builds = {"found_build": build or UNKNOWN_BUILD, "expected_build": self._pulse.settings.build}
        return self._pulse.stop(Stall(error, {"position": position, "found": found, "expected": expected, **builds}))
