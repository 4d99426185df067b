"""One call of a task's body under Celery: open the run, let the body work, and turn its end into what Celery expects.

The seam: with :mod:`task`, :mod:`message`, :mod:`outcome`, :mod:`hold`, :mod:`decorator`, :mod:`request`,
:mod:`retry_task`, :mod:`startup` and :mod:`store`, alone in knowing Celery.
"""

from __future__ import annotations

import logging
import signal
import threading
from asyncio import CancelledError
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from functools import cache
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import states
from celery.app.task import get_actual_ignore_result  # type: ignore[attr-defined]
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, WorkerShutdown, WorkerTerminate
from celery.utils.log import get_task_logger

from . import call, message, outcome, report, silence
from .attempt import Attempt, Surroundings, running_step
from .context import AsyncDurableContext, DurableContext
from .driver import IN_THREAD, on_loop, run_to_end, wait_for
from .exceptions import (
    ConfigurationError,
    DurableError,
    DurableTimeoutError,
    EntryNotRecordableError,
    JournalUnavailableError,
    RecoveryLimitExceeded,
    RetryableError,
    TaskCancelled,
    TerminalError,
)
from .failure import leading, portable, shown
from .hold import Hold
from .interrupts import EndRun, FailAttempt, Fenced, Interrupt, JournalLost, NotNow, Overrun, RetryStep, Sleep
from .journal import Delivery, MemoryJournal
from .progress import Watch, watcher
from .redelivery import turn_away
from .step import NOT_A_FAILURE, Step
from .strike import AsyncBody, Place, door, here

if TYPE_CHECKING:
    from .task import DurableTask

logger = logging.getLogger("celery_durable")

_EXIT_BY_SIGNAL = -(256 - signal.SIGTERM)
"""How a child of the pool exits when the worker ends it."""

JOURNAL_LOST_DELAY = 5.0
"""Seconds until Celery tries an attempt again that could not reach its journal."""

current: ContextVar[Execution | None] = ContextVar("celery_durable_execution", default=None)

# Where Celery's request keeps the execution that opened a run, for what happens outside of the body.
_OPENED = "durable_execution"

# Celery looks its loggers up anew each time.
_task_logger = cache(get_task_logger)

# Celery's eager retries are calls within the call: one journal over all of them.
_eager_journals: dict[str, MemoryJournal] = {}


class Execution:
    """What happens to one call of a task's body."""

    def __init__(self, task: DurableTask[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.task = task
        self.args = args
        self.kwargs = kwargs
        self.request = task.request
        self.context: DurableContext | AsyncDurableContext | None = None
        self.hold: Hold | None = None
        self._delivery: Delivery | None = None
        self._refused: Interrupt | None = None
        self.said: Retry | None = None
        """What ``self.retry()`` raised: it is sent, whatever user code makes of the exception."""
        self.retry_changes: Mapping[str, str] = {}
        """What the journal is to know of a retry that ``self.retry()`` has sent."""
        self.gave_up: BaseException | None = None
        """What ``self.retry()`` raised because its limit is spent: no policy retries that."""
        self.decided: BaseException | None = None
        """What Celery is to handle as it is: no autoretry of Celery's changes it."""
        self._undecided = False
        self._awaited = False
        self.began = False
        """Whether the arguments fitted and the function was entered."""
        outer = current.get()
        self.direct = bool(
            self.request.called_directly
            or self.request.id is None
            # A task that calls itself as a function finds its own request.
            or (outer is not None and outer.request.id == self.request.id)
        )
        self.eager = bool(self.request.is_eager)

    @property
    def attempt(self) -> Attempt | None:
        return self.hold.attempt if self.hold is not None else None

    @property
    def _interrupt(self) -> Interrupt | None:
        """What ended the attempt, even if user code has swallowed it."""
        return self._refused or (self.attempt.interrupt if self.attempt is not None else None)

    # -- the main path

    def run(self, body: Callable[..., Any]) -> Any:
        """Call the body; return its result to Celery, or raise what tells Celery how to go on."""
        token = current.set(self)
        # An eager task is sent, not called, though it runs here and now: the step that sent it is not its own.
        sender = running_step.set(None) if self.eager and not self.direct else None
        try:
            value = self._call(body)
            return value if self.hold is None else self._succeed(self.hold, value)
        except BaseException as error:
            return self._end(error)
        finally:
            current.reset(token)
            if sender is not None:
                running_step.reset(sender)
            if not self._awaited:
                self._let_go_if_direct()

    def _let_go_if_direct(self) -> None:
        if self.direct and self.hold is not None:
            self.hold.let_go()

    def open(self) -> DurableContext | AsyncDurableContext:
        """The context of this execution; its run is opened at first use."""
        if self._refused is not None:
            raise self._refused
        if self.context is None:
            try:
                attempt = self._begin()
            except Interrupt as refused:
                self._refused = refused
                raise
            self.context = AsyncDurableContext(attempt) if self.task.is_async else DurableContext(attempt)
        return self.context

    @door
    def _call(self, body: Callable[..., Any]) -> Any:
        if self.task.opinionated or self.task.is_async or self._has_begun():
            # Of an async task not on the event loop, which an opening would hold up.
            self.open()
        value = body(self.task, *self.args, **self.kwargs)
        if type(value) is not CoroutineType:
            return value
        if self.direct and on_loop():
            # Called as a function by an async task, which awaits it.
            self._awaited = True
            return self._awaitable(value)
        return wait_for(self._on_loop(value), self._struck)

    def _has_begun(self) -> bool:
        """Whether an earlier attempt has opened the run, so that this one cannot end without it, either."""
        request = self.request
        if self.direct or self.eager:
            return False
        if message.header_of(request):
            return True
        if not (request.delivery_info or {}).get("redelivered"):
            return False
        from .store import store_of

        try:
            return store_of(self.task.app).runs.is_known(request.id)
        except DurableError:
            return False  # of a task without a journal, as far as can be known

    async def _awaitable(self, body: Coroutine[Any, Any, Any]) -> Any:
        token = current.set(self)
        try:
            return await self._on_loop(body)
        except BaseException as error:
            return self._end(error)
        finally:
            current.reset(token)
            self._let_go_if_direct()

    async def _on_loop(self, body: Coroutine[Any, Any, Any]) -> Any:
        if self.attempt is not None:
            self.attempt.begin_here()
            self._watch(self.attempt, AsyncBody())
        try:
            return await body
        finally:
            if self.attempt is not None:
                await self.attempt.landed()

    def _struck(self, by: BaseException) -> None:
        if self.attempt is not None:
            self.attempt.struck_by = by

    # -- the beginning

    def _begin(self) -> Attempt:
        task = self.task
        self._delivery = delivery = self._in_memory() if self.direct or self.eager else self._in_redis()
        assert self.hold is not None  # noqa: S101
        log = _task_logger(task.name)
        about = Surroundings(delivery.task_id, task.name, self.request, log, direct=self.direct, eager=self.eager)
        self.request.__dict__[_OPENED] = self
        attempt = self.hold.open(delivery, about, task.durable_terms)
        if attempt.reopened:
            logger.info("task %s: the failed run is reopened, with fresh budgets", delivery.task_id)
        self._check_recoveries(attempt, self.hold.settings.max_recoveries)
        if not task.is_async:
            self._watch(attempt, here())
        return attempt

    def _watch(self, attempt: Attempt, place: Place | None) -> None:
        if self.direct or self.eager:
            watcher.watch(Watch(attempt, self, place))
        else:
            terms = attempt.terms
            own_limit = any(self.request.timelimit or ()) and self.task.abort_timeout is None
            watcher.watch(
                Watch(attempt, self, place, terms.inactivity_timeout, inf if own_limit else terms.abort_timeout)
            )

    def _in_redis(self) -> Delivery:
        from .store import store_of  # a process that only sends tasks does without it

        store = store_of(self.task.app)
        self.hold = store.hold(self.request.id, self.task.durable_settings)
        return call.delivery_of(self.task, self.request, self.args, self.kwargs)

    def _in_memory(self) -> Delivery:
        task_id = str(uuid4()) if self.direct else self.request.id
        journal = MemoryJournal()
        if not self.direct:
            journal = _eager_journals.setdefault(task_id, journal)
        self.hold = Hold(journal, self.task.durable_settings)
        return Delivery(task_id, self.task.name, "", "{}")

    def _check_recoveries(self, attempt: Attempt, limit: int) -> None:
        if attempt.recoveries > limit:
            raise attempt.end_run(
                RecoveryLimitExceeded(
                    f"task {attempt.about.task_id}: {attempt.recoveries} attempts in a row died without recording "
                    f"a step (max_recoveries={limit}); the journal is kept: look at why the worker dies, then "
                    f"retry the task"
                )
            )

    # -- a good end

    def _succeed(self, hold: Hold, value: Any) -> Any:
        attempt = hold.attempt
        if self._interrupt is not None:
            # Swallowed by a bare ``except``; what the body returned after that means nothing.
            raise self._interrupt
        if self.said is not None:
            raise self.said
        if self.direct or attempt is None:
            return value
        attempt.check_nothing_left()
        if self.task.opinionated and hasattr(value, "model_dump"):
            value = value.model_dump(mode="json")
        hold.finish("succeeded", self._recordable(attempt, value))
        self._forget_eager()
        return value

    def _recordable(self, attempt: Attempt, value: Any) -> str:
        """The result as text; where it goes nowhere, none is needed."""
        try:
            return outcome.of_value(value, attempt.terms.result_serializer)
        except Exception as error:
            request = self.request
            wanted = request.callbacks or request.chain or request.chord
            if get_actual_ignore_result(self.task, request) and not wanted:
                return outcome.of_value(None, "json")
            raise attempt.end_run(
                EntryNotRecordableError(
                    f"task {attempt.about.task_id} returned a {type(value).__name__}, which Celery's result serializer "
                    f"{attempt.terms.result_serializer!r} does not take: {error}"
                )
            ) from error

    # -- every other end: what is raised here is Celery's to handle

    def _end(self, error: BaseException) -> Any:
        """Turn what ended the body into what Celery is to do."""
        try:
            try:
                return self._settle(self._interrupt or self.said or self._reason(error))
            except Interrupt as late:
                # The end itself met a fence, a lost journal, or steps that were left over.
                return self._settle(late)
        except BaseException as decided:
            if not self._undecided:
                self.decided = decided
            raise

    def _reason(self, error: BaseException) -> BaseException:
        """Why the body of an async task was cancelled, if it was by us."""
        struck_by = self.attempt.struck_by if self.attempt is not None else None
        return struck_by if isinstance(error, CancelledError) and isinstance(struck_by, Overrun) else error

    def _settle(self, error: BaseException) -> Any:
        match error:
            case Interrupt():
                return self._interrupted(error)
            case Retry() | Ignore() | Reject():
                raise self._celery_said(error)
            case _ if isinstance(error, NOT_A_FAILURE):
                # The process is going down: another one is to go on at once.
                if self.hold is not None:
                    self.hold.give_up(orderly=_is_shutdown(error))
                raise error
        raise self._failed_attempt(leading(error))

    def _interrupted(self, interrupt: Interrupt) -> Any:
        match interrupt:
            case NotNow(verdict=verdict):
                assert self.hold is not None  # noqa: S101
                fresh = self._delivery is not None and self._delivery.fresh
                return turn_away(verdict, self.task, self.request, self.hold, fresh=fresh)
            case RetryStep():
                raise self._retry(interrupt.error, interrupt.delay, {})
            case Overrun() if interrupt.attempt is not self.attempt:
                # Of a step that called this task as a function.
                raise interrupt
            case Sleep():
                raise self._sleep(interrupt)
            case FailAttempt() | Overrun():
                raise self._failed_attempt(interrupt.error)
            case EndRun():
                raise self._fail(interrupt.error)
            case JournalLost():
                raise self._lost(interrupt.error)
        logger.warning("task %s: another attempt has taken over, this one ends", self.request.id)
        if self.hold is not None:
            self.hold.let_go()
        raise Ignore("another attempt has taken over") from interrupt

    def _celery_said(self, said: BaseException) -> BaseException:
        """User code used Celery's own means: ``self.retry()``, ``Ignore``, ``Reject``."""
        if self.hold is None or self.direct:
            return said
        match said:
            case Ignore():
                self.hold.finish("ignored", None)
            case Reject() if not said.requeue:  # type: ignore[attr-defined]
                return self._fail(said)
            case Retry():
                # It was sent: by ``self.retry(throw=False)``, say.
                wait = message.seconds_until(self.task, said.when)
                self.hold.suspend(wait, self.retry_changes, slack=self.hold.settings.lease)
            case _:
                # The message goes back to the broker, which brings it again.
                self.hold.suspend(0.0, message.resume_as_is(self.request), slack=self.hold.settings.lease)
        return said

    def _failed_attempt(self, error: BaseException) -> BaseException:
        """An exception of the body, or of a step without retry options; the exception for Celery."""
        attempt = self.attempt
        if self.direct:
            return error
        if attempt is None:
            if self.hold is not None and isinstance(error, SoftTimeLimitExceeded):
                return self._lost(JournalUnavailableError("a time limit struck before the journal was open"))
            return error
        if self.task.opinionated and not self.began:
            return self._fail(_misfit(error))
        if isinstance(error, TerminalError):
            attempt.check_nothing_left()
        final = isinstance(error, DurableError) and not isinstance(error, (RetryableError, DurableTimeoutError))
        if final or error is self.gave_up:
            return self._fail(error)
        return self._by_policy(attempt, error) if self.task.opinionated else self._as_celery_decides(error)

    def _by_policy(self, attempt: Attempt, error: BaseException) -> BaseException:
        """The task retry policy: another attempt, or FAILURE."""
        rules = self.task.retry_rules
        failures = attempt.failures_now()
        if not rules.resets_on_progress:
            # Celery's max_retries: all retries but those of steps share it.
            failures += message.own_retries(self.request)
        since = attempt.failing_since(failures)
        delay = rules.next(failures, (attempt.now() - since) / 1000, error)
        if delay is None:
            logger.error("task %s: attempt %d failed for good: %s", self.request.id, failures, shown(error))
            return self._fail(error)
        logger.warning(
            "task %s: attempt %d of %s failed: %s; next try in %g s",
            self.request.id, failures, rules.backoff.max_attempts or "any number", shown(error), delay,
        )  # fmt: skip
        counts = {"failures": str(attempt.failures_now()), "failing_since": str(since)}
        return self._retry(error, delay, counts, by_policy=True)

    def _as_celery_decides(self, error: BaseException) -> BaseException:
        """Plain Celery's rules: ``autoretry_for``, or FAILURE."""
        if isinstance(error, tuple(getattr(self.task, "autoretry_for", None) or ())):
            # Celery's autoretry wraps us: it calls retry(), or gives up (see :meth:`after`).
            self._undecided = True
            return error
        return self._fail(error)

    def _fail(self, error: BaseException) -> BaseException:
        """End the run as failed; the exception for Celery."""
        error = portable(error)
        if self.hold is None or self.direct:
            return error
        cancelled = isinstance(error, TaskCancelled) and not self.eager
        self.hold.finish("revoked" if cancelled else "failed", outcome.of_error(error))
        self._forget_eager()
        if not cancelled:
            return error
        logger.info("task %s: cancelled", self.request.id)
        if not report.revoked(self.task, self.request, error):
            self.hold.not_delivered()
        return Ignore("the run was cancelled")

    def fail_after_all(self, error: BaseException) -> BaseException:
        """A retry was announced to the journal, and cannot be sent."""
        if self.hold is not None:
            self.hold.ended = False
        return self._fail(error)

    def _sleep(self, sleep: Sleep) -> BaseException:
        """Suspend the run until it is to wake up; the journal alone keeps that wait."""
        assert self.hold is not None  # noqa: S101
        assert self.attempt is not None  # noqa: S101
        # Said first: once the lease is given back the run may go on, and end, before this process says another word.
        self.hold.prove_lease()
        report.suspended(self.task, self.request, sleep.until_text)
        wait = max(0.0, (sleep.until - self.attempt.now()) / 1000)
        try:
            self.hold.suspend(wait, message.resume_as_is(self.request))
        except Fenced:
            # Somebody has ended the run meanwhile: what was said over it is to be taken back.
            self._report_if_over()
            raise
        return Ignore("the run sleeps")

    def _report_if_over(self) -> None:
        from .store import store_of

        fields = store_of(self.task.app).runs.load(self.request.id)
        ended = outcome.read(fields, self.task.durable_terms.accept)
        if ended.delivered:
            report.again(self.task, self.request, ended)

    def _retry(
        self, error: BaseException, delay: float, fields: dict[str, str], *, by_policy: bool = False
    ) -> BaseException:
        """Suspend the run until its next attempt; the exception that shows it as RETRY.

        The broker carries the wait if it is short, else the journal.
        """
        assert self.hold is not None  # noqa: S101
        delay = 0.0 if self.eager else message.sendable_delay(self.task.app, delay)
        fields = {**fields, **message.resume_of_retry(self.request, by_policy=by_policy)}
        if delay > self.hold.settings.max_broker_delay:
            self.hold.suspend(delay, fields)
            return _shown_as_retry(error, delay)
        self.hold.suspend(delay, fields, slack=self.hold.settings.lease)
        return self._publish(error, delay, by_policy=by_policy)

    def _lost(self, error: DurableError) -> BaseException:
        if self.hold is not None:
            self.hold.let_go()
        logger.error("task %s: %s; the task is retried in %g s", self.request.id, error, JOURNAL_LOST_DELAY)
        # What was to reopen the run still is.
        fresh = self.attempt is None and self._delivery is not None and self._delivery.fresh
        retry = self._publish(error, JOURNAL_LOST_DELAY, reopen=str(uuid4()) if fresh else "")
        if self.attempt is not None and self.attempt.journal.lease_in_doubt:
            # Another attempt may have ended the run: no state is to be stored over its own.
            return Ignore("the journal is lost, and perhaps the run")
        return retry

    def _publish(
        self, error: BaseException, delay: float, *, by_policy: bool = False, reopen: str = ""
    ) -> BaseException:
        send = message.eager_signature if self.eager else message.send_retry
        try:
            signature = send(self.task, self.request, delay, by_policy=by_policy, reopen=reopen)
        except Reject:
            raise
        except Exception as unsendable:
            # No broker that is away, which passes, but a message that cannot be.
            return self.fail_after_all(unsendable)
        return _shown_as_retry(error, delay, is_eager=self.eager, sig=signature)

    def _forget_eager(self) -> None:
        if self.eager:
            _eager_journals.pop(self.request.id, None)

    # -- asked by the thread that watches the attempt

    def silent(self, seconds: float) -> None:
        assert self.attempt is not None  # noqa: S101
        _aside(silence.report, self.task, self.attempt, seconds, self.request.hostname)

    def go_on_without(self, overrun: Overrun) -> None:
        """The code of this attempt cannot be interrupted: the run goes on, whenever that ends."""
        if not (self.direct or self.eager):
            _aside(self._abandon if overrun.step is not None and not self.task.is_async else self._leave, overrun)

    def _leave(self, overrun: Overrun) -> None:
        """Nobody knows what the body does next: its run is taken over as that of a dead process is."""
        attempt, hold = overrun.attempt, self.hold
        assert hold is not None  # noqa: S101
        logger.error("task %s: %s, and its code does not end; its lease lapses", attempt.about.task_id, overrun.error)
        attempt.stop(overrun)
        hold.lapse()

    def _abandon(self, overrun: Overrun) -> None:
        """Fail the execution of a step in the place of its thread, which does nothing else until its action ends."""
        attempt, step, hold = overrun.attempt, overrun.step, self.hold
        assert step is not None  # noqa: S101
        assert hold is not None  # noqa: S101
        step.handover = threading.Lock()
        with step.handover:
            try:
                attempt.running.remove(step)
            except KeyError:
                return  # it has ended just now
            logger.error(
                "task %s: step %r cannot be interrupted; the run goes on without it",
                attempt.about.task_id, step.name,
            )  # fmt: skip
            try:
                self._end(self._failure(step, overrun.error))
            except Interrupt as error:
                logger.error("task %s: its abandoned step could not be journaled: %s", self.request.id, error)
            except BaseException as said:
                if self._undecided:
                    said = self._as_autoretry_decides(said)
                if not isinstance(said, (Retry, Ignore, Reject)):
                    hold.hand_over()
            attempt.leave_behind()

    @staticmethod
    def _failure(step: Step, error: BaseException) -> BaseException:
        """How the attempt ends by this failure of a step."""
        try:
            delay = run_to_end(step.fail(error, IN_THREAD))
        except TerminalError:
            # Recorded: the next attempt finds it at once.
            return RetryStep(step.name, error, 0.0)
        except Interrupt as ended:
            return ended
        return RetryStep(step.name, error, delay)

    def _as_autoretry_decides(self, error: BaseException) -> BaseException:
        """What Celery's ``autoretry_for`` makes of what the body raises."""
        task = self.task
        task.request_stack.push(self.request)
        try:
            task.retry(exc=error, **getattr(task, "retry_kwargs", {}))
        except BaseException as said:
            return said if isinstance(said, (Retry, Ignore, Reject)) else self._fail(said)
        finally:
            task.request_stack.pop()
        return error

    # -- after Celery has stored the result

    def after(self, state: str | None, result: Any, *, delivered: bool) -> None:
        """Celery is done with this execution: say so in the journal.

        *delivered*: no exception kept Celery from storing the result and sending what hangs on it.
        """
        if self.hold is None:
            return
        try:
            if state == states.FAILURE:
                # Where Celery's autoretry gave up, the journal does not know yet.
                self._fail(result)
        except Interrupt as error:
            logger.error("task %s: its end could not be journaled: %s", self.request.id, error)
        finally:
            self._note_delivery(self.hold, state, result, delivered=delivered)
            self.hold.close()
            # They hold each other: unless they are parted, all of the run waits for the garbage collector.
            self.request.__dict__.pop(_OPENED, None)
            if state != states.RETRY:
                self._forget_eager()

    @staticmethod
    def _note_delivery(hold: Hold, state: str | None, result: Any, *, delivered: bool) -> None:
        if not delivered or state is None:
            hold.not_delivered()
        elif hold.contradicts(state):
            if isinstance(result, message.BROKER_AWAY):
                hold.not_delivered()
            else:
                hold.never_delivered()

    # -- the user's own retry

    def before_user_retry(self, delay: float, limit: int | None, changes: Mapping[str, str]) -> bool:
        """``self.retry()`` is about to publish: the journal is told first when the run goes on, and what *changes*.

        Returns whether the journal carries the wait, so that nothing is to be published.
        """
        within = limit is None or self.request.retries + 1 <= limit
        if not within or self.hold is None or self.attempt is None:
            return False
        by_journal = delay > self.hold.settings.max_broker_delay and not self.eager
        try:
            self.hold.suspend(delay, changes, slack=0.0 if by_journal else self.hold.settings.lease)
        except Fenced:
            raise Ignore("another attempt has taken over") from None
        except JournalLost as lost:
            # Celery's message carries the retry; the journal will see it when the lease has lapsed.
            logger.error("task %s: self.retry() could not be journaled: %s", self.request.id, lost)
            self.attempt.interrupt = None
            self.hold.let_go()
            return False
        return by_journal


def _shown_as_retry(error: BaseException, delay: float, **options: Any) -> BaseException:
    retry: BaseException = Retry(exc=error, when=delay, **options)  # type: ignore[arg-type]
    retry.__cause__ = error
    return retry


def _aside(work: Callable[..., None], *args: Any) -> None:
    """Do what may take a while in a thread of its own."""
    threading.Thread(target=work, args=args, name=f"celery-durable-{work.__name__.strip('_')}", daemon=True).start()


def _is_shutdown(error: BaseException) -> bool:
    """Whether the worker ends the process, and not the task itself."""
    by_signal = isinstance(error, SystemExit) and error.code == _EXIT_BY_SIGNAL
    return by_signal or isinstance(error, (WorkerShutdown, WorkerTerminate))


def _misfit(error: BaseException) -> BaseException:
    """Arguments that do not fit the task, as an error that a caller in another process can read."""
    if type(error).__name__ != "ValidationError":
        return error
    refused = TerminalError(str(error), 400)
    refused.error_type = "ValidationError"
    refused.__cause__ = error
    return refused


def execution_of(task: DurableTask[Any, Any]) -> Execution:
    """The execution of *task* that this code is in.

    Raises:
        ConfigurationError: outside of a running task.
    """
    execution = current.get()
    if execution is None or execution.task is not task:
        raise ConfigurationError(f"the context of {task.name} is known while the task runs, in its own body")
    return execution


def opened_by(request: Any) -> Execution | None:
    """The execution that opened a run under *request*; None if its context was not used."""
    execution = request.__dict__.get(_OPENED)
    # A direct call of a task copies the request that it finds.
    return execution if execution is not None and execution.request is request else None
