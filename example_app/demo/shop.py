"""The example app as the demo runs it: server, gateway and workers, each a process of its own."""

import json
import sys
from urllib.error import URLError
from urllib.request import urlopen

from redis import Redis
from redis.exceptions import RedisError

from example_app.app import app
from example_app.demo.process import Process
from example_app.demo.server import NoServerError, free_port, server_command
from example_app.demo.stage import Stage
from example_app.gateway import Report

# How long the orders of a killed worker rest: its leases have to lapse, and its messages to come back.
SECONDS_TO_RECOVER = 3


class Shop:
    """Open for orders from the moment it exists; without *redis_url* it brings a server of its own."""

    def __init__(self, stage: Stage, redis_url: str | None, *, delay: float) -> None:
        self._stage = stage
        self._workers = 0
        self._redis_url = redis_url or self._start_server()
        self.redis: Redis = Redis.from_url(self._redis_url, decode_responses=True)
        if redis_url:
            self._must_be_empty()
        self._gateway_url = self._start_gateway(delay)
        stage.wait_until(self._is_open)
        app.conf.update(broker_url=self._redis_url, result_backend=self._redis_url)

    def start_worker(self, processes: int) -> Process:
        """A prefork worker as everybody starts it, only told to be quick about dead ones."""
        self._workers += 1
        name = f"worker-{self._workers}"
        celery = [sys.executable, "-m", "celery", "-A", "example_app"]
        return self._stage.start(
            name,
            [*celery, "worker", "-l", "INFO", "-n", f"{name}@%h", "--concurrency", str(processes)],
            {
                "REDIS_URL": self._redis_url,
                "GATEWAY_URL": self._gateway_url,
                "VISIBILITY_TIMEOUT": str(SECONDS_TO_RECOVER),
                "RESTORE_INTERVAL": "1",
                "DURABLE_LEASE": str(SECONDS_TO_RECOVER),
            },
        )

    def report(self, supplier: str) -> Report:
        """What the gateway says has happened, by order."""
        with urlopen(f"{self._gateway_url}/{supplier}", timeout=5) as answer:  # noqa: S310 - our own URL
            report: Report = json.load(answer)
            return report

    def _start_server(self) -> str:
        port = free_port()
        self._stage.start("server", server_command(port, self._stage.directory))
        return f"redis://127.0.0.1:{port}/0"

    def _start_gateway(self, delay: float) -> str:
        port = free_port()
        command = [sys.executable, "-m", "example_app.gateway", "--port", str(port), "--delay", str(delay)]
        self._stage.start("gateway", command)
        return f"http://127.0.0.1:{port}"

    def _must_be_empty(self) -> None:
        """The demo's workers take unfinished messages back within seconds: there must be no others."""
        try:
            keys = self.redis.dbsize()
        except RedisError as error:
            raise NoServerError(f"no Redis at {self._redis_url}: {error}") from error
        if keys:
            raise NoServerError(
                f"{self._redis_url} holds {keys} keys, and the demo wants a database for itself: "
                "give the number of an empty one, as in redis://localhost:6379/9"
            )

    def _is_open(self) -> bool:
        try:
            return self.redis.ping() and self.report("charges") == {}
        except (RedisError, URLError):
            return False
