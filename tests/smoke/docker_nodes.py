"""Where Redis and workers run as Docker containers: a container is one life of a program, its folders outlive it.

The project and the folders of a test are mounted under their own paths, so that commands, logs and the files of
`effects` are the same as on this machine.
"""

import gc
import os
import re
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import docker
from docker.errors import DockerException, ImageNotFound
from docker.models.networks import Network
from pytest_celery import CeleryTestContainer

from tests.processes import PROJECT, Running
from tests.servers import RedisServer

SERVER_IMAGE = "redis:7"
WORKER_IMAGE = "celery-durable/smoke-worker"


class EngineUnavailableError(RuntimeError):
    """No Docker engine answers, or it has no images for the nodes and cannot get them."""


def engine() -> docker.DockerClient:
    """Return a Docker engine that answers and has the images of the nodes."""
    if reason := unreachable():
        raise EngineUnavailableError("no Docker engine answers", reason)
    client = docker.from_env(timeout=300)
    try:
        provide_images(client)
    except DockerException as missing:
        raise EngineUnavailableError("the Docker engine lacks an image", str(missing)) from missing
    return client


def unreachable() -> str:
    """Return why no engine answers, or an empty string."""
    with warnings.catch_warnings():
        # A failed attempt leaves its socket to the garbage collector, which has to find it before the warning counts.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            docker.from_env().close()
        except DockerException as failure:
            reason = str(failure)
        else:
            reason = ""
        gc.collect()
    return reason


def provide_images(client: docker.DockerClient) -> None:
    try:
        client.images.get(SERVER_IMAGE)
    except ImageNotFound:
        client.images.pull(SERVER_IMAGE)
    client.images.build(path=str(Path(__file__).parent), tag=WORKER_IMAGE, rm=True)


class DockerNodes:
    """Redis and workers in containers of one Docker network."""

    def __init__(self, client: docker.DockerClient, network: Network, port: int, folder: Path) -> None:
        self._client = client
        self._network = network
        self._folder = folder
        self._lives: dict[str, ContainerLife] = {}
        self.server = DockerServer(port, partial(self._run, SERVER_IMAGE, "redis")).start()

    def url(self, db: int) -> str:
        return f"redis://{self._full_name('redis')}:{self.server.port}/{db}"

    def python(self, name: str, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> Running:
        return self._run(WORKER_IMAGE, name, ["python", *arguments], log, self._folder, env=env)

    def close(self) -> None:
        self.server.close()
        for life in self._lives.values():
            life.remove()

    def _run(
        self,
        image: str,
        name: str,
        command: Sequence[str],
        log: Path,
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Running:
        """Begin a life of the program `name`, in place of its last one; the log is a file in the folder."""
        if name in self._lives:
            self._lives.pop(name).remove()
        container = self._client.containers.run(
            image,
            name=self._full_name(name),
            entrypoint=["sh", "-c", 'exec "$@" >>"$0" 2>&1', str(log)],
            command=list(command),
            environment=dict(env or {}),
            network=self._network.name,
            ports={f"{port}/tcp": ("127.0.0.1", port)} if port else {},
            user=f"{os.getuid()}:{os.getgid()}",  # the owner of what is written to the folder
            volumes=[f"{PROJECT}:{PROJECT}:ro", f"{folder}:{folder}:rw"],
            working_dir=str(PROJECT),
            detach=True,
        )
        self._lives[name] = ContainerLife(container)
        return self._lives[name]

    def _full_name(self, name: str) -> str:
        return f"{self._network.name}-{re.sub('[^a-z0-9]', '-', name)}"


class DockerServer(RedisServer):
    """A server in a container, on the same port inside and outside of it."""

    def __init__(self, port: int, run: Callable[..., Running]) -> None:
        super().__init__(port=port, appendonly=True)
        self._run = run

    def launch(self) -> Running:
        return self._run(["redis-server", *self.options()], self.log, self.directory, port=self.port)

    def options(self) -> list[str]:
        # All addresses of the container, of which this machine sees one port.
        return [*super().options(), "--bind", "0.0.0.0", "--protected-mode", "no"]  # noqa: S104


class ContainerLife(CeleryTestContainer):
    """A container, process by process; the ids are those inside of it."""

    pid = 1

    @property
    def exit_code(self) -> int | None:
        self.reload()
        state = self.attrs["State"]
        return None if state["Running"] else state["ExitCode"]

    def children(self) -> list[int]:
        output = self.exec_run(["cat", f"/proc/{self.pid}/task/{self.pid}/children"]).output
        return sorted(int(pid) for pid in output.split())

    def send(self, number: signal.Signals) -> None:
        self._container.kill(signal=number.name)

    def kill_child(self, pid: int) -> None:
        assert pid in self.children(), f"{pid} is no child of {self.pid}, but {self.children()} are"
        self.exec_run(["sh", "-c", f"kill -KILL {pid}"])

    def wait(self, deadline: float) -> int:
        return self._container.wait(timeout=deadline)["StatusCode"]

    def kill(self) -> None:
        if self.exit_code is None:
            self.send(signal.SIGKILL)
            self.wait(deadline=10)

    def remove(self) -> None:
        self._container.remove(force=True)
