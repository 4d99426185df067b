"""The check at the start of a worker with durable tasks: each risk that it finds is one line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import signals

from celery_durable.app.settings import visibility_timeout
from celery_durable.exceptions import ConfigurationError, JournalUnavailableError
from celery_durable.task.base import DurableTask
from celery_durable.task.of_app import durable_tasks

if TYPE_CHECKING:
    from celery_durable.app.address import Address
    from celery_durable.app.store import Store
    from celery_durable.redis.server import Server

logger = logging.getLogger("celery_durable")

OLDEST_REDIS = (6, 2)
_FOR_BODIES = (
    "celery_durable.task.runner",
    "celery_durable.task.user_retry",
    "celery_durable.operate.runs",
    "celery_durable.ending.postrun",
)
"""What runs the bodies of tasks. Processes that only send tasks do without it."""
_LONGEST_CHECK = 1.0
"""Seconds that the check may take: a worker must start even if its Redis does not answer."""


@signals.celeryd_after_setup.connect(weak=False, dispatch_uid="celery_durable")
def _check(instance: Any = None, **_: Any) -> None:
    tasks = list(durable_tasks(instance.app).values())
    if tasks:
        # Before the pool forks its processes, and before a time limit of a task could interrupt an import.
        for module in _FOR_BODIES:
            import_module(module)
        if getattr(instance, "task_events", False):
            # The worker was started with -E. The processes of its pool see only the configuration.
            instance.app.conf.worker_send_task_events = True
            import_module("celery_durable.worker.events").send_events(instance.app, instance.hostname)
        for risk in risks_of(instance.app, tasks):
            logger.log(risk.level, "celery-durable: %s", risk.text)


class Risk(NamedTuple):
    """One line of the log."""

    text: str
    level: int = logging.WARNING
    """INFO if the configuration accepts the risk on purpose."""


def risks_of(app: Any, tasks: list[DurableTask[Any, Any]]) -> Iterator[Risk]:
    """What may lose the journal of a durable task, or run the task twice."""
    from celery_durable.app.store import store_of
    from celery_durable.redis.client.errors import Refused

    try:
        store = store_of(app)
    except ConfigurationError as error:
        yield Risk(f"{error}; durable tasks will fail until this is mended")
        return
    sound, wrong = _split_by_options(tasks)
    for text, names in wrong.items():
        yield Risk(f"{text}; {', '.join(names)} will fail until this is mended")
    try:
        yield from _risks_of_servers(store, {task.durable_settings.journal_sync for task in sound})
    except Refused as error:
        yield Risk(f"{error}; whether the server may lose journals cannot be checked")
    except JournalUnavailableError as error:
        yield Risk(f"{error}; durable tasks wait until it is back")
    yield from _risks_of_time_limits(app, tasks)


def _split_by_options(tasks: list[DurableTask[Any, Any]]) -> tuple[list[DurableTask[Any, Any]], dict[str, list[str]]]:
    """The tasks whose options are right; and for the others: what is wrong → the names of the tasks."""
    sound = []
    wrong: dict[str, list[str]] = {}
    for task in tasks:
        try:
            task.durable_attempt_settings.check()
            sound.append(task)
        except ConfigurationError as error:
            wrong.setdefault(str(error), []).append(task.name)
    return sound, wrong


def _risks_of_servers(store: Store, syncs: set[str]) -> Iterator[Risk]:
    from celery_durable.redis.server import server_of

    give_up_at = time.monotonic() + _LONGEST_CHECK
    for pool in store.masters():
        server = server_of(pool, timeout=max(0.0, give_up_at - time.monotonic()))
        for text, level in _risks_of_server(server, store.address, syncs):
            yield Risk(f"{store.address}: {text}", level)


def _risks_of_server(server: Server, address: Address, syncs: set[str]) -> Iterator[Risk]:
    if server.version < OLDEST_REDIS:
        yield Risk(f"{server.name} is older than {'.'.join(map(str, OLDEST_REDIS))}: upgrade it")
    if server.is_cluster_node and not address.is_cluster:
        yield Risk("this is a node of a Redis Cluster: begin its URL with redis+cluster://")
    if server.eviction:
        yield Risk(f"maxmemory-policy {server.eviction} may drop journals when memory is full: use noeviction")
    yield from _risks_of_a_crash(server, syncs)
    yield from _risks_of_a_failover(server, address, syncs)


def _risks_of_a_crash(server: Server, syncs: set[str]) -> Iterator[Risk]:
    from celery_durable.redis.confirmation import why_not_on_disk

    if "disk" in syncs and (reason := why_not_on_disk(server)):
        yield Risk(f'durable_journal_sync="disk" cannot be kept: {reason}; tasks that ask for it will fail')
    elif server.has_append_only_file is False:
        yield Risk(
            "no append-only file: a restart loses the journals written since the last snapshot; set appendonly yes"
        )
    elif server.has_append_only_file and server.fsync != "always" and syncs != {"disk"}:
        lost = {"everysec": "about a second", "no": "half a minute"}.get(server.fsync or "", "an unknown part")
        yield Risk(
            f"appendfsync {server.fsync or '(not known)'}: if the machine dies, {lost} of acknowledged steps may be "
            f"lost, and run again",
            logging.INFO,
        )


def _risks_of_a_failover(server: Server, address: Address, syncs: set[str]) -> Iterator[Risk]:
    if server.replicas and syncs - {"replicas"}:
        yield Risk(
            'a failover may lose acknowledged steps, which then run again: durable_journal_sync="replicas" waits '
            "for a replica",
            logging.INFO,
        )
    if not server.replicas and "replicas" in syncs:
        yield Risk('no replica is connected: with durable_journal_sync="replicas" no step can be recorded')
    elif not server.replicas and (address.is_sentinel or address.is_cluster):
        yield Risk("no replica is connected: if this server dies, its runs wait until it is back")


def _risks_of_time_limits(app: Any, tasks: list[DurableTask[Any, Any]]) -> Iterator[Risk]:
    visibility = visibility_timeout(app)
    if not str(app.conf.broker_url or "").startswith(("redis", "sentinel", "sqs", "valkey")):
        return
    for task in tasks:
        limit = task.time_limit or task.soft_time_limit or 0
        if limit > visibility:
            yield Risk(
                f"visibility_timeout={visibility} is shorter than the time limit of {task.name} ({limit} s): "
                f"its messages are delivered again while it runs; raise broker_transport_options"
            )
