"""One step: replay it, or execute it and record it, or ask for another execution.

Written once, as coroutines: :mod:`driver` runs them to their end at once in a sync task, on the loop in an async one.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from math import inf
from threading import Lock
from types import FunctionType
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from celery_durable import django, tracing
from celery_durable.config.retry import RunOptions
from celery_durable.drivers.driver import LARGE, Driver, OnLoop, needs_thread
from celery_durable.drivers.threads import Errand, Stale, Thread, act
from celery_durable.exceptions import (
    ConfigurationError,
    EntryNotRecordableError,
    InvalidStepError,
    JournalUnavailableError,
    JournalUnreadableError,
    RetriesExhausted,
    RetryableError,
    TerminalError,
)
from celery_durable.interrupts import FailAttempt, Interrupt, Overrun, RetryStep
from celery_durable.journal.entries import Entry, done_entry, open_entry, started_entry
from celery_durable.journal.layout import State
from celery_durable.values import codec, declared_types
from celery_durable.values.failure import describe, failure_of, leading, shown, text_of, traceback_of
from celery_durable.values.serializers import check_serializer

from .attempt import Attempt, derived_uuid, running_step
from .cancellation import cancel

logger = logging.getLogger("celery_durable")

LARGE_ENTRY = 2**20

# What asks the process, or this coroutine, to stop: no verdict on the step.
NOT_A_FAILURE: tuple[type[BaseException], ...] = (KeyboardInterrupt, SystemExit, GeneratorExit, Interrupt)
try:
    from greenlet import GreenletExit  # type: ignore[import-untyped, unused-ignore]

    NOT_A_FAILURE = (*NOT_A_FAILURE, GreenletExit)
except ImportError:
    pass

_DEFAULT = RunOptions()

MISSING: Any = object()
"""In place of an action that was not given."""


class StepInfo:
    """What :func:`current_step` gives: the step that is running, seen from inside.

    Attributes:
        name: as passed to ``ctx.run``.
        attempt: which execution of this step this is; the first is 1.
        task_id: id of the task.
        request: Celery's request of the task.
        logger: a logger for the task.
        idempotency_key: a UUID, the same for every execution of this step.
        is_cancelled: whether the run is to be cancelled.

    And :meth:`heartbeat`, for long steps.
    """

    __slots__ = ("_step",)

    def __init__(self, step: Step) -> None:
        self._step = step

    @property
    def name(self) -> str:
        return self._step.name

    @property
    def attempt(self) -> int:
        return self._step.executions

    @property
    def task_id(self) -> str:
        return self._step.attempt.about.task_id

    @property
    def request(self) -> Any:
        return self._step.attempt.about.request

    @property
    def logger(self) -> logging.Logger:
        return self._step.attempt.logger

    @property
    def is_cancelled(self) -> bool:
        """Whether the run is to be cancelled: a long step may end early. Known within about a second."""
        return self._step.attempt.hears_of_cancellation()

    @property
    def idempotency_key(self) -> UUID:
        """The same for every execution of this step of this run, also after Retry, and for no other."""
        step = self._step
        return derived_uuid(step.attempt.seed, step.attempt.about.task_id, "step", step.position)

    def heartbeat(self) -> None:
        """Say that the step is getting on: its silence begins anew. For the attempt's ``inactivity_timeout`` only.

        It costs nothing and tells nobody; ``RunOptions(timeout=...)`` goes on counting.
        """
        self._step.attempt.progressed_at = time.monotonic()


def current_step() -> StepInfo:
    """The step that is running, as a :class:`StepInfo`; mirrors Restate's ``RunContext``.

    Raises:
        ContextClosedError: called outside of a step.
    """
    step = running_step.get()
    if step is None:
        from celery_durable.exceptions import ContextClosedError

        raise ContextClosedError("current_step() is known inside a step only: call it in the action of ctx.run")
    return StepInfo(step)


class Step:
    """A step of one attempt."""

    __slots__ = (
        "action", "args", "attempt", "deadline", "entry", "errand", "executions", "first", "handover", "hint",
        "kwargs", "name", "options", "position", "unfinished", "violation",
    )  # fmt: skip

    handover: Lock
    """Of an execution that is given up: held while the run is made to go on without it."""

    def __init__(
        self,
        attempt: Attempt,
        name: str,
        action: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        attempt.check_usable()
        self.attempt = attempt
        self.violation: Interrupt | None = None
        self.name = name
        self.action = action
        self.options = _DEFAULT
        if args and isinstance(args[0], RunOptions):
            self.options, args = args[0], args[1:]
        self.args = args
        self.kwargs = kwargs
        self._check_call()
        self.position, self.entry = attempt.claim(name)
        self.executions = self.entry.attempts if self.entry else 0
        self.first = self.entry.first if self.entry else None
        self.deadline = inf
        """When an execution in a thread has run too long, by the monotonic clock."""
        self.unfinished = False
        """It has no result, and this attempt does not execute it any more."""
        self.errand: Errand[Any] | None = None
        """What a thread of ours does for it."""

    # -- the main path

    @property
    def recorded(self) -> bool:
        return self.entry is not None and self.entry.settled

    def replay(self) -> Any:
        """The recorded value, or the recorded failure."""
        entry = self.entry
        assert entry is not None  # noqa: S101
        if entry.state != State.DONE:
            raise self.attempt.recorded_failure(self.position, entry)
        options, terms = self.options, self.attempt.terms
        try:
            return codec.decode(
                entry.value, entry.metadata, self._hint() if entry.metadata else None,
                serializer=options.serializer or terms.serializer, accept=terms.accept,
            )  # fmt: skip
        except Exception as error:
            unreadable = JournalUnreadableError(
                f"{self._where}: its recorded value cannot be read ({type(error).__name__}: {error}); has the "
                f"return type of the action or its serializer changed?"
            )
            found, expected = f"{entry}, {shown(error)}", f"step {self.name!r} with a value that can be read"
            build = self.attempt.build_of(entry)
            raise self.attempt.refuse(unreadable, self.position, found, expected, build) from error

    async def perform(self, driver: Driver) -> Any:
        """Execute the action until it is recorded; raise when another attempt must go on."""
        attempt = self.attempt
        if django.is_imported():
            attempt.check_not_atomic("step", self.name, self.entry)
        if self.entry is not None and not attempt.cancel_requested:
            await self._count_the_dead(self.entry, driver)
        self._check_type()
        while True:
            # What follows is judged, and said, when nothing but the action itself is still to come.
            thread = await driver.thread_for(self) if isinstance(driver, OnLoop) and needs_thread(self) else None
            try:
                if attempt.is_in_doubt:
                    await self._ask(driver)
                if self._announce():
                    await driver.settle(attempt)
            except BaseException:
                if thread is not None:
                    thread.leave()
                raise
            attempt.progressed_at = began = time.monotonic()
            try:
                value = await self._act(driver, thread)
            except Stale:
                attempt.check_goes_on()
                self.executions -= 1
            except BaseException as raised:
                # Cleaning up after what was aborted is not to be aborted for it, too.
                attempt.progressed_at = time.monotonic()
                if self.errand is None or not self.errand.is_given_up:
                    await self._wait_after(raised, driver)
                else:
                    await self._wait_without(self.errand, raised, driver)
            else:
                return await self._record(value, began, driver)

    async def _wait_after(self, raised: BaseException, driver: Driver) -> None:
        """Wait until the next execution of this attempt; raises where there is none."""
        attempt = self.attempt
        error = self._meaning(raised)
        if isinstance(error, (*NOT_A_FAILURE, *attempt.about.verdicts)) or driver.is_cancelled(error):
            if error is raised:
                raise raised
            raise error from None
        delay = await self.fail(error, driver)
        # What has failed is to count, though Redis should go away meanwhile.
        attempt.tell()
        await driver.settle(attempt)
        attempt.progressed_at = time.monotonic() + delay
        await driver.pause(delay)

    async def _wait_without(self, errand: Errand[Any], raised: BaseException, driver: Driver) -> None:
        """The same where the execution goes on, though it has failed."""
        try:
            await self._wait_after(raised, driver)
        except Interrupt:
            # Said before what it may still return, which is recorded over it.
            self.attempt.tell()
            await driver.settle(self.attempt)
            raise
        finally:
            errand.decided()

    async def _ask(self, driver: Driver) -> None:
        """Have it said whether an execution may begin, by Redis if need be."""
        attempt = self.attempt
        attempt.check_goes_on()  # others may have ended it meanwhile
        if attempt.is_out_of_touch:
            await driver.ask(attempt, attempt.journal.prove_lease)
            attempt.heard_at = time.monotonic()
        if attempt.cancel_requested:
            await cancel(attempt, self.position, driver, self.name, self.executions)

    def _announce(self) -> bool:
        """Send what must be known if the process dies inside the action; whether to wait until Redis has it."""
        attempt = self.attempt
        self.executions += 1
        backoff = self.options.backoff
        if backoff is None or not backoff.limited:
            attempt.tell(with_next=True)
            return attempt.keeps_back
        if self.first is None:
            self.first = attempt.now()
        attempt.note(self.position, started_entry(self.name, self.executions, self.first))
        wait = backoff.max_attempts == 1
        attempt.tell(with_next=not wait)
        return wait or attempt.keeps_back

    async def _act(self, driver: Driver, thread: Thread | None) -> Any:
        attempt = self.attempt
        token = running_step.set(self)
        attempt.running.add(self)
        try:
            if tracing.is_recording():
                with tracing.span(self.name, attempt.about.task_id, self.executions):
                    return await driver.call(self, thread)
            return await driver.call(self, thread)
        finally:
            running_step.reset(token)
            try:
                attempt.running.remove(self)
            except KeyError:
                # The run goes on without it: what is being said of it comes first.
                with self.handover:
                    pass

    def _meaning(self, raised: BaseException) -> BaseException:
        """The failure behind what ended the action."""
        attempt = self.attempt
        if attempt.closed and attempt.interrupt is not None:
            return attempt.interrupt
        cause = leading(raised)
        if isinstance(raised, asyncio.CancelledError) and attempt.struck_by is not None:
            cause = attempt.struck_by
        if isinstance(cause, Overrun) and cause.attempt is attempt:
            # Which line it was at when its time was over.
            return cause.error.with_traceback(raised.__traceback__)
        return cause

    async def _record(self, value: Any, began: float, driver: Driver) -> Any:
        attempt = self.attempt
        if self.violation is not None or attempt.violation is not None:
            self._check_violation()
        struck: BaseException | None = None
        try:
            if isinstance(driver, OnLoop) and codec.seems_large(value, LARGE):
                encoded = await driver.encode(self, value)
            else:
                encoded = self.encode(value)
        except attempt.about.limits as limit:  # what the action did is recorded first
            struck, encoded = limit, self.encode(value)
        attempt.progressed_at = attempt.heard_at = ended = time.monotonic()
        ms = int((ended - began) * 1000)
        entry = done_entry(self.name, self.executions, attempt.at(ended), ms, encoded.metadata, encoded.text)
        await self._commit(entry, driver)
        logger.info("task %s: step %r recorded (%d ms)", attempt.about.task_id, self.name, ms)
        if struck is not None:
            raise struck
        if attempt.closed and attempt.interrupt is not None:
            raise attempt.interrupt
        return encoded.value

    def send(self, thread: Thread) -> Errand[Any]:
        """Let a thread execute the action, in the context of the code that calls this."""
        context = copy_context()
        self.errand = thread.begin(lambda: context.run(act, self), partial(self.record_late, self.executions))
        return self.errand

    def record_late(self, execution: int, value: Any) -> None:
        """Record what an execution has returned after it was given up, unless the run has gone on meanwhile."""
        attempt, recorded = self.attempt, False
        if self.unfinished and self.executions == execution and not (attempt.about.direct or attempt.about.eager):
            try:
                encoded = self.encode(value)
                entry = done_entry(self.name, execution, attempt.now(), 0, encoded.metadata, encoded.text)
                recorded = attempt.record_late(self.position, entry)
            except (JournalUnavailableError, JournalUnreadableError) as error:
                logger.warning("%s: %s", self._where, error)
            except Interrupt:
                logger.warning("%s: a %s cannot be recorded", self._where, type(value).__name__)
        logger.warning(
            "%s has returned after it was given up (execution %d); its value is %s",
            self._where, execution, "recorded all the same" if recorded else "dropped",
        )  # fmt: skip

    async def _commit(self, entry: str, driver: Driver) -> None:
        """Write the final entry and wait until Redis has it."""
        attempt = self.attempt
        attempt.keeps_back |= len(entry) > driver.most_at_once
        attempt.record(self.position, entry)
        try:
            await driver.settle(attempt)
        except Interrupt:
            logger.error("%s ran but could not be recorded; it will run again", self._where)
            raise
        except BaseException:  # a time limit struck between the action and its record: the record comes first
            await driver.settle(attempt)
            raise

    # -- failures

    async def fail(self, error: BaseException, driver: Driver) -> float:
        """Seconds to wait inside this attempt before the next execution; raises in every other case."""
        attempt, options = self.attempt, self.options
        self._check_violation()
        if attempt.about.direct:
            raise error
        if isinstance(error, TerminalError):
            await self._give_up(error, driver)
        if isinstance(error, options.non_retryable):
            await self._give_up(TerminalError(error), driver)
        note = {"error": describe(error, with_args=False)}
        if options.backoff is None:
            attempt.note(self.position, open_entry(self.name, State.RETRYING, self.executions, **note))
            logger.warning("%s failed (execution %d): %s", self._where, self.executions, shown(error))
            self.unfinished = True
            raise attempt.stop(FailAttempt(self.name, error)) from error
        if self.first is None:
            self.first = attempt.now()
        elapsed = (attempt.now() - self.first) / 1000
        delay = options.backoff.next(self.executions, elapsed, error)
        if delay is None:
            await self._give_up(self._exhausted(error, elapsed), driver)
            raise AssertionError  # pragma: no cover  _give_up always raises
        logger.warning(
            "%s failed (execution %d of %s): %s; next try in %g s",
            self._where, self.executions, options.backoff.max_attempts or "any number", shown(error), delay,
        )  # fmt: skip
        attempt.note(self.position, open_entry(self.name, State.RETRYING, self.executions, first=self.first, **note))
        if delay > attempt.terms.inline_retry_limit:
            self.unfinished = True
            raise attempt.stop(RetryStep(self.name, error, delay)) from error
        return 0.0 if attempt.about.eager else delay

    async def _give_up(self, error: TerminalError, driver: Driver) -> None:
        """Journal a terminal failure, then raise it as every replay will."""
        try:
            described = describe(error)
        except codec.NotEncodable as reason:
            raise self._refuse(
                f"its {type(error).__name__}, whose arguments are to be plain data, cannot be recorded: {reason}"
            ) from error
        facts = {"at": self.attempt.now(), "begun": self.attempt.begun(self.position), "error": described}
        await self._commit(open_entry(self.name, State.FAILED, self.executions, **facts), driver)
        logger.warning("%s failed for good (execution %d): %s", self._where, self.executions, error)
        raise failure_of(described).with_traceback(error.__traceback__) from error.__cause__

    async def _count_the_dead(self, entry: Entry, driver: Driver) -> None:
        """An execution that never reported back died with its process: it counts, and may have been the last."""
        backoff = self.options.backoff
        if entry.state != State.STARTED or backoff is None:
            return
        elapsed = (self.attempt.now() - (entry.first or self.attempt.now())) / 1000
        spent = backoff.max_attempts is not None and entry.attempts >= backoff.max_attempts
        late = backoff.max_duration is not None and elapsed > backoff.max_duration
        if spent or late:
            died = ProcessDied(f"the worker process died during execution {entry.attempts}")
            await self._give_up(self._exhausted(died, elapsed), driver)

    def _exhausted(self, error: BaseException, elapsed: float) -> RetriesExhausted:
        times = "once" if self.executions == 1 else f"{self.executions} times"
        exhausted = RetriesExhausted(
            f"step {self.name!r} failed {times} within {elapsed:.3g} s; "
            f"the last error was {type(error).__name__}: {text_of(error)}",
            error.status_code if isinstance(error, RetryableError) else 500,
            None,
            self.executions,
            timedelta(seconds=elapsed),
            type(error).__qualname__,
            text_of(error),
            traceback_of(error),
        )
        exhausted.__cause__ = error
        return exhausted

    # -- checks

    def _check_violation(self) -> None:
        """The context was used inside the action, which may have swallowed the error."""
        violation = self.violation or self.attempt.violation
        if violation is not None:
            raise violation

    @property
    def _where(self) -> str:
        return f"task {self.attempt.about.task_id}: step {self.name!r}"

    def _check_call(self) -> None:
        name, action = self.name, self.action
        if not isinstance(name, str):
            called = str(getattr(name, "__name__", ""))  # of a lambda it is no name that code could use
            corrected = f'write ctx.run("{called}", {called}, ...)' if called.isidentifier() else ""
            hint = f": {corrected}" if corrected else ', as in ctx.run("charge", charge)'
            raise self._invalid(f"the first argument of ctx.run is the step's name, a string, got {name!r}{hint}")
        if action is MISSING:
            raise self._invalid(f'step {name!r} has no action: write ctx.run("{name}", function, ...)')
        if not callable(action):
            if inspect.iscoroutine(action):
                action.close()
                called = action.__name__
                raise self._invalid(
                    f"step {name!r} was given a coroutine, which can run only once: pass the function and its "
                    f'arguments, ctx.run("{name}", {called}, ...)'
                )
            raise self._invalid(
                f"the action of step {name!r} must be callable, got {action!r}: pass a function and its arguments, "
                f'ctx.run("{name}", function, ...)'
            )
        if not args_fit_fast(action, self.args, self.kwargs):
            self._check_arguments()
        try:
            if self.options.serializer is not None:
                check_serializer(self.options.serializer, self.attempt.terms.accept)
        except ConfigurationError as error:
            raise self.attempt.end_run(error) from None
        # Not when the options are built: that is when a module is imported, and Pydantic is half of the import time.
        if self.options.type_hint is not None and not declared_types.usable(self.options.type_hint):
            self._refuse_type_hint()

    @property
    def _is_json(self) -> bool:
        """Whether the type of its value matters: no other serializer needs one."""
        return (self.options.serializer or self.attempt.terms.serializer) in (None, "json")

    def _check_type(self) -> None:
        """End the run before the action has an effect, if its result could not be recorded whatever it were."""
        options = self.options
        self.hint = declared_types.declared_type(self.action) if options.type_hint is None else options.type_hint
        if options.type_hint is None and declared_types.never_recorded.is_empty:
            return
        reason = declared_types.objection(self.action, self.options.type_hint)
        if reason is not None and self._is_json:
            raise self.attempt.end_run(
                EntryNotRecordableError(
                    f"{self._where} did not run, since what it returns by its declared type cannot be recorded: "
                    f"{reason}, or pass serializer="
                )
            )

    def _refuse_type_hint(self) -> None:
        if self._is_json:
            hint = f"type_hint must be a type that Pydantic can write and read, got {self.options.type_hint!r}"
            raise self.attempt.end_run(ConfigurationError(f"{self._where}: {hint}"))

    def _check_arguments(self) -> None:
        signature = signature_of(self.action)
        if signature is None:
            return
        try:
            signature.bind(*self.args, **self.kwargs)
        except TypeError as error:
            strays = (key for key in self.kwargs if key not in signature.parameters)
            option = next((key for key in strays if key in RunOptions.__dataclass_fields__), None)
            if option is None and _is_taken_by_a_decorator(self.action, self.args, self.kwargs):
                return
            advice = f"; options go into RunOptions({option}=...)" if option else ""
            called = getattr(self.action, "__qualname__", repr(self.action))
            raise self._invalid(
                f"step {self.name!r}: the arguments do not fit {called}{signature}: {error}{advice}"
            ) from None

    def _invalid(self, message: str) -> Interrupt:
        return self.attempt.end_run(InvalidStepError(f"task {self.attempt.about.task_id}: {message}"))

    def _hint(self) -> Any:
        hint = self.options.type_hint
        return declared_types.declared_type(self.action) if hint is None else hint

    def encode(self, value: Any) -> codec.Encoded:
        """What is recorded of the value; the run ends where it cannot be."""
        options, terms = self.options, self.attempt.terms
        try:
            encoded = codec.encode(
                value, self.hint, serializer=options.serializer or terms.serializer,
                compression=options.compression, accept=terms.accept,
            )  # fmt: skip
        except ConfigurationError as error:
            raise self.attempt.end_run(error) from None
        except self.attempt.about.limits:
            raise
        except Exception as error:
            cause = None if isinstance(error, codec.NotEncodable) else error  # that says it all
            raise self._refuse(f"a {type(value).__name__} cannot be recorded: {error}") from cause
        size = len(encoded.text) if encoded.text.isascii() else len(encoded.text.encode())
        if encoded.metadata:
            size += len(encoded.metadata.get("rest", ""))
        if size > terms.max_entry_size:
            raise self._refuse(
                f"a {type(value).__name__} of {size} bytes is larger than durable_max_entry_size="
                f"{terms.max_entry_size}; store it elsewhere and return its address"
            )
        if size > LARGE_ENTRY:
            logger.warning("%s records %d bytes, and every attempt loads them again", self._where, size)
        return encoded

    def _refuse(self, reason: str) -> Interrupt:
        reason = reason.replace("{action}", getattr(self.action, "__qualname__", "the action"))
        return self.attempt.end_run(EntryNotRecordableError(f"{self._where} ran, but {reason}"))


class ProcessDied(Exception):
    """Stands for an execution whose process died."""


_signatures: WeakKeyDictionary[Any, inspect.Signature] = WeakKeyDictionary()


def signature_of(action: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return _signatures[action]
    except (KeyError, TypeError):
        pass
    try:
        signature = inspect.signature(action)
    except (TypeError, ValueError):  # some builtins have none
        return None
    if isinstance(action, FunctionType):
        _signatures[action] = signature
    return signature


def _is_taken_by_a_decorator(action: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a decorator takes them: it shows the signature of what it decorates, and may pass more."""
    try:
        inspect.signature(action, follow_wrapped=False).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def args_fit_fast(action: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether positional arguments plainly fit a plain function: binding a signature costs as much as the write."""
    if kwargs or type(action) is not FunctionType:
        return False
    code = action.__code__
    most = code.co_argcount
    return not code.co_kwonlyargcount and most - len(action.__defaults__ or ()) <= len(args) <= most
