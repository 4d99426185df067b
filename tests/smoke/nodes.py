"""What smoke tests hold: pytest-celery's setup, whose Redis and workers can be seen and hit process by process.

pytest-celery separates a node (what a test talks to) from its container (what runs it). Both are here,
and they are the same wherever processes are started: on this machine, or by `docker_nodes` in Docker.
"""

import json
import signal as signals
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import redis
from celery import Celery
from pytest_celery import CeleryTestSetup, CeleryTestWorker, CeleryWorkerCluster

from tests.processes import Process, Running
from tests.servers import RedisServer
from tests.waiting import eventually

BROKER_DB, BACKEND_DB = 0, 1


class Nodes(Protocol):
    """A place where Redis and workers run: this machine or a Docker network."""

    server: RedisServer

    def url(self, db: int) -> str:
        """Return the URL under which workers reach the server; a test reaches it under `server.url(db)`."""

    def python(self, name: str, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> Running:
        """Start Python with these arguments."""

    def close(self) -> None:
        """End everything that was started here."""


class LocalNodes:
    """Redis and workers as processes of this machine."""

    def __init__(self, port: int) -> None:
        self.server = RedisServer(appendonly=True, port=port).start()

    def url(self, db: int) -> str:
        return self.server.url(db)

    def python(self, name: str, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> Running:
        return Process([sys.executable, *arguments], log, env)

    def close(self) -> None:
        self.server.close()


class WorkerContainer:
    """The lives of one worker, one after the other, with one log."""

    def __init__(self, nodes: Nodes, name: str, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self._begin = partial(nodes.python, name, arguments, log, env)
        self._log = log
        self._life: Running | None = None

    @property
    def life(self) -> Running:
        """The present life, or the last one."""
        assert self._life is not None, f"{self.name} has not been started"
        return self._life

    @property
    def status(self) -> str:
        return "running" if self._life is not None and self.life.exit_code is None else "exited"

    def start(self) -> None:
        assert self.status == "exited", f"{self.name} is running already"
        self._life = self._begin()

    def logs(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def teardown(self) -> None:
        if self._life is not None:
            self._life.kill()


class Worker(CeleryTestWorker):
    """One `celery worker`, which can be killed and started again under its name; process ids are its container's."""

    container: WorkerContainer

    @property
    def pid(self) -> int:
        """The main process."""
        return self.container.life.pid

    @property
    def running(self) -> bool:
        return self.container.status == "running"

    def children(self) -> list[int]:
        """Return the ids of the pool's processes; only prefork has any."""
        return self.container.life.children()

    def hostname(self) -> str:
        """Return the name under which `app.control` reaches the worker."""
        return self.container.name

    def log(self) -> str:
        """Return all that the worker has written, in all its lives."""
        return self.container.logs()

    def start(self) -> None:
        """Start the worker, or start it again, without waiting."""
        self._earlier_lives = len(self.log())
        self.container.start()

    def wait_ready(self, deadline: float = 30) -> None:
        """Wait until the worker takes tasks."""
        eventually(self._is_ready, deadline, what=f"{self.hostname()} to be ready")

    def ready(self) -> bool:
        self.wait_ready()
        return True

    def kill(self, signal: str | int = "SIGKILL", **_options: Any) -> None:
        """Send the main process a signal; SIGKILL hits all processes of the worker at once, like a power cut."""
        number = signals.Signals[signal] if isinstance(signal, str) else signals.Signals(signal)
        if number == signals.SIGKILL:
            self.container.life.kill()
        else:
            self.container.life.send(number)

    def kill_child(self, pid: int | None = None) -> int:
        """Kill one process of the pool, as the kernel does when memory runs out; return its id.

        Without `pid` the pool has to have one process only. Elsewhere `effects` tells who executes a step:
        `worker.kill_child(effects.hits("charge")[-1].pid)`.
        """
        if pid is None:
            (pid,) = self.children()
        self.container.life.kill_child(pid)
        return pid

    def stop(self, deadline: float = 20) -> None:
        """Shut the worker down warmly: it finishes its tasks, takes no others, and exits with 0."""
        self.container.life.send(signals.SIGTERM)
        self.wait(deadline)

    def wait(self, deadline: float = 20) -> None:
        """Wait until the worker has shut down, with exit code 0."""
        exit_code = self.container.life.wait(deadline)
        assert exit_code == 0, f"{self.hostname()} exited with {exit_code}:\n{self.log()}"

    def restart(self, *, force: bool = False, **_options: Any) -> None:
        """Start the worker again and wait until it is ready; a running one is shut down before, killed with `force`."""
        if force:
            self.kill()
        elif self.running:
            self.stop()
        self.start()
        self.wait_ready()

    def _is_ready(self) -> bool:
        log = self.log()[self._earlier_lives :]
        if not self.running:
            raise AssertionError(f"{self.hostname()} ended while it was starting:\n{log}")
        return f"{self.hostname()} ready." in log


class WorkerCluster(CeleryWorkerCluster):
    """The workers of a test: none at first, each started by the test with the options that it needs."""

    def __init__(self, place: Nodes, app_name: str, folder: Path, env: Mapping[str, str]) -> None:
        # Not the constructor above it, which demands a first node.
        self.nodes: tuple[Worker, ...] = ()
        self._place = place
        self._app_name = app_name
        self._folder = folder
        self._env = env

    def add(self, app: Celery, options: Sequence[str], conf: Mapping[str, Any], env: Mapping[str, str]) -> Worker:
        name = f"worker{len(self) + 1}@smoke"
        arguments = ["-m", "celery", "-A", self._app_name, "worker", "-n", name, "-l", "INFO", *options, "--"]
        arguments += [f"{key}=(json){json.dumps(value)}" for key, value in conf.items()]
        log = self._folder / f"{name}.log"
        worker = Worker(WorkerContainer(self._place, name, arguments, log, {**self._env, **env}), app)
        self.nodes = (*self.nodes, worker)
        return worker

    def teardown(self) -> None:
        for worker in self:
            worker.container.teardown()


class DurableSetup(CeleryTestSetup):
    """The fixture `durable`: a server, the app to send tasks with, and as many workers as a test starts."""

    def start_worker(
        self,
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        queues: Sequence[str] = (),
        visibility_timeout: float = 3600,
        conf: Mapping[str, Any] | None = None,
        extra: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> Worker:
        """Start a worker of the app that the fixture `worker_app` names; return it when it is ready.

        Args:
            pool: Of Celery's `--pool`.
            concurrency: The number of tasks at a time.
            queues: What to consume; without any, the app's default queue.
            visibility_timeout: Seconds after which an unacknowledged message is delivered again. All workers
                of a test need the same: each restores the messages of all others by its own.
            conf: Celery settings of this worker, which win over those of the app; names contain an underscore.
            extra: Further arguments of `celery worker`.
            env: Further environment variables.
            wait: False returns at once; `wait_ready()` waits later, so that several workers start side by side.
        """
        transport = {
            "visibility_timeout": visibility_timeout,
            # Looks for messages to deliver again every second, instead of every 100.
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            # A worker that is killed amid such a look leaves its lock behind: for a second, instead of five minutes.
            "unacked_mutex_expire": 1,
        }
        options = [
            f"--pool={pool}",
            f"--concurrency={concurrency}",
            *(["-Q", ",".join(queues)] if queues else []),
        ]
        # What lets workers find each other costs seconds at each start.
        options += ["--without-gossip", "--without-mingle", "--without-heartbeat", *extra]
        conf = {"broker_transport_options": transport, **(conf or {})}
        worker = self.worker_cluster.add(self.app, options, conf, env or {})
        worker.start()
        if wait:
            worker.wait_ready()
        return worker

    @property
    def broker_server(self) -> RedisServer:
        """The server that is the broker and the result backend; it keeps its data over a stop or a kill."""
        return self.broker.container.server

    @cached_property
    def redis(self) -> redis.Redis:
        """A client, reading text, of the result backend's database, where the journals are too."""
        return self.broker_server.client(BACKEND_DB)

    def teardown(self) -> None:
        self.redis.close()


class ServerContainer:
    """A database of the server, as pytest-celery's nodes of brokers and backends want to see it."""

    def __init__(self, nodes: Nodes, db: int) -> None:
        self.server = nodes.server
        self.name = self.id = f"redis-{db}"
        self.celeryconfig = {"url": nodes.url(db), "host_url": self.server.url(db), "vhost": str(db)}

    @property
    def status(self) -> str:
        return "running" if self.server.running else "exited"

    def ready(self) -> bool:
        return self.server.running

    def logs(self) -> str:
        return self.server.log.read_text()

    def kill(self, signal: str | int) -> None:
        self.server.kill() if signal in ("SIGKILL", signals.SIGKILL) else self.server.stop()

    def restart(self, **_options: Any) -> None:
        self.server.restart()

    def reload(self) -> None:
        """Do nothing: nothing about the server is cached."""

    def teardown(self) -> None:
        """Do nothing: the server ends with the fixture that started it."""
