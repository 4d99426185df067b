"""What a worker with durable tasks checks when it starts: each risk it finds is one line in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from celery import signals

from .exceptions import ConfigurationError, JournalUnavailableError
from .task import DurableTask

if TYPE_CHECKING:
    from .store import Store

logger = logging.getLogger("celery_durable")

OLDEST_REDIS = (6, 2)


@signals.celeryd_after_setup.connect(weak=False, dispatch_uid="celery_durable")
def _check(instance: Any = None, **_: Any) -> None:
    tasks = [task for task in instance.app.tasks.values() if isinstance(task, DurableTask)]
    if tasks:
        if getattr(instance, "task_events", False):
            # Asked for by an option of the worker, which the processes of its pool do not see.
            instance.app.conf.worker_send_task_events = True
        for risk in risks_of(instance.app, tasks):
            logger.warning("celery-durable: %s", risk)


def risks_of(app: Any, tasks: list[DurableTask[Any, Any]]) -> Iterator[str]:
    """What may cost a durable task its journal, or run it twice."""
    from redis.exceptions import ResponseError

    from .store import store_of, without_password

    try:
        store = store_of(app)
        server = _server_facts(store)
    except ConfigurationError as error:
        yield f"{error}; durable tasks will fail until this is mended"
        return
    except JournalUnavailableError as error:
        if isinstance(error.__cause__, ResponseError):
            yield f"{error}; whether the server may lose journals cannot be checked"
        else:
            yield f"{error}; durable tasks wait until it is back"
    else:
        where = without_password(store.url)
        yield from (f"{where}: {risk}" for risk in _risks_of_server(server))
    yield from _risks_of_time_limits(app, tasks)


def _risks_of_server(facts: Mapping[str, str]) -> Iterator[str]:
    version = facts.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        yield f"Redis {version} is older than {'.'.join(map(str, OLDEST_REDIS))}: upgrade it"
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and facts.get("maxmemory", "0") != "0":
        yield f"maxmemory-policy {policy} may drop journals when memory is full: use noeviction"
    if facts.get("aof_enabled") == "0":
        yield "no append-only file: a restart loses the journals written since the last snapshot; set appendonly yes"


def _risks_of_time_limits(app: Any, tasks: list[DurableTask[Any, Any]]) -> Iterator[str]:
    visibility = (app.conf.broker_transport_options or {}).get("visibility_timeout", 3600)
    if not str(app.conf.broker_url or "").startswith(("redis", "sentinel", "sqs", "valkey")):
        return
    for task in tasks:
        limit = task.time_limit or task.soft_time_limit or 0
        if limit > visibility:
            yield (
                f"visibility_timeout={visibility} is shorter than the time limit of {task.name} ({limit} s): "
                f"its messages are delivered again while it runs; raise broker_transport_options"
            )


def _server_facts(store: Store) -> dict[str, str]:
    from .wire import pack

    wire = store.wires.take()
    try:
        wire.send(pack("INFO"))
        [text] = wire.replies(patience=1.0)  # a worker is to start without its journal, too
    finally:
        store.wires.give_back(wire)
    lines = (line.partition(":") for line in text.decode().splitlines())
    return {name: value for name, _, value in lines if value}
