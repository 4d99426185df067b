"""One call of a task's body under Celery: open the run, let the body work, and turn its ending into what Celery expects.

The seam: with :mod:`task`, :mod:`message`, :mod:`decorator`, :mod:`retry_task` and :mod:`worker`, alone in knowing Celery.
"""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from types import CoroutineType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import states
from celery.app.task import get_actual_ignore_result
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.log import get_task_logger

from . import message, outcome
from .attempt import Attempt, Surroundings, Terms
from .context import AsyncDurableContext, DurableContext
from .driver import wait_for
from .exceptions import (
    ConfigurationError,
    DurableError,
    JournalUnavailableError,
    RecoveryLimitExceeded,
    RetryableError,
    TerminalError,
)
from .failure import portable
from .interrupts import EndRun, FailAttempt, Fenced, Interrupt, JournalLost, NotNow, RetryStep
from .journal import Busy, Delivery, Finished, Foreign, Journal, MemoryJournal, Opened, Verdict
from .redis_journal import RedisJournal
from .store import store_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .task import DurableTask

logger = logging.getLogger("celery_durable")

JOURNAL_LOST_DELAY = 5.0
"""Seconds until Celery tries an attempt again that could not reach its journal."""

_WAIT_HERE = 1.0
"""A run that is due sooner than this is waited for, not sent around."""

current: ContextVar[Execution | None] = ContextVar("celery_durable_execution", default=None)

# Where Celery's request keeps the execution that opened a run, for what happens outside of the body.
_OPENED = "durable_execution"

_eager_journals: dict[str, MemoryJournal] = {}


class Execution:
    """What happens to one call of a task's body."""

    def __init__(self, task: DurableTask[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.task = task
        self.args = args
        self.kwargs = kwargs
        self.request = task.request
        self.began = False
        """Whether the arguments fitted and the function was entered."""
        self.attempt: Attempt | None = None
        self.context: DurableContext | AsyncDurableContext | None = None
        self._journal: Journal | None = None
        self._ended = False
        self._to_deliver = False
        outer = current.get()
        self.direct = (
            self.request.called_directly
            or self.request.id is None
            # A task that calls itself as a function finds its own request.
            or (outer is not None and outer.request.id == self.request.id)
        )
        self.eager = bool(self.request.is_eager)

    # -- the main path

    def run(self, body: Callable[..., Any]) -> Any:
        """Call the body, and hand Celery its result or the exception that tells what is to happen."""
        token = current.set(self)
        try:
            value = self._call(body)
            if self.attempt is not None:
                value = self._succeed(value)
        except BaseException as error:
            return self._end(error)
        finally:
            current.reset(token)
        return value

    def open(self) -> DurableContext | AsyncDurableContext:
        """The context of this execution; its run is opened at first use."""
        if self.context is None:
            self.attempt = attempt = self._begin()
            kind = AsyncDurableContext if self.task.is_async else DurableContext
            self.context = kind(attempt)
        return self.context

    def _call(self, body: Callable[..., Any]) -> Any:
        if self.task.opinionated:
            self.open()
        value = body(self.task, *self.args, **self.kwargs)
        return wait_for(self._on_loop(value), self._struck) if type(value) is CoroutineType else value

    async def _on_loop(self, body: Coroutine[Any, Any, Any]) -> Any:
        if self.attempt is not None:
            self.attempt.begin_here()
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
        if self.direct or self.eager:
            settings = task.durable_settings
            task_id = self.request.id if self.eager and not self.direct else str(uuid4())
            journal: Journal = _eager_journals.setdefault(task_id, MemoryJournal()) if self.eager else MemoryJournal()
            delivery = Delivery(task_id, task.name, "", "{}")
        else:
            store = store_of(task.app)
            settings = task.durable_settings
            task_id = self.request.id
            journal = store.journal(task_id)
            delivery = message.delivery_of(task, self.request, self.args, self.kwargs)
        self._journal = journal
        self.request.__dict__[_OPENED] = self
        opened = self._open(journal, delivery)
        terms = Terms(
            inline_retry_limit=settings.inline_retry_limit,
            max_entry_size=settings.max_entry_size,
            serializer=settings.serializer,
            accept=frozenset(task.app.conf.accept_content),
        )
        about = Surroundings(task_id, task.name, self.request, direct=self.direct, eager=self.eager)
        attempt = Attempt(journal, opened, about, terms)
        object.__setattr__(about, "logger", _logger_of(attempt))
        if isinstance(journal, RedisJournal):
            store.leases.hold(journal)
            self._check_recoveries(attempt, settings.max_recoveries)
        return attempt

    def _open(self, journal: Journal, delivery: Delivery) -> Opened:
        while True:
            try:
                verdict = journal.open(delivery)
            except JournalUnavailableError as error:
                raise JournalLost(error) from error
            match verdict:
                case Opened():
                    return verdict
                case Busy(wait=wait) if wait <= _WAIT_HERE:
                    time.sleep(wait)
                case _:
                    raise NotNow(verdict)

    def _check_recoveries(self, attempt: Attempt, limit: int) -> None:
        if attempt.recoveries > limit:
            self.attempt = attempt
            raise attempt.end_run(
                RecoveryLimitExceeded(
                    f"task {attempt.about.task_id}: {attempt.recoveries} attempts in a row died without recording a step "
                    f"(max_recoveries={limit}); the journal is kept: look at why the worker dies, then retry the task"
                )
            )

    # -- a good end

    def _succeed(self, value: Any) -> Any:
        attempt = self.attempt
        assert attempt is not None and self._journal is not None  # noqa: S101
        if attempt.interrupt is not None:
            # Swallowed by a bare ``except``; what the body returned after that means nothing.
            raise attempt.interrupt
        if self.direct:
            return value
        attempt.check_nothing_left()
        if self.task.opinionated and hasattr(value, "model_dump"):
            value = value.model_dump(mode="json")
        text = outcome.of_value(value, self.task.app.conf.result_serializer)
        self._finish("succeeded", text)
        return value

    def _finish(self, status: str, text: str | None) -> None:
        attempt, settings = self.attempt, self.task.durable_settings
        assert attempt is not None  # noqa: S101
        keep = settings.retention if status == "succeeded" else settings.failure_retention
        words = attempt.last_words()
        if text is not None:
            words["outcome"] = text
        try:
            attempt.journal.finish(status, keep, words)
        except JournalUnavailableError as error:
            raise attempt.lost(error) from error
        except Fenced as fenced:
            raise attempt.stop(fenced) from None
        self._close(keep > 0)
        if self.eager:
            _eager_journals.pop(attempt.about.task_id, None)

    def _close(self, deliver_and_keep: bool | None) -> None:
        """The attempt is over; what is left is to say that its outcome was delivered (None: it has none)."""
        self._ended = True
        self._to_deliver = deliver_and_keep is not None
        self._keep = bool(deliver_and_keep)
        if self.attempt is not None:
            self.attempt.closed = True
        if isinstance(self._journal, RedisJournal):
            store_of(self.task.app).leases.release(self._journal)

    # -- every other end

    def _end(self, error: BaseException) -> Any:
        """Turn what ended the body into what Celery is to do."""
        if self.attempt is not None and self.attempt.interrupt is not None:
            error = self.attempt.interrupt
        try:
            return self._settle(error)
        except Interrupt as late:
            # The ending itself could not be journaled.
            return self._settle(late)

    def _settle(self, error: BaseException) -> Any:
        match error:
            case NotNow(verdict=verdict):
                return self._not_now(verdict)
            case RetryStep():
                raise self._retry(error.error, error.delay, {})
            case FailAttempt():
                return self._failed_attempt(error.error)
            case EndRun():
                raise self._fail(error.error)
            case JournalLost():
                raise self._lost(error.error)
            case Fenced():
                self._close(None)
                logger.warning("task %s: another attempt has taken over, this one ends", self.request.id)
                raise Ignore("another attempt has taken over")
            case Retry():
                if not self._ended and self.attempt is not None and not self.direct:
                    self._suspend(0.0, {})
                raise error
            case Ignore():
                self._end_silently("ignored")
                raise error
            case Reject():
                if error.requeue:
                    self._suspend(0.0, {})
                    raise error
                raise self._fail(error)
            case Exception():
                return self._failed_attempt(error)
        # KeyboardInterrupt, SystemExit, ...: the process is going down, and the lease with it.
        self._close(None)
        raise error

    def _failed_attempt(self, error: BaseException) -> Any:
        """An exception of the body, or of a step without retry options."""
        if self.direct or self.attempt is None and not self.task.opinionated:
            raise error
        final = isinstance(error, DurableError) and not isinstance(error, RetryableError)
        if isinstance(error, TerminalError) and self.attempt is not None:
            self.attempt.check_nothing_left()
        if self.task.opinionated and not self.began:
            raise self._fail(_misfit(error))
        if final or self.attempt is None:
            raise self._fail(error)
        if not self.task.opinionated:
            return self._as_celery_decides(error)
        rules = self.task.retry_rules
        failures = self.attempt.failures_now(resets_on_progress=rules.resets_on_progress)
        since = self.attempt.failing_since(failures)
        delay = rules.next(failures, (self.attempt.now() - since) / 1000, error)
        if delay is None:
            logger.error("task %s: attempt %d failed for good: %r", self.request.id, failures, error)
            raise self._fail(error)
        logger.warning(
            "task %s: attempt %d of %s failed: %r; next try in %g s",
            self.request.id, failures, rules.backoff.max_attempts or "any number", error, delay,
        )  # fmt: skip
        raise self._retry(error, delay, {"failures": str(failures), "failing_since": str(since)})

    def _as_celery_decides(self, error: BaseException) -> Any:
        """Plain Celery's rules: ``autoretry_for``, or FAILURE."""
        if not isinstance(error, tuple(self.task.autoretry_for or ())):
            raise self._fail(error)
        # Celery's autoretry wraps us: it calls retry(), or it gives up (see :meth:`after`).
        raise error

    def _fail(self, error: BaseException) -> BaseException:
        """End the run as failed; what to raise."""
        error = portable(error)
        if self.attempt is not None and not self.direct and not self._ended:
            self._finish("failed", outcome.of_error(error))
        return error

    def _end_silently(self, status: str) -> None:
        if self.attempt is not None and not self.direct and not self._ended:
            self._finish(status, None)

    def _suspend(self, delay: float, fields: dict[str, str]) -> None:
        attempt = self.attempt
        if attempt is None or self.direct or self._ended:
            return
        try:
            attempt.journal.suspend(delay, {**attempt.last_words(), **fields})
        except JournalUnavailableError as error:
            raise attempt.lost(error) from error
        except Fenced as fenced:
            raise attempt.stop(fenced) from None
        self._close(None)

    def _retry(self, error: BaseException, delay: float, fields: dict[str, str]) -> BaseException:
        """Suspend the run, publish a Celery retry, and give the exception that shows it as RETRY."""
        delay = 0.0 if self.eager else message.sendable_delay(self.task.app, delay)
        self._suspend(delay, fields)
        return self._publish(error, delay)

    def _lost(self, error: DurableError) -> BaseException:
        self._close(None)
        logger.error("task %s: %s; the task is retried in %g s", self.request.id, error, JOURNAL_LOST_DELAY)
        return self._publish(error, JOURNAL_LOST_DELAY)

    def _publish(self, error: BaseException, delay: float) -> BaseException:
        if self.eager:
            signature = message.eager_signature(self.task, self.request)
        else:
            signature = message.send_retry(self.task, self.request, delay)
        retry = Retry(exc=error, when=delay, is_eager=self.eager, sig=signature)
        retry.__cause__ = error
        return retry

    # -- deliveries that do not begin an attempt

    def _not_now(self, verdict: Verdict) -> Any:
        match verdict:
            case Busy(wait=wait, reason=reason):
                logger.info("task %s: %s; looking again in %g s", self.request.id, reason, wait)
                message.send_hint(self.task, self.request, wait)
                raise Ignore(reason)
            case Foreign(task=task):
                logger.error(
                    "task %s refused: the id belongs to a run of %s%s; send it under a new task_id",
                    self.request.id, task, " with other arguments" if task == self.task.name else "",
                )  # fmt: skip
                raise Ignore("the id belongs to another run")
            case Finished(fields=fields):
                return self._deliver_again(outcome.read(fields))
        raise AssertionError(verdict)  # pragma: no cover

    def _deliver_again(self, ended: outcome.Outcome) -> Any:
        """A run that has finished: its recorded outcome, and what hangs on it only if that was not sent yet."""
        if ended.status == "ignored":
            raise Ignore("the run was ended by Ignore")
        if not ended.delivered:
            settings = self.task.durable_settings
            self._close((settings.retention if ended.error is None else settings.failure_retention) > 0)
            if ended.error is not None:
                raise ended.error
            return ended.value
        level = logging.INFO if message.header_of(self.request).get("hint") else logging.WARNING
        logger.log(
            level, "task %s already finished at %s; use a new task_id to run again",
            self.request.id, ended.ended.isoformat(timespec="seconds"),
        )  # fmt: skip
        if not get_actual_ignore_result(self.task, self.request):
            result, state = (ended.value, states.SUCCESS) if ended.error is None else (ended.error, states.FAILURE)
            self.task.backend.store_result(
                self.request.id, result, state, traceback=ended.traceback or None, request=self.request
            )
        raise Ignore("already finished")

    # -- after Celery has stored the result

    def after(self, state: str | None, result: Any) -> None:
        """Celery is done with this execution: say so in the journal."""
        journal = self._journal
        if journal is None:
            return
        try:
            if not self._ended and state == states.FAILURE:
                # Celery's autoretry gave up on a task of the transparent kind.
                self._fail(result)
            if self._to_deliver and state is not None:
                journal.deliver(keep=self._keep)
        except (JournalUnavailableError, Interrupt) as error:
            logger.error("task %s: its end could not be journaled: %r", self.request.id, error)
        finally:
            if not self._ended:
                self._close(None)
            journal.close()

    # -- the user's own retry

    def before_user_retry(
        self, delay: float, args: Any, kwargs: Any, limit: int | None
    ) -> None:
        """``self.retry()`` is about to publish: the journal says first when the run is to go on."""
        within = limit is None or self.request.retries + 1 <= limit
        if not within or self.attempt is None or self._ended:
            return
        fields = {}
        if args is not None or kwargs is not None:
            args = self.args if args is None else tuple(args)
            kwargs = self.kwargs if kwargs is None else dict(kwargs)
            fields["fingerprint"] = message.fingerprint(args, kwargs)
            fields["call"] = message.saved_call(self.task, self.request, args, kwargs)
        self._suspend(delay, fields)


def _misfit(error: Exception) -> Exception:
    """Arguments that do not fit the task, as an error that a caller in another process can read."""
    if type(error).__name__ != "ValidationError":
        return error
    refused = TerminalError(str(error), 400)
    refused.error_type = "ValidationError"
    refused.__cause__ = error
    return refused


class _ReplayFilter(logging.Filter):
    def __init__(self, attempt: Attempt) -> None:
        super().__init__()
        self._attempt = attempt

    def filter(self, record: logging.LogRecord) -> bool:
        return not self._attempt.is_replaying


def _logger_of(attempt: Attempt) -> logging.Logger:
    """A logger of this attempt alone (not kept by the logging module), silent about what was logged before."""
    parent = get_task_logger(attempt.about.task)
    own = logging.Logger(parent.name)
    own.parent = parent
    own.addFilter(_ReplayFilter(attempt))
    return own


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
