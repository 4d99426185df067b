"""Metrics for Prometheus, from a real worker whose pool forks, and from Flower."""

from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from celery_durable import TerminalError
from tests.servers import free_port
from tests.smoke.apps import metrics
from tests.smoke.nodes import DurableSetup
from tests.waiting import eventually

LONG = 30
EVENTFUL, FAILING = metrics.eventful.name, metrics.failing.name

Scraped = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def worker_app() -> str:
    return "tests.smoke.apps.metrics"


def scrape(url: str, **options: Any) -> Scraped:
    """Return the samples of the library: (name, values of the labels) → value. Each is exported once."""
    answer = requests.get(url, timeout=10, **options)
    answer.raise_for_status()
    found: Scraped = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name.startswith("celery_durable_") and not sample.name.endswith("_created"):
                key = (
                    sample.name.removeprefix("celery_durable_"),
                    tuple(value for _, value in sorted(sample.labels.items())),
                )
                assert key not in found
                found[key] = sample.value
    return found


def runs_of(task: str, found: Scraped) -> dict[str, float]:
    """The states that runs of a task are in."""
    return {labels[0]: value for (name, labels), value in found.items() if name == "runs" and task in labels and value}


@pytest.mark.local_nodes(reason="the port is one of this machine")
def test_a_worker_serves_what_the_processes_of_its_pool_have_done(durable: DurableSetup, tmp_path: Path) -> None:
    folder, port = tmp_path / "counts", free_port()
    folder.mkdir()
    durable.start_worker(env={"PROMETHEUS_MULTIPROC_DIR": str(folder), metrics.PORT_VARIABLE: str(port)})
    eventful, failing = metrics.eventful.delay(), metrics.failing.delay()

    assert eventful.get(timeout=LONG) == 3
    with pytest.raises(TerminalError):
        failing.get(timeout=LONG)
    url = f"http://127.0.0.1:{port}/metrics"
    last = {("replays_total", (EVENTFUL,)), ("runs_ended_total", ("FAILURE", FAILING))}
    eventually(lambda: scrape(url).keys() >= last, what="the counts of the last attempts")

    found = scrape(url)
    counted = {key: value for key, value in found.items() if key[0].endswith(("_total", "_seconds_count"))}
    assert counted == {
        ("steps_total", ("succeeded", EVENTFUL)): 3,
        ("steps_total", ("failed", EVENTFUL)): 1,
        ("steps_total", ("failed", FAILING)): 1,
        ("replays_total", (EVENTFUL,)): 2,
        ("retries_total", (EVENTFUL,)): 1,
        ("recoveries_total", (EVENTFUL,)): 1,
        ("step_seconds_count", (EVENTFUL,)): 3,
        ("runs_ended_total", ("SUCCESS", EVENTFUL)): 1,
        ("runs_ended_total", ("FAILURE", FAILING)): 1,
    }
    assert runs_of(EVENTFUL, found) == {"SUCCESS": 1}
    assert runs_of(FAILING, found) == {"FAILURE": 1}
    assert (found["index_up", ()], found["overdue_runs", ()], found["oldest_overdue_seconds", ()]) == (1, 0, 0)


@pytest.mark.local_nodes(reason="Flower runs on this machine")
def test_flower_serves_how_many_runs_there_are(durable: DurableSetup, start_flower: Any, tmp_path: Path) -> None:
    durable.start_worker()
    with pytest.raises(TerminalError):
        metrics.failing.delay().get(timeout=LONG)
    conf = tmp_path / "flowerconfig.py"
    conf.write_text("from celery_durable import prometheus\n\nprometheus.install()\n")

    flower = start_flower(env={"FLOWER_CONF": str(conf)})

    found = scrape(flower.url("/metrics"))
    assert runs_of(FAILING, found) == {"FAILURE": 1}
    assert found["index_up", ()] == 1
