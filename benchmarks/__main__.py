"""Measure what durability costs, and print it beside the targets.

It starts a server with an append-only file, synced every second, and real workers, as processes of its own, and ends
them. Ratios are taken between interleaved measurements of this one run, so that they can be compared between machines
and busy moments; absolute times cannot. Only the counts of round trips are exact.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import chain, durable, importing, listing, loading, plain, recovery, report, step, task, trip
from benchmarks.report import Row
from benchmarks.stand import Stand
from benchmarks.worker import worker
from tests.processes import end_as_by_ctrl_c
from tests.servers import RedisServer

Part = Callable[[], list[Row]]


def main() -> None:
    """Run the parts one after another, and show each when it is done."""
    options = _options()
    end_as_by_ctrl_c()
    rows: list[Row] = []
    facts = {"load_at_start": _load()}
    print(report.heading())
    with tempfile.TemporaryDirectory() as directory, RedisServer(appendonly=True) as server:
        server.client().config_set("appendfsync", "everysec")
        for name, part in _parts(server, Path(directory), quick=options.quick):
            if options.only and name not in options.only:
                continue
            sys.stderr.write(f"measuring {name} ...\n")
            measured = part()
            print(report.render(measured), flush=True)
            rows += measured
        facts |= _facts(server) | {"load_at_end": _load()}
    print("\n" + ", ".join(f"{name} {fact}" for name, fact in facts.items()))
    if options.json:
        document = {"machine": facts, "rows": [report.as_json(row) for row in rows]}
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def _parts(server: RedisServer, directory: Path, *, quick: bool) -> Iterator[tuple[str, Part]]:
    url = server.url()
    stand = Stand(url)
    pid = int(server.client().info("server")["process_id"])
    yield "trip", lambda: trip.measure(stand, server.port)
    yield "import", lambda: importing.measure(3 if quick else 15)
    yield "step", lambda: step.measure(stand, pid, 5 if quick else 30)
    yield "replay", lambda: loading.measure(stand, url, quick=quick)
    yield "listing", lambda: listing.measure(url, quick=quick)
    yield "recovery", lambda: recovery.measure(stand, url, directory, quick=quick)
    yield "task", lambda: _with_workers(url, pid, directory, quick=quick)


def _with_workers(url: str, server_pid: int, directory: Path, *, quick: bool) -> list[Row]:
    """Fresh apps and workers many times over: each is some percent faster or slower for as long as it lives."""
    taken: task.Taken = {}
    chains = chain.Chains(50)
    for _ in range(2 if quick else 12):
        plain_app, twin_app = plain.make(url, "plain"), plain.make(url, "twin")
        durable_app = durable.make(url, "durable")
        with ExitStack() as stack:
            plain_pids = (stack.enter_context(worker("benchmarks.plain", plain_app, url, directory)), server_pid)
            twin_pids = (stack.enter_context(worker("benchmarks.plain", twin_app, url, directory)), server_pid)
            durable_pids = (stack.enter_context(worker("benchmarks.durable", durable_app, url, directory)), server_pid)
            cases = (
                task.Case(task.PLAIN, plain_app.tasks["benchmarks.nothing"], plain_pids),
                task.Case(task.TWIN, twin_app.tasks["benchmarks.nothing"], twin_pids),
                task.Case(task.UNTOUCHED, durable_app.tasks["benchmarks.nothing"], durable_pids),
                task.Case(task.STEPLESS, durable_app.tasks["benchmarks.stepless"], durable_pids),
            )
            task.take(cases, 6, taken)
            chains.take(
                plain_app.tasks["benchmarks.link"], plain_pids, durable_app.tasks["benchmarks.steps"], durable_pids
            )
    return task.rows(taken) + chains.rows()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute instead of about five")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE, too")
    parser.add_argument(
        "--only",
        action="append",
        choices=["trip", "import", "step", "replay", "listing", "recovery", "task"],
        help="this part; may be repeated",
    )
    return parser.parse_args()


def _facts(server: RedisServer) -> dict[str, Any]:
    info = server.client().info("server")
    kind = "Valkey" if "valkey_version" in info else "Redis"
    packages = {name: version(name) for name in ("celery", "redis", "pydantic")}
    return {
        "Python": platform.python_version(),
        kind: info.get("valkey_version", info["redis_version"]),
        **packages,
        "cores": os.cpu_count(),
    }


def _load() -> float:
    return round(os.getloadavg()[0], 2)


if __name__ == "__main__":
    main()
