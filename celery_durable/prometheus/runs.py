"""How many runs there are, asked of Redis when somebody scrapes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily

from celery_durable.app.store import Store
from celery_durable.exceptions import DurableError
from celery_durable.forks import no_fork
from celery_durable.operate.states import STATES, by_state
from celery_durable.redis.client.pool import SHORT_TIMEOUT
from celery_durable.redis.index import Overdue
from celery_durable.task.apps import resolve_app

logger = logging.getLogger("celery_durable")

_REMINDER = 60.0
"""Seconds after which a failure that goes on is logged again."""

_registered: WeakKeyDictionary[CollectorRegistry, RunsCollector] = WeakKeyDictionary()


def register(registry: CollectorRegistry, app: Any) -> RunsCollector:
    """Let *registry* ask for the runs of *app*; None: of the app that :func:`resolve_app` finds at each scrape."""
    collector = _registered.get(registry)
    if collector is None:
        collector = _registered[registry] = RunsCollector(app)
        registry.register(collector)
    return collector


class RunsCollector:
    """Gauges of the runs of an app. Each scrape asks each Redis once, however many runs there are."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._stores: WeakKeyDictionary[Any, Store] = WeakKeyDictionary()
        self._failure_logged_at = -inf

    def describe(self) -> list[GaugeMetricFamily]:
        """The names, without a question to Redis: the registry asks for them when the collector is registered."""
        return [_up(), _runs(), _overdue(Overdue()), _oldest(Overdue())]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            with no_fork:
                counts, overdue = self._store().index.census()
        except DurableError as error:
            # What else is in the registry can be scraped all the same.
            self._log(error)
            yield _up(0.0)
            return
        self._failure_logged_at = -inf
        yield _up(1.0)
        yield _runs(counts)
        yield _overdue(overdue)
        yield _oldest(overdue)

    def _store(self) -> Store:
        """Its connections are its own: they give up sooner than those of the worker, because a scrape has to end."""
        app = self._app or resolve_app("celery_durable.prometheus")
        store = self._stores.get(app)
        if store is None:
            store = self._stores[app] = Store(app, SHORT_TIMEOUT)
        return store

    def _log(self, error: DurableError) -> None:
        now = time.monotonic()
        if now - self._failure_logged_at >= _REMINDER:
            self._failure_logged_at = now
            logger.warning("metrics of runs cannot be collected: %s", error)


def _up(value: float | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily("celery_durable_index_up", "1 if Redis has said how many runs there are, else 0.", value)


def _runs(counts: dict[tuple[str, str], int] | None = None) -> GaugeMetricFamily:
    """The number for each task and state, also if it is 0: a rule can compare it with what it was before."""
    runs = GaugeMetricFamily(
        "celery_durable_runs", "Runs that have a journal, by task and state.", labels=("task", "state")
    )
    numbers: dict[str, dict[str, int]] = {}
    for (state, task), number in by_state(counts or {}).items():
        numbers.setdefault(task, dict.fromkeys(STATES, 0))[state] = number
    for task, states in sorted(numbers.items()):
        for state, number in states.items():
            runs.add_metric((task, state), number)
    return runs


def _overdue(overdue: Overdue) -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "celery_durable_overdue_runs",
        "Runs that should go on, and that no worker has taken or sent again yet.",
        overdue.number,
    )


def _oldest(overdue: Overdue) -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "celery_durable_oldest_overdue_seconds", "For how long the oldest of these runs has waited.", overdue.seconds
    )
