"""What is counted of what happens, for Prometheus and for OpenTelemetry; and rules and a dashboard that fit that."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from celery import signals
from prometheus_client import CollectorRegistry

from celery_durable import ConfigurationError, happenings, meter, prometheus
from celery_durable.happenings import Happening
from celery_durable.journal.layout import Status
from celery_durable.meter import OpenTelemetryMeter
from celery_durable.metrics import MEASURED, measured_by
from celery_durable.operate.states import STATES
from celery_durable.prometheus import counters, endpoint, runs
from celery_durable.records import AttemptRecord, Run, StepRecord, moment
from celery_durable.redis.index import Overdue
from celery_durable.worker import news

DOCS = Path(__file__).parents[2] / "docs"
TASK = "shop.order"


def a_run(*, state: str = "STARTED", how: str = "STARTED", replayed: int = 0) -> Run:
    began = moment(0)
    attempt = AttemptRecord(1, began, None, how, "worker", "", executed=0, replayed=replayed)
    return Run(
        id="task-1", task=TASK, state=state, args=(), kwargs={}, created=began, began=began, ended=None,
        worker="worker", lease=None, waits_for="", until=None, build="", error="", attempts=(attempt,),
    )  # fmt: skip


def a_step(ms: int | None) -> StepRecord:
    return StepRecord("step", "charge", "1", "done", 1, None, moment(0), ms)


ALL = [
    (Happening.RUN_STARTED, a_run(), None),
    (Happening.STEP_SUCCEEDED, a_run(), a_step(20)),
    (Happening.STEP_SUCCEEDED, a_run(), a_step(4000)),
    (Happening.STEP_FAILED, a_run(), a_step(None)),
    (Happening.STEP_RETRIED, a_run(), a_step(None)),
    (Happening.RUN_RECOVERED, a_run(), None),
    (Happening.RUN_RESUMED, a_run(), None),
    (Happening.ATTEMPT_INACTIVE, a_run(), None),
    (Happening.ATTEMPT_FENCED, a_run(), None),
    (Happening.ATTEMPT_ENDED, a_run(how="RETRY", replayed=3), None),
    (Happening.RUN_SUSPENDED, a_run(how="RETRY", replayed=3), None),
    (Happening.ATTEMPT_ENDED, a_run(how="SUCCESS", replayed=2), None),
    (Happening.RUN_SUCCEEDED, a_run(state="SUCCESS", how="SUCCESS", replayed=2), None),
    (Happening.RUN_PARKED, a_run(state="FAILURE"), None),
    (Happening.RUN_FAILED, a_run(state="FAILURE"), None),
    (Happening.RUN_CANCELLED, a_run(state="REVOKED"), None),
]
"""What happens to runs, each once or twice."""

COUNTED = {
    ("steps", TASK, "succeeded"): 2,
    ("steps", TASK, "failed"): 1,
    ("replays", TASK): 5,
    ("retries", TASK): 2,
    ("recoveries", TASK): 1,
    ("fenced_attempts", TASK): 1,
    ("inactive", TASK): 1,
    ("runs_ended", TASK, "SUCCESS"): 1,
    ("runs_ended", TASK, "FAILURE"): 1,
    ("runs_ended", TASK, "REVOKED"): 1,
}


# -- Prometheus --------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_counters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The counters of a process that has not counted anything."""
    monkeypatch.delenv(counters.FOLDER_VARIABLE, raising=False)
    counters._counters.cache_clear()  # noqa: SLF001
    before = happenings.observers
    yield
    happenings.observers = before
    counters._counters.cache_clear()  # noqa: SLF001


@pytest.fixture
def registry(own_counters: None, monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """A registry with the metrics of an app with one failed run."""
    index = Mock(census=lambda: ({("failed", TASK): 1}, Overdue(1, 2.5, "task-1")))
    monkeypatch.setattr(runs, "Store", lambda _app, _patience: Mock(index=index))
    registry = CollectorRegistry()
    prometheus.install(registry, app=Mock())
    return registry


def test_prometheus_has_the_counts(registry: CollectorRegistry) -> None:
    for happening, run, step in ALL:
        happenings.tell(happening, run, step)

    counted = {
        (sample.name.removeprefix("celery_durable_").removesuffix("_total"), *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert counted == COUNTED
    value = registry.get_sample_value
    assert value("celery_durable_step_seconds_sum", {"task": TASK}) == pytest.approx(4.02)
    assert value("celery_durable_step_seconds_bucket", {"task": TASK, "le": "0.025"}) == 1
    assert value("celery_durable_runs", {"task": TASK, "state": "FAILURE"}) == 1
    assert value("celery_durable_oldest_overdue_seconds") == 2.5


def test_to_install_twice_changes_nothing(registry: CollectorRegistry) -> None:
    prometheus.install(registry, app=Mock())
    happenings.tell(Happening.RUN_RECOVERED, a_run())
    assert registry.get_sample_value("celery_durable_recoveries_total", {"task": TASK}) == 1


def test_a_second_registry_has_the_same_counts(registry: CollectorRegistry) -> None:
    second = CollectorRegistry()
    prometheus.install(second, app=Mock())
    happenings.tell(Happening.RUN_RECOVERED, a_run())
    for each in (registry, second):
        assert each.get_sample_value("celery_durable_recoveries_total", {"task": TASK}) == 1


def test_to_install_asks_no_redis(own_counters: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "Store", Mock(side_effect=AssertionError))
    prometheus.install(CollectorRegistry(auto_describe=True), app=Mock())


def test_the_default_is_the_registry_of_prometheus_client(own_counters: None) -> None:
    asked = "import prometheus_client as p; from celery_durable import prometheus; prometheus.install()"
    script = f"{asked}; print('celery_durable_runs' in p.REGISTRY._names_to_collectors)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "True\n"


def test_without_prometheus_client_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'celery-durable\[prometheus\]'"):
        prometheus.install()


def test_a_folder_that_is_not_there_is_refused(own_counters: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(counters.FOLDER_VARIABLE, "/nowhere")
    with pytest.raises(ConfigurationError, match=r"PROMETHEUS_MULTIPROC_DIR names '/nowhere', which is no folder"):
        prometheus.install(CollectorRegistry())


# -- a worker's own endpoint -------------------------------------------------------------------------------------------


def worker_with(pool: str) -> Any:
    return Mock(pool_cls=type("TaskPool", (), {"__module__": f"celery.concurrency.{pool}"}))


def test_a_pool_of_threads_serves_the_registry(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr(endpoint, "start_http_server", lambda *given: served.append(given) or (Mock(), Mock()))
    endpoint.Endpoint(registry, Mock(), "127.0.0.1", 9808).open(worker_with("thread"))
    assert served == [(9808, "127.0.0.1", registry)]


def test_a_pool_that_forks_without_a_folder_serves_no_counters(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(endpoint, "start_http_server", lambda *given: served.append(given[2]) or (Mock(), Mock()))
    collector = runs.RunsCollector(Mock())
    endpoint.Endpoint(registry, collector, "127.0.0.1", 9808).open(worker_with("prefork"))
    names = {family.name for family in served[0].collect()}
    assert "celery_durable_runs" in names
    assert "celery_durable_steps" not in names
    assert "set PROMETHEUS_MULTIPROC_DIR to an empty folder" in caplog.text


def test_a_port_that_is_taken_does_not_end_the_worker(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoint, "start_http_server", Mock(side_effect=OSError("Address already in use")))
    endpoint.Endpoint(registry, Mock(), "127.0.0.1", 9808).open(worker_with("thread"))
    assert "http://127.0.0.1:9808/metrics cannot be served: Address already in use" in caplog.text


def test_only_the_process_that_serves_keeps_the_socket(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Mock()
    monkeypatch.setattr(endpoint, "start_http_server", lambda *_: (server, Mock()))
    served = endpoint.Endpoint(registry, Mock(), "127.0.0.1", 9808)
    served.open(worker_with("thread"))
    served.close_in_child()  # the pool `solo` sends the signal in the main process
    server.socket.close.assert_not_called()
    monkeypatch.setattr(endpoint.os, "getpid", lambda: -1)
    served.close_in_child()
    server.socket.close.assert_called_once_with()


def test_the_last_port_counts(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    ports: list[int] = []
    monkeypatch.setattr(endpoint, "start_http_server", lambda port, *_: ports.append(port) or (Mock(), Mock()))
    for signal in (signals.celeryd_after_setup, signals.worker_process_init):
        monkeypatch.setattr(signal, "receivers", [])
    for port in (9808, 9809):
        prometheus.install(registry, app=Mock(), port=port)
    signals.celeryd_after_setup.send(sender="worker", instance=worker_with("thread"))
    assert ports == [9809]


# -- OpenTelemetry -----------------------------------------------------------------------------------------------------

sdk = pytest.importorskip("opentelemetry.sdk.metrics")
export = pytest.importorskip("opentelemetry.sdk.metrics.export")


def test_opentelemetry_has_the_same_counts() -> None:
    reader = export.InMemoryMetricReader()
    measure = measured_by(OpenTelemetryMeter(sdk.MeterProvider([reader]).get_meter("celery_durable")))
    happenings.observe(measure, MEASURED)
    for happening, run, step in ALL:
        happenings.tell(happening, run, step)
    happenings.forget(measure)

    [resource] = reader.get_metrics_data().resource_metrics
    metrics = {metric.name: metric.data.data_points for metric in resource.scope_metrics[0].metrics}
    [durations] = metrics.pop("celery_durable.step_seconds")
    assert (durations.count, durations.sum) == (2, pytest.approx(4.02))
    assert {
        (name.removeprefix("celery_durable."), *point.attributes.values()): point.value
        for name, points in metrics.items()
        for point in points
    } == COUNTED
    [inactive] = metrics["celery_durable.inactive"]
    assert dict(inactive.attributes) == {"celery_durable.task": TASK}


def test_nothing_is_measured_without_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_measures", False)
    observe = Mock()
    monkeypatch.setattr(happenings, "observe", observe)
    api: Any = ModuleType("opentelemetry.metrics")
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", api)
    meter.measure_if_loaded()  # another thread imports it just now
    api.get_meter_provider = type("NoOp", (), {"__module__": "opentelemetry.metrics._internal"})
    meter.measure_if_loaded()
    observe.assert_not_called()


def test_two_threads_that_open_their_first_runs_measure_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)
    monkeypatch.setattr(meter, "_measures", False)
    monkeypatch.setattr(meter, "has_provider", lambda *_: both.wait(10) >= 0)
    monkeypatch.setattr(happenings, "observe", observe := Mock())
    threads = [threading.Thread(target=meter.measure_if_loaded) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    observe.assert_called_once()


def test_the_main_process_of_a_worker_measures_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(happenings, "observers", {})
    monkeypatch.setattr(meter, "measure_if_loaded", measure := Mock())
    news.ended(Mock(), "task-1", Status.FAILED)
    measure.assert_called_once_with()


# -- rules and dashboard -----------------------------------------------------------------------------------------------

_WORDS = {
    "absent", "and", "by", "clamp_min", "histogram_quantile", "increase", "le", "max", "or", "rate", "sum", "unless",
}  # fmt: skip


@pytest.fixture
def labels(registry: CollectorRegistry) -> dict[str, set[str]]:
    """The names of all samples, with their labels."""
    for happening, run, step in ALL:
        happenings.tell(happening, run, step)
    return {sample.name: set(sample.labels) for family in registry.collect() for sample in family.samples}


def check(expression: str, labels: dict[str, set[str]]) -> None:
    """An expression names metrics, labels and states that exist."""
    matched = re.findall(r"(celery_durable_\w+)(?:\{([^}]*)\})?", expression)
    assert matched, expression
    used = set()
    for name, matchers in matched:
        assert name in labels, expression
        used |= labels[name]
        for label, values in re.findall(r'(\w+)[!=~]+"([^"]*)"', matchers):
            assert label in labels[name], expression
            assert label != "state" or set(values.split("|")) <= set(STATES), expression
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert set(grouped.split(", ")) <= used, expression
    bare = re.sub(r'"[^"]*"|offset \d+m|\[[^\]]*\]|\{[^}]*\}|by \([^)]*\)', "", expression)
    assert set(re.findall(r"[A-Za-z_]\w*", bare)) <= {*labels, *_WORDS}, expression


def test_the_alert_rules_use_what_exists(labels: dict[str, set[str]]) -> None:
    [group] = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
        check(rule["expr"], labels)
        grouped = set(re.findall(r"by \((\w+)\)", rule["expr"]))
        assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= grouped
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names)) == 8


def test_the_dashboard_uses_what_exists(labels: dict[str, set[str]]) -> None:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    shown = set()
    for panel in panels:
        for target in panel["targets"]:
            check(target["expr"], labels)
            shown |= set(re.findall(r"celery_durable_\w+", target["expr"]))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= {"task", "state", "outcome"}
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in labels if not name.endswith("_created")}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} == families
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
