"""One call of a task's body under Celery: open the run, let the body work, and turn its end into what Celery expects.

The heart of the seam to Celery; the first block of docs/design.md names what belongs to it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import cache, partial
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import states
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

from celery_durable import django
from celery_durable.delivery import call, message, outcome, report
from celery_durable.delivery.announcement import Announcement
from celery_durable.drivers import upkeep
from celery_durable.drivers.driver import in_coroutine, wait_apart, wait_for
from celery_durable.drivers.progress import Watch, watcher
from celery_durable.drivers.strike import AsyncBody, Place, door, here
from celery_durable.drivers.threads import actions
from celery_durable.exceptions import DurableError, EntryNotRecordableError, RecoveryLimitExceeded
from celery_durable.interrupts import Fenced, Interrupt, JournalLost
from celery_durable.journal.memory import MemoryJournal
from celery_durable.journal.port import NO_RESULT, Delivery
from celery_durable.seams.celery import ignores_result
from celery_durable.steps.attempt import Attempt, Surroundings, running_step
from celery_durable.steps.context import AsyncDurableContext, DurableContext

from .abandonment import Abandonment
from .arguments import Arguments
from .current import OPENED, current
from .ending import Ending
from .hold import Hold

if TYPE_CHECKING:
    from celery_durable.app.store import Store

    from .task import DurableTask

logger = logging.getLogger("celery_durable")

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
        self.delivery: Delivery | None = None
        self._refused: Interrupt | None = None
        self._store: Store | None = None
        """Where the run is kept; None of one in memory."""
        self.said: Retry | None = None
        """What ``self.retry()`` raised: it is sent, whatever user code makes of the exception."""
        self.retry_changes: Mapping[str, str] = {}
        """What the journal is to know of a retry that ``self.retry()`` has sent."""
        self.sent_for: float | None = None
        """When the retry is due, by the monotonic clock, that ``self.retry(throw=False)`` has sent."""
        self.gave_up: BaseException | None = None
        """What ``self.retry()`` raised because its limit is spent: no policy retries that."""
        self.decided: BaseException | None = None
        """What Celery is to handle as it is: no autoretry of Celery's changes it."""
        self.undecided = False
        """Celery's autoretry is to decide."""
        self._awaited = False
        self.began_amid = sys.exc_info()[1]
        """An exception that passed before: the pool forks a process while it handles the end of another, say."""
        self.arguments = Arguments()
        self.began = False
        """Whether the arguments fitted and the function was entered."""
        self.outer = outer = current.get()
        """That of the task which has called this one as a function."""
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
    def interrupt(self) -> Interrupt | None:
        """What ended the attempt, even if user code has swallowed it."""
        return self._refused or (self.attempt.interrupt if self.attempt is not None else None)

    # -- the main path

    def run(self, body: Callable[..., Any]) -> Any:
        """Call the body; return its result to Celery, or raise what tells Celery how to go on."""
        token = current.set(self)
        if not self.direct:
            report.spared.set(None)
            report.announced.set(None)
        # An eager task is sent, not called, though it runs here and now: the step that sent it is not its own.
        sender = running_step.set(None) if self.eager and not self.direct else None
        try:
            return self._run(body)
        finally:
            current.reset(token)
            if sender is not None:
                running_step.reset(sender)
            if not self._awaited:
                self._let_go_if_direct()

    def _run(self, body: Callable[..., Any]) -> Any:
        try:
            value = self._call(body)
            return value if self.hold is None else self._succeed(self.hold, value)
        except BaseException as error:
            if self.hold is None:
                raise  # as in plain Celery: nothing here is ours
            ended = error
        # When it is handled no more: what is raised now is not to have it as its context.
        try:
            return Ending(self).settle(ended)
        finally:
            del ended  # which has this frame, and this it: none of the attempt is to wait for the garbage collector

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
        if in_coroutine():
            if self.direct:
                # Called as a function by a coroutine, which awaits it.
                self._awaited = True
                return self._awaitable(value)
            return wait_apart(self._on_loop(value))
        return wait_for(self._on_loop(value), self._struck, lends=self.direct or self.eager)

    def _has_begun(self) -> bool:
        """Whether an earlier attempt has opened the run, so that this one cannot end without it, either."""
        request = self.request
        if self.direct or self.eager:
            return not self.direct and request.id in _eager_journals
        if message.header_of(request):
            return True
        redelivered = bool((request.delivery_info or {}).get("redelivered"))
        return redelivered and has_journal(self.task, request.id)

    async def _awaitable(self, body: Coroutine[Any, Any, Any]) -> Any:
        token = current.set(self)
        try:
            try:
                return await self._on_loop(body)
            except BaseException as error:
                if self.hold is None:
                    raise
                ended = error
            return Ending(self).settle(ended)
        finally:
            current.reset(token)
            self._let_go_if_direct()

    async def _on_loop(self, body: Coroutine[Any, Any, Any]) -> Any:
        if self.attempt is not None:
            self.attempt.begin_here()
            self._watch(self.attempt, AsyncBody())
        try:
            with upkeep.OfBody(self.attempt):
                return await body
        except BaseException:
            if self.attempt is not None:
                actions.withdraw(self.attempt)
            raise
        finally:
            if self.attempt is not None:
                await self.attempt.siblings.landed()

    def _struck(self, by: BaseException) -> None:
        if self.attempt is not None:
            self.attempt.struck_by = by

    # -- the beginning

    def _begin(self) -> Attempt:
        task = self.task
        self.delivery = delivery = self._in_memory() if self.direct or self.eager else self._in_redis()
        assert self.hold is not None  # noqa: S101
        log = _task_logger(task.name)
        # Celery's own thread is in none: what a worker's task is in, it has entered.
        entered_before = django.atomic_blocks() if self.direct or self.eager else {}
        about = Surroundings(
            delivery.task_id, task.name, self.request, log,
            direct=self.direct, eager=self.eager, verdicts=(Retry, Ignore, Reject),
            limits=(SoftTimeLimitExceeded,), atomic_blocks=entered_before,
        )  # fmt: skip
        self.request.__dict__[OPENED] = self
        report.begun.set(delivery.task_id)
        attempt = self.hold.open(delivery, about, task.durable_terms)
        message.catch_up(self.request, attempt.resume)
        if self._store is not None:
            message.carry_seed(self.request, attempt.seed)
        if attempt.reopened:
            logger.info("task %s: the failed run is reopened, with fresh budgets", delivery.task_id)
        attempt.check_whole()
        self._check_recoveries(attempt, self.hold.settings.max_recoveries)
        self.arguments.begin(attempt)
        if not task.is_async:
            self._watch(attempt, here())
        return attempt

    def _watch(self, attempt: Attempt, place: Place | None) -> None:
        inactivity, abort = attempt.terms.inactivity_timeout, attempt.terms.abort_timeout
        if self.direct or self.eager:
            inactivity = abort = inf
        elif any(self.request.timelimit or ()) and self.task.abort_timeout is None:
            abort = inf
        watcher.watch(Watch(attempt, Abandonment(self), place, inactivity, abort))

    def _in_redis(self) -> Delivery:
        from celery_durable.app.store import store_of  # a process that only sends tasks does without it

        self._store = store = store_of(self.task.app)
        self.hold = store.hold(self.request.id, self.task.durable_settings)
        return call.delivery_of(self.task, self.request, *self._sent_arguments())

    def _sent_arguments(self) -> tuple[Any, Any]:
        """The arguments as they were sent: a body that opens the run late may have changed its own in place."""
        return (self.request.properties or {}).get(message.ARGUMENTS) or (self.args, self.kwargs)

    def _in_memory(self) -> Delivery:
        task_id = str(uuid4()) if self.direct else self.request.id
        journal = MemoryJournal()
        if not self.direct:
            journal = _eager_journals.setdefault(task_id, journal)
        self.hold = Hold(journal, self.task.durable_settings)
        return Delivery(task_id, self.task.name, "", "{}", build=self.task.durable_terms.build)

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
        if self.interrupt is not None:
            # Swallowed by a bare ``except``; what the body returned after that means nothing.
            raise self.interrupt
        if self.said is not None:
            raise self.said
        if self.direct or attempt is None:
            return value
        attempt.check_all_awaited()
        if self.sent_for is None:
            attempt.check_nothing_left()
        if self.task.opinionated and hasattr(value, "model_dump"):
            value = value.model_dump(mode="json")
        if self.sent_for is not None:
            self.await_retry(hold, self.sent_for)
            return value
        result = self._store.result_of(self.task, self.request, value) if self._store and hold.can_deliver else None
        if hold.finish("succeeded", self._recordable(attempt, value), result) and result is not NO_RESULT:
            report.spared.set(self.request.id)
        self.forget_eager()
        return value

    def _recordable(self, attempt: Attempt, value: Any) -> str:
        """The result as text; where it goes nowhere, none is needed."""
        try:
            return outcome.of_value(value, attempt.terms.result_serializer)
        except Exception as error:
            request = self.request
            wanted = request.callbacks or request.chain or request.chord
            if ignores_result(self.task, request) and not wanted:
                return outcome.of_value(None, "json")
            raise attempt.end_run(
                EntryNotRecordableError(
                    f"task {attempt.about.task_id} returned a {type(value).__name__}, which Celery's result serializer "
                    f"{attempt.terms.result_serializer!r} does not take: {error}"
                )
            ) from error

    def forget_eager(self) -> None:
        """An eager run has ended: its journal is not needed any more."""
        if self.eager:
            _eager_journals.pop(self.request.id, None)

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
                Ending(self).fail(result)
            elif state == states.SUCCESS and self.hold.lacks_success:
                self._succeed_after_all(self.hold, result)
            elif isinstance(result, Announcement):
                result.call_hooks(self.task, self.request)
        except Interrupt as error:
            logger.error("task %s: its end could not be journaled: %s", self.request.id, error)
        finally:
            self._note_delivery(self.hold, state, result, delivered=delivered)
            self.hold.close()
            # They hold each other: unless they are parted, all of the run waits for the garbage collector.
            self.request.__dict__.pop(OPENED, None)
            # Celery says no state where it lets the exception propagate (``task_eager_propagates``).
            if not (state == states.RETRY or isinstance(sys.exc_info()[1], Retry)):
                self.forget_eager()

    def _succeed_after_all(self, hold: Hold, value: Any) -> None:
        """A ``__call__`` of the user's, which is around the body, has made a result of its exception."""
        assert hold.attempt is not None  # noqa: S101
        hold.ended = False
        hold.finish("succeeded", self._recordable(hold.attempt, value))

    @staticmethod
    def _note_delivery(hold: Hold, state: str | None, result: Any, *, delivered: bool) -> None:
        # RETRY after an outcome: a time limit struck in between, and Celery has stored nothing of it.
        if not delivered or state in (None, states.RETRY):
            hold.not_delivered()
        elif hold.contradicts(state):
            if isinstance(result, message.BROKER_AWAY):
                hold.not_delivered()
            else:
                hold.never_delivered()

    def await_retry(self, hold: Hold, due: float) -> None:
        """Suspend the run until the retry comes that was sent before the end of the body."""
        wait = max(0.0, due - time.monotonic())
        # What came while the run was live has been forgotten: a worker is to send it again at once.
        hold.suspend(wait, self.retry_changes, slack=hold.settings.lease if wait else 0.0)

    # -- another message of this run

    def restore_arguments(self) -> None:
        """Let the request have the arguments that the run was opened with: what is sent again is made of them.

        The body may have changed its own in place, and with those the run would not be known again.
        """
        if self.delivery is not None and not (self.direct or self.eager):
            opened_with = call.Call.load(self.delivery.call, self.task.durable_terms.accept)
            self.request.args, self.request.kwargs = opened_with.args, opened_with.kwargs

    def before_user_retry(
        self, delay: float, limit: int | None, changes: Mapping[str, str], error: BaseException | None
    ) -> bool:
        """``self.retry()`` is about to publish: the journal is told first when the run goes on, and what *changes*.

        Returns whether the journal carries the wait, so that nothing is to be published.
        """
        within = limit is None or self.request.retries + 1 <= limit
        if not within or self.hold is None or self.attempt is None:
            return False
        try:
            suspend = partial(self.hold.back_off, 0.0 if self.eager else delay, changes)
            return Ending(self).suspend_as_retried(error, suspend)
        except Fenced:
            raise Ignore("another attempt has taken over") from None
        except JournalLost as lost:
            # Celery's message carries the retry; the journal will see it when the lease has lapsed.
            logger.error("task %s: self.retry() could not be journaled: %s", self.request.id, lost)
            self.attempt.interrupt = None
            self.hold.let_go()
            return False


def is_eager_run(task_id: str) -> bool:
    """Whether a run in eager mode goes on."""
    return task_id in _eager_journals


def has_journal(task: DurableTask[Any, Any], task_id: str) -> bool:
    """Whether a run has begun, as far as can be known."""
    from celery_durable.app.store import store_of

    try:
        return store_of(task.app).runs.is_known(task_id)
    except DurableError:
        return False
