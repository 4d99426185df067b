"""A worker's own ``/metrics``, served by its main process."""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import signals
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from .counters import FOLDER_VARIABLE, counted_in_files
from .runs import RunsCollector

logger = logging.getLogger("celery_durable")


class Endpoint:
    """Where a worker serves its metrics."""

    def __init__(self, registry: CollectorRegistry, runs: RunsCollector, address: str, port: int) -> None:
        self._registry = registry
        self._runs = runs
        self._address = address
        self._port = port
        self._server: Any = None
        self._opened_in = 0
        """The process that serves."""

    def open(self, worker: Any) -> None:
        """Serve from now on. If the port cannot be opened, that is logged, and the worker goes on without it."""
        where = f"http://{self._address}:{self._port}/metrics"
        try:
            self._server, _ = start_http_server(self._port, self._address, self._served(worker))
        except OSError as error:
            logger.error(
                "%s cannot be served: %s; this worker goes on without it. Give each worker of a machine its own port",
                where, error,
            )  # fmt: skip
        else:
            self._opened_in = os.getpid()
            logger.info("metrics are at %s", where)

    def _served(self, worker: Any) -> CollectorRegistry:
        forks = worker.pool_cls.__module__ == "celery.concurrency.prefork"
        if not forks and not counted_in_files():
            return self._registry
        # What the processes of a pool have counted is in files. How many runs there are is asked here alone.
        served = CollectorRegistry()
        served.register(self._runs)
        if counted_in_files():
            MultiProcessCollector(served)  # type: ignore[no-untyped-call]
        else:
            logger.warning(
                "/metrics has no counters, because the processes of this pool count for themselves: set %s to an empty "
                "folder before the worker starts",
                FOLDER_VARIABLE,
            )
        return served

    def close_in_child(self) -> None:
        """A process of the pool has inherited the socket, and must not keep the port open when its parent is gone."""
        if self._server is not None and self._opened_in != os.getpid():
            self._server.socket.close()
            self._server = None


def serve_in_workers(endpoint: Endpoint) -> None:
    """Open *endpoint* when a worker starts in this process."""

    def open_(instance: Any = None, **_: Any) -> None:
        endpoint.open(instance)

    def close(**_: Any) -> None:
        endpoint.close_in_child()

    # The last call of install(port=...) counts.
    for signal, receiver in ((signals.celeryd_after_setup, open_), (signals.worker_process_init, close)):
        signal.disconnect(dispatch_uid=_UID)
        signal.connect(receiver, weak=False, dispatch_uid=_UID)


_UID = "celery_durable.prometheus"
