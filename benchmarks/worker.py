"""A real worker: `celery worker` with one prefork child, as a process of its own."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery import Celery

from tests.processes import Process
from tests.waiting import eventually


@contextmanager
def worker(module: str, app: Celery, url: str, directory: Path, *, name: str = "", **conf: str) -> Iterator[int]:
    """Start a worker for the queue of *app*; its process id. It is ended with all its children.

    *name*: what tells it from other workers for that queue; *conf*: Celery settings of its own, as JSON.
    """
    queue = app.conf.task_default_queue
    name = f"{name or queue}@localhost"
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        module,
        "worker",
        "-c",
        "1",
        "-Q",
        queue,
        "-n",
        name,
        "-l",
        "WARNING",
        "--",
        *(f"{key}=(json){value}" for key, value in conf.items()),
    ]
    # The same hash seed for all: dictionaries must not make one worker faster than the other.
    environ = {"BENCHMARK_URL": url, "BENCHMARK_QUEUE": queue, "PYTHONHASHSEED": "0"}
    log = directory / f"{name}.log"
    process = Process(command, log, environ)

    def ready() -> bool:
        if process.exit_code is not None:
            raise RuntimeError(f"the worker of {module} ended:\n{log.read_text(errors='replace')}")
        return bool(app.control.ping(destination=[name], timeout=0.3))

    try:
        eventually(ready, deadline=60, what=f"the worker of {module}")
        yield process.pid
    finally:
        process.kill()
