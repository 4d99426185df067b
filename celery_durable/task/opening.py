"""Opens the run of a task when its durable context is first used."""

from __future__ import annotations

import logging
from functools import cache
from math import inf
from uuid import uuid4

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

from celery_durable import django, meter
from celery_durable.app.store import store_of
from celery_durable.delivery import backend, call, message
from celery_durable.drivers.info import TaskInfo
from celery_durable.drivers.interruption import Target, current_target
from celery_durable.drivers.watchdog import Watch, watchdog
from celery_durable.ending.orphan import OrphanedAttempt
from celery_durable.exceptions import RecoveryLimitExceeded
from celery_durable.interrupts import Interrupt
from celery_durable.invocation import eager_journals, span
from celery_durable.invocation.current import keep_opened, opened_by
from celery_durable.invocation.invocation import Invocation, Mode
from celery_durable.invocation.session import RunSession
from celery_durable.journal.memory import MemoryJournal
from celery_durable.journal.port import Delivery
from celery_durable.steps.attempt import Attempt
from celery_durable.steps.context import AsyncDurableContext, DurableContext

logger = logging.getLogger("celery_durable")

# Celery looks a logger up each time that it is asked for it.
_task_logger = cache(get_task_logger)


def open_context(invocation: Invocation) -> DurableContext | AsyncDurableContext:
    """The durable context of this call of a body. The first use opens the run.

    Raises:
        Interrupt: the run cannot be opened, now or ever.
    """
    if invocation.refused is not None:
        raise invocation.refused
    if invocation.context is None:
        try:
            attempt = _begin(invocation)
        except Interrupt as refused:
            invocation.refused = refused
            raise
        make = AsyncDurableContext if invocation.task.is_async else DurableContext
        invocation.context = make(attempt)
    return invocation.context


def _begin(invocation: Invocation) -> Attempt:
    task, mode, request = invocation.task, invocation.mode, invocation.request
    meter.measure_if_loaded()
    span.begin(invocation)
    session, delivery = _in_redis(invocation) if mode is Mode.WORKER else _in_memory(invocation)
    session.delivery = delivery
    info = TaskInfo(
        delivery.task_id, task.name, request, _task_logger(task.name),
        direct=mode is Mode.DIRECT, eager=invocation.eager,
        control_flow=(Retry, Ignore, Reject), limits=(SoftTimeLimitExceeded,),
        # In a worker, Celery calls the body outside of any atomic block. So every block was entered by the task.
        atomic_blocks={} if mode is Mode.WORKER else django.atomic_blocks(),
    )  # fmt: skip
    if mode is not Mode.DIRECT or opened_by(request) is None:
        # A task that calls its own run() has one request for both calls. It belongs to the run.
        keep_opened(invocation)
    backend.opened_run.set(delivery.task_id)
    attempt = session.open(delivery, info, task.durable_attempt_settings)
    state = attempt.state
    if invocation.span is not None:
        span.opened(invocation.span, attempt)
    if state.resume:
        message.apply_newest(request, state.resume)
    if mode is Mode.WORKER and state.seed != delivery.seed:
        message.set_seed(request, state.seed)
    if state.reopened:
        logger.info("task %s: the failed run is reopened, with fresh budgets", delivery.task_id)
    attempt.check_whole()
    if state.recoveries > session.settings.max_recoveries:
        raise _died_too_often(attempt, session.settings.max_recoveries)
    invocation.arguments.begin(attempt)
    if not task.is_async:
        watch(invocation, attempt, current_target())
    return attempt


def watch(invocation: Invocation, attempt: Attempt, target: Target | None) -> None:
    """Let the watchdog check the attempt, whose code runs at *target*."""
    inactivity, abort = attempt.settings.inactivity_timeout, attempt.settings.abort_timeout
    if invocation.mode is not Mode.WORKER:
        inactivity = abort = inf
    elif any(invocation.request.timelimit or ()) and invocation.task.abort_timeout is None:
        abort = inf
    assert invocation.session is not None  # noqa: S101
    orphan = OrphanedAttempt(invocation, invocation.session)
    watchdog.watch(Watch(attempt.pulse, orphan, target, inactivity, abort))


def _in_redis(invocation: Invocation) -> tuple[RunSession, Delivery]:
    task, request, settings = invocation.task, invocation.request, invocation.task.durable_settings
    store = store_of(task.app)
    journal, lease = store.journal_for(request.id, settings)
    # If a time limit ends what follows, this session tells that it has ended an opening, and not the task.
    invocation.session = session = RunSession(journal, settings, lease, store)
    # If the body opens the run late, it may have changed its arguments in place before.
    sent = (request.properties or {}).get(message.ARGUMENTS) or (invocation.args, invocation.kwargs)
    return session, call.delivery_of(task, request, *sent)


def _in_memory(invocation: Invocation) -> tuple[RunSession, Delivery]:
    task, direct = invocation.task, invocation.direct
    task_id = str(uuid4()) if direct else invocation.request.id
    journal = MemoryJournal() if direct else eager_journals.journal_of(task_id)
    invocation.session = session = RunSession(journal, task.durable_settings)
    return session, Delivery(task_id, task.name, "", "{}", build=task.durable_attempt_settings.build)


def _died_too_often(attempt: Attempt, limit: int) -> Interrupt:
    return attempt.pulse.end_run(
        RecoveryLimitExceeded(
            f"task {attempt.info.task_id}: {attempt.state.recoveries} attempts in a row died without recording "
            f"a step (max_recoveries={limit}); the journal is kept: look at why the worker dies, then "
            f"retry the task"
        )
    )
