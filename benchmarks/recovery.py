"""What it costs to look for runs that nobody carries on, to keep leases, and how long a takeover takes."""

import json
import os
import signal
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks import durable
from benchmarks.machine import Meter
from benchmarks.report import Row
from benchmarks.sample import ratios
from benchmarks.stand import Stand
from benchmarks.worker import worker
from celery_durable.app.store import Store, store_of
from celery_durable.journal.layout import LAYOUT
from celery_durable.journal.port import Delivery
from celery_durable.redis.lease import RENEWALS_PER_LEASE
from tests.waiting import eventually

GROUP = "Recovery"
_TASK = "benchmarks.held"


def measure(stand: Stand, url: str, directory: Path, *, quick: bool) -> list[Row]:
    """Look at many sleepers and many live runs, keep a hundred leases, and kill workers."""
    store = store_of(stand.app)
    rows = [
        _looks(stand, store, "suspended", 100_000, at_most=40),
        _looks(stand, store, "running", 10_000),
        *_renewals(store, 100, rounds=1 if quick else 3),
        _takeover(url, directory, 2, rounds=1 if quick else 5),
    ]
    return rows if quick else [*rows, _takeover(url, directory, 30, rounds=1)]


def _looks(stand: Stand, store: Store, status: str, count: int, at_most: float | None = None) -> Row:
    ids = [str(uuid.uuid4()) for _ in range(count)]
    _write(stand, store, ids, status)
    times, cpu, bare = [], [], []
    with stand.client() as client:
        for _ in range(100):
            began, own = time.perf_counter(), time.thread_time()
            found = store.runs.claim([_TASK])
            times.append((time.perf_counter() - began) * 1000)
            cpu.append((time.thread_time() - own) * 1000)
            began = time.perf_counter()
            client.hset(_TASK, "field", "value")
            bare.append((time.perf_counter() - began) * 1000)
            if any(claims.runs for claims in found):
                raise RuntimeError("there was nothing to be found")
        client.unlink(_TASK)
    _write(stand, store, ids, None)
    kind = "parked sleepers" if status == "suspended" else "live runs"
    facts = {"cpu_ms_of_the_worker": median(cpu), "ms": median(times), "bare_ms": median(bare)}
    what = f"one look at all shards, {count:,} {kind}, against one bare HSET"
    return Row.of(GROUP, what, ratios(times, bare), at_most=at_most, facts=facts)


def _write(stand: Stand, store: Store, ids: list[str], status: str | None) -> None:
    """Make these runs as their attempts leave them, or, without a status, delete them."""
    with stand.client() as client:
        in_an_hour = (int(client.time()[0]) + 3600) * 1000
        for start in range(0, len(ids), 1000):
            with client.pipeline(transaction=False) as commands:
                for task_id in ids[start : start + 1000]:
                    keys = store.keys(task_id)
                    place = keys.due if status == "suspended" else keys.leases
                    if status is None:
                        commands.unlink(keys.run, keys.due, keys.leases)
                    else:
                        facts: Any = {"v": LAYOUT, "task": _TASK, "status": status, "attempt": 1, "call": "{}"}
                        commands.hset(keys.run, mapping=facts)
                        commands.zadd(place, {task_id: in_an_hour})
                commands.execute()


def _renewals(store: Store, count: int, rounds: int) -> list[Row]:
    """CPU time of a process that does nothing but renew the leases of so many attempts, and of the server."""
    server = psutil.Process(_server_pid(store))
    journals = []
    for _ in range(count):
        task_id = str(uuid.uuid4())
        journals.append(journal := store.journal(task_id))
        journal.open(Delivery(task_id, _TASK, "", "{}"))
        store.leases.keep(journal)
    shares, server_shares = [], []
    for _ in range(rounds):
        meter = Meter([server.pid])
        own, began = time.process_time(), time.perf_counter()
        with meter:
            time.sleep(store.settings.lease / RENEWALS_PER_LEASE)  # each lease is renewed once
        took = time.perf_counter() - began
        own = time.process_time() - own
        shares.append(own / took * 100)
        server_shares.append((meter.seconds - own) / took * 100)
    for journal in journals:
        store.leases.drop(journal)
        journal.finish("ignored", {})
        journal.deliver(0)
        journal.close()
    what = f"renewal of {count} leases of {store.settings.lease:g} s in a process"
    return [
        Row.of(GROUP, f"{what}: share of a core", shares, "%", at_most=1),
        Row.of(GROUP, f"{what}: share of the server's core", server_shares, "%"),
    ]


def _server_pid(store: Store) -> int:
    from celery_durable.redis.client.protocol import pack

    connection = store.pool.take()
    try:
        connection.send(pack("INFO", "server"))
        [text] = connection.replies()
    finally:
        store.pool.give_back(connection)
    facts = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    return int(facts["process_id"])


def _takeover(url: str, directory: Path, lease: int, rounds: int) -> Row:
    """Seconds from the SIGKILL of a worker until another one begins its step anew."""
    times = [_take_over(url, directory, lease) for _ in range(rounds)]
    return Row.of(GROUP, f"takeover after SIGKILL of a worker, lease {lease} s", times, "s", at_most=lease + 5)


def _take_over(url: str, directory: Path, lease: int) -> float:
    app = durable.make(url, f"takeover-{uuid.uuid4().hex[:8]}")
    witness = directory / f"{app.conf.task_default_queue}.lines"

    def begun(times: int) -> bool:
        return witness.exists() and len(witness.read_text().splitlines()) >= times

    with ExitStack() as stack:
        pids = [
            stack.enter_context(
                worker(
                    "benchmarks.durable", app, url, directory, name=f"{name}-{witness.stem}", durable_lease=str(lease)
                )
            )
            for name in ("one", "other")
        ]
        app.tasks[_TASK].delay(str(witness))
        eventually(lambda: begun(1), deadline=30, what="the first attempt")
        holder = json.loads(witness.read_text().splitlines()[0])[0]
        [victim] = [pid for pid in pids if holder in [child.pid for child in psutil.Process(pid).children()]]
        killed = time.monotonic()
        os.killpg(victim, signal.SIGKILL)
        eventually(lambda: begun(2), deadline=lease + 60, what="the second attempt")
        _, taken_over = json.loads(witness.read_text().splitlines()[1])
    return float(taken_over - killed)
