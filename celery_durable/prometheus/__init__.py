"""Metrics for Prometheus: ``from celery_durable import prometheus; prometheus.install()``."""

from __future__ import annotations

from typing import Any

from celery_durable.exceptions import ConfigurationError


def install(registry: Any = None, *, app: Any = None, port: int | None = None, address: str = "127.0.0.1") -> None:
    """Export the metrics ``celery_durable_*``. Call it where the app is made, or in Flower's ``flowerconfig.py``.

    This process counts what it does itself (steps, retries, recoveries, ...). How many runs there are, and which are
    overdue, is asked of Redis when somebody scrapes the registry.

    In a worker whose pool forks (prefork), set ``PROMETHEUS_MULTIPROC_DIR`` to an empty folder before it starts: its
    processes count in files there. If it is called twice with the same registry, only a new *port* counts.

    Args:
        registry: a ``prometheus_client.CollectorRegistry``. Default: prometheus-client's own ``REGISTRY``, which Flower
            serves, too.
        app: the Celery app. Default: the current app, or the only app of the process.
        port: workers serve ``/metrics`` on this port, each in its main process. Default: none does.
        address: where that port is: a host name or an IP address of this machine. Default: this machine alone can
            reach it; ``0.0.0.0``: other machines can, too.

    Raises:
        ConfigurationError: prometheus-client is not installed, or ``PROMETHEUS_MULTIPROC_DIR`` is no folder.
    """
    try:
        import prometheus_client
    except ImportError as error:
        raise ConfigurationError(
            "celery_durable.prometheus needs prometheus-client, which is not installed: "
            "pip install 'celery-durable[prometheus]'"
        ) from error
    from . import counters, endpoint, runs

    registry = prometheus_client.REGISTRY if registry is None else registry
    counters.register(registry)
    collector = runs.register(registry, app)
    if port is not None:
        endpoint.serve_in_workers(endpoint.Endpoint(registry, collector, address, port))
