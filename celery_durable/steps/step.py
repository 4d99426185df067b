"""One step of an attempt: its call, its position in program order, and what is recorded there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from threading import Lock
from typing import Any

from celery_durable import happenings
from celery_durable.config.retry import RunOptions
from celery_durable.drivers.pulse import StepWork
from celery_durable.exceptions import (
    ConfigurationError,
    EntryNotRecordableError,
    JournalUnavailableError,
    JournalUnreadableError,
)
from celery_durable.happenings import Happening
from celery_durable.interrupts import Interrupt
from celery_durable.journal.entries import Entry, done_entry
from celery_durable.journal.layout import Kind, State
from celery_durable.records import StepRecord, made
from celery_durable.values import codec, declared_types
from celery_durable.values.failure import shown

from .attempt import Attempt
from .call_check import check_call, type_matters
from .determinism import check_usable

logger = logging.getLogger("celery_durable")

LARGE_ENTRY = 2**20

_DEFAULT = RunOptions()


def make_step(
    attempt: Attempt, name: str, action: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Step:
    """The step that ``ctx.run`` is called for, with the next position in program order."""
    pulse, options = attempt.pulse, _DEFAULT
    check_usable(pulse)
    if args and isinstance(args[0], RunOptions):
        options, args = args[0], args[1:]
    check_call(pulse, name, action, options, args, kwargs)
    position, entry = attempt.replay.take_position(name)
    step = Step(attempt, name, action, options, args, kwargs, position, entry)
    if entry is not None and not step.recorded:
        attempt.replay.not_replayed += 1
    return step


class Step:
    """A step of one attempt.

    It is one flat object with many attributes: each call of ``ctx.run`` makes one, and parts would cost more calls.
    """

    __slots__ = (
        "action", "args", "attempt", "deadline", "entry", "executions", "first", "handover", "hint", "kwargs", "name",
        "options", "position", "pulse", "recorded", "unfinished", "violation", "work",
    )  # fmt: skip

    handover: Lock
    """A thread that gives the execution up holds it, until the run goes on without it."""
    hint: Any
    """The type that its value is recorded by."""

    def __init__(
        self,
        attempt: Attempt,
        name: str,
        action: Callable[..., Any],
        options: RunOptions,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        position: str,
        entry: Entry | None,
    ) -> None:
        self.attempt = attempt
        self.pulse = attempt.pulse
        self.name = name
        self.action = action
        self.options = options
        self.args = args
        self.kwargs = kwargs
        self.position = position
        self.entry = entry
        """What an earlier attempt has recorded of it."""
        self.recorded = entry is not None and entry.settled
        """It has a result, or has failed for good: it is replayed."""
        self.executions = entry.executions if entry else 0
        self.first = entry.first if entry else None
        """When its first execution began, by Redis' clock."""
        self.deadline = inf
        """When its execution has run too long, by the monotonic clock."""
        self.unfinished = False
        """It has no result, and this attempt does not execute it any more."""
        self.work: StepWork | None = None
        """What a thread of the library does for it."""
        self.violation: Interrupt | None = None
        """The context was used inside the action, which may have swallowed the error."""

    @property
    def where(self) -> str:
        """The step as messages name it."""
        return f"task {self.pulse.info.task_id}: step {self.name!r}"

    @property
    def is_untouched(self) -> bool:
        """Whether this attempt has not executed it."""
        return self.executions == (0 if self.entry is None else self.entry.executions)

    def check_violation(self) -> None:
        """Refuse an execution that has used the context, even if its action has swallowed the error."""
        violation = self.violation or self.pulse.violation
        if violation is not None:
            raise violation

    # -- replay

    def replay(self) -> Any:
        """The recorded value, or the recorded failure."""
        entry, replay = self.entry, self.attempt.replay
        assert entry is not None  # noqa: S101
        if entry.state != State.DONE:
            raise replay.recorded_failure(self.position, entry)
        options, settings = self.options, self.pulse.settings
        try:
            return codec.decode(
                entry.value, entry.metadata, self.declared_type() if entry.metadata else None,
                serializer=options.serializer or settings.serializer, accept=settings.accept,
            )  # fmt: skip
        except Exception as error:
            unreadable = JournalUnreadableError(
                f"{self.where}: its recorded value cannot be read ({type(error).__name__}: {error}); has the "
                f"return type of the action or its serializer changed?"
            )
            found, expected = f"{entry}, {shown(error)}", f"step {self.name!r} with a value that can be read"
            raise replay.refuse(unreadable, self.position, found, expected, replay.build_of(entry)) from error

    # -- its value as text

    def declared_type(self) -> Any:
        hint = self.options.type_hint
        return declared_types.declared_type(self.action) if hint is None else hint

    def check_type(self) -> None:
        """End the run before the action has an effect, if no value of its declared type can be recorded."""
        options = self.options
        self.hint = self.declared_type()
        if options.type_hint is None and declared_types.never_recorded.is_empty:
            return
        reason = declared_types.objection(self.action, options.type_hint)
        if reason is not None and type_matters(self.pulse, options):
            raise self.pulse.end_run(
                EntryNotRecordableError(
                    f"{self.where} did not run, since what it returns by its declared type cannot be recorded: "
                    f"{reason}, or pass serializer="
                )
            )

    def encode(self, value: Any) -> codec.Encoded:
        """The value as text. The run ends if it cannot be recorded."""
        options, pulse = self.options, self.pulse
        settings = pulse.settings
        try:
            encoded = codec.encode(
                value, self.hint, serializer=options.serializer or settings.serializer,
                compression=options.compression, accept=settings.accept,
            )  # fmt: skip
        except ConfigurationError as error:
            raise pulse.end_run(error) from None
        except pulse.info.limits:
            raise
        except Exception as error:
            cause = None if isinstance(error, codec.NotEncodable) else error  # its text is in the message
            raise self.refuse(f"a {type(value).__name__} cannot be recorded: {error}") from cause
        size = len(encoded.text) if encoded.text.isascii() else len(encoded.text.encode())
        if encoded.metadata:
            size += len(encoded.metadata.get("rest", ""))
        if size > settings.max_entry_size:
            raise self.refuse(
                f"a {type(value).__name__} of {size} bytes is larger than durable_max_entry_size="
                f"{settings.max_entry_size}; store it elsewhere and return its address"
            )
        if size > LARGE_ENTRY:
            logger.warning("%s records %d bytes, and every attempt loads them again", self.where, size)
        return encoded

    def refuse(self, reason: str) -> Interrupt:
        """End the run: what the action has done cannot be recorded."""
        reason = reason.replace("{action}", getattr(self.action, "__qualname__", "the action"))
        return self.pulse.end_run(EntryNotRecordableError(f"{self.where} ran, but {reason}"))

    # -- what others hear of it

    def shown(
        self, state: str, at: int, *, ms: int | None = None, error: str = "", value: codec.Encoded | None = None
    ) -> StepRecord:
        """What observers are shown of it, as its entry says it."""
        preview = "" if value is None else self.attempt.redaction.preview(self.name, value.text, value.metadata)
        return made(
            StepRecord, kind=Kind.STEP, name=self.name, place=self.position, state=state, executions=self.executions,
            first_ms=self.first, at_ms=at, ms=ms, error=error, preview=preview,
        )  # fmt: skip

    def tell(self, happening: str, shown: StepRecord) -> None:
        """Tell observers what has become of it."""
        run = self.attempt.shown_run
        if run is not None:
            happenings.tell(happening, run, shown, limits=self.pulse.info.limits)

    # -- after it was given up

    def record_late(self, execution: int, value: Any) -> None:
        """Record what an execution has returned after it was given up, unless the run has gone on meanwhile."""
        attempt, recorded, at = self.attempt, False, self.attempt.now()
        if self.unfinished and self.executions == execution and not attempt.info.is_local:
            try:
                encoded = self.encode(value)
                entry = done_entry(self.name, execution, at, 0, encoded.metadata, encoded.text)
                recorded = attempt.outbox.record_late(self.position, entry)
                if recorded and Happening.STEP_SUCCEEDED in happenings.observers:
                    self.tell(Happening.STEP_SUCCEEDED, self.shown(State.DONE, at, ms=0, value=encoded))
            except (JournalUnavailableError, JournalUnreadableError) as error:
                logger.warning("%s: %s", self.where, error)
            except Interrupt:
                logger.warning("%s: a %s cannot be recorded", self.where, type(value).__name__)
        logger.warning(
            "%s has returned after it was given up (execution %d); its value is %s",
            self.where, execution, "recorded all the same" if recorded else "dropped",
        )  # fmt: skip
