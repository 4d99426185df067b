"""How many runs there are, asked of a real Redis at each scrape."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from celery import Celery
from celery.worker import state as worker_state
from prometheus_client import CollectorRegistry

from celery_durable import prometheus
from celery_durable.app.store import store_of
from celery_durable.journal.port import LONGEST_READ
from celery_durable.redis.client.pool import JournalConnectionPool
from celery_durable.worker.revocation import Revocations
from tests.integration.runs import app_at, decline, execute, new_id, task_of
from tests.planting import Garden
from tests.servers import RedisServer


def sells(self: Any) -> int:
    return int(self.ctx.run("charge", lambda: 1))


def sleeps(self: Any) -> None:
    self.ctx.sleep(timedelta(hours=1))


def waits_to_be_revoked(self: Any) -> None:
    self.ctx.sleep(timedelta(hours=1))


def fails(self: Any) -> None:
    self.ctx.run("charge", decline)


@pytest.fixture
def registry(app: Celery) -> CollectorRegistry:
    registry = CollectorRegistry()
    prometheus.install(registry, app=app)
    return registry


def gauges(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """(name, values of the labels) → value, of all gauges that are not 0."""
    return {
        (sample.name.removeprefix("celery_durable_"), *sample.labels.values()): sample.value
        for family in registry.collect()
        if family.type == "gauge"
        for sample in family.samples
        if sample.value
    }


def test_a_state_of_a_newer_version_is_counted(
    app: Celery, registry: CollectorRegistry, redis_client: redis.Redis
) -> None:
    Garden(store_of(app), redis_client, 0).plant("newer", status="suspended", waits="tide")

    assert gauges(registry)["runs", "shop.order", "tide"] == 1


def test_runs_are_counted_by_task_and_state(app: Celery, registry: CollectorRegistry) -> None:
    sold, asleep, failed = (task_of(app, body) for body in (sells, sleeps, fails))
    for task in (sold, sold, asleep, failed):
        execute(task, task_id=new_id())

    assert gauges(registry) == {
        ("index_up",): 1,
        ("runs", "shop.sells", "SUCCESS"): 2,
        ("runs", "shop.sleeps", "SUSPENDED"): 1,
        ("runs", "shop.fails", "FAILURE"): 1,
    }


def test_a_state_without_runs_is_0_where_the_task_has_others(app: Celery, registry: CollectorRegistry) -> None:
    execute(task_of(app, sells), task_id=new_id())

    assert registry.get_sample_value("celery_durable_runs", {"task": "shop.sells", "state": "FAILURE"}) == 0
    assert registry.get_sample_value("celery_durable_runs", {"task": "shop.fails", "state": "FAILURE"}) is None


def test_what_no_worker_takes_is_overdue(app: Celery, registry: CollectorRegistry, redis_client: redis.Redis) -> None:
    ids = [new_id(), new_id(), new_id()]
    for task_id in ids:
        execute(task_of(app, sleeps), task_id=task_id)
    runs = store_of(app).runs
    now = int(redis_client.time()[0])
    for task_id, since in zip(ids, (20, 90), strict=False):
        redis_client.zadd(runs.keys(task_id).due, {task_id: (now - since) * 1000})

    found = gauges(registry)
    assert found["overdue_runs",] == 2
    assert 89 < found["oldest_overdue_seconds",] < 100
    assert store_of(app).index.overdue().oldest == ids[1]


def test_a_scrape_asks_redis_once(
    app: Celery, registry: CollectorRegistry, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(task_of(app, sells), task_id=new_id())
    gauges(registry)
    redis_client.config_resetstat()
    sent: list[int] = []
    ask = JournalConnectionPool.execute

    def execute_and_count(pool: JournalConnectionPool, *commands: Any, **options: Any) -> list[Any]:
        sent.append(len(commands))
        return ask(pool, *commands, **options)

    monkeypatch.setattr(JournalConnectionPool, "execute", execute_and_count)
    gauges(registry)
    assert sent == [32]
    assert {"cmdstat_scan", "cmdstat_keys"}.isdisjoint(redis_client.info("commandstats"))


def test_a_run_that_the_main_process_of_a_worker_ends_counts_once(
    app: Celery, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id, revocations = new_id(), Revocations(app, Mock(hostname="w1"))
    execute(task_of(app, waits_to_be_revoked), task_id=task_id)
    monkeypatch.setattr(worker_state, "revoked", {task_id})

    for _ in range(3):
        revocations.end_revoked_runs()

    labels = {"task": "shop.waits_to_be_revoked", "state": "REVOKED"}
    assert registry.get_sample_value("celery_durable_runs_ended_total", labels) == 1


def test_without_redis_the_rest_can_be_scraped(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    with app_at("redis://127.0.0.1:1/0") as app:
        prometheus.install(registry, app=app)
        with caplog.at_level(logging.WARNING):
            found = [registry.get_sample_value("celery_durable_index_up") for _ in range(2)]

    assert found == [0, 0]
    assert registry.get_sample_value("celery_durable_runs") is None
    assert caplog.text.count("metrics of runs cannot be collected: ") == 1


def test_a_redis_that_hangs_keeps_no_scrape_waiting() -> None:
    registry = CollectorRegistry()
    with RedisServer() as server, app_at(server.url()) as app:
        prometheus.install(registry, app=app)
        assert registry.get_sample_value("celery_durable_index_up") == 1
        server.freeze()
        began = time.monotonic()
        found = [registry.get_sample_value("celery_durable_index_up") for _ in range(2)]
        took = time.monotonic() - began
        server.thaw()

    assert found == [0, 0]
    assert took < LONGEST_READ
