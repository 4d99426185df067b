"""A real RabbitMQ for tests: on free ports of this machine, with an Erlang port mapper and a folder of its own."""

import os
import shutil
import tempfile
from pathlib import Path

import kombu
from typing_extensions import Self

from tests.processes import Process, Running
from tests.servers import ServerUnavailableError, free_port
from tests.waiting import eventually

STARTUP = 60
"""Seconds: Erlang takes a few, on a busy machine many."""

# What packages put on PATH changes to the user `rabbitmq`; the program itself runs as anybody.
_PACKAGED = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def rabbitmq_program() -> Path:
    """Find the server.

    Raises:
        ServerUnavailableError: there is none, or no `epmd`.
    """
    found = shutil.which("rabbitmq-server")
    if not found or not shutil.which("epmd"):
        raise ServerUnavailableError("no rabbitmq-server and epmd on PATH")
    return _PACKAGED if _PACKAGED.exists() else Path(found)


class RabbitMQ:
    """A broker without plugins; `guest` may do everything."""

    def __init__(self) -> None:
        self.program = rabbitmq_program()
        self.directory = Path(tempfile.mkdtemp(prefix="durable-rabbitmq-"))
        self.port, self._distribution_port, self._mapper_port = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._processes: list[Running] = []

    def start(self) -> Self:
        """Start the broker and wait until it takes connections."""
        try:
            # Started by the broker it would be a daemon that outlives it.
            self._run("epmd", ["epmd", "-port", str(self._mapper_port), "-address", "127.0.0.1"])
            self._run("rabbitmq", [self.program])
            eventually(self._answers, STARTUP, what="an answer of RabbitMQ")
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End the broker and remove its data."""
        for process in reversed(self._processes):
            process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def messages(self, queue: str) -> int:
        """Return how many messages wait in a queue; those that a worker holds are not among them."""
        with kombu.Connection(self.url) as connection, connection.channel() as channel:
            return channel.queue_declare(queue, passive=True).message_count

    def _run(self, name: str, command: list[str | Path]) -> None:
        self._processes.append(Process(command, self.directory / f"{name}.log", self._environment()))

    def _environment(self) -> dict[str, str]:
        folder = str(self.directory)
        return {
            "HOME": folder,  # of Erlang's cookie
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": f"{folder}/crash",
            "RABBITMQ_NODENAME": f"durable{os.getpid()}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": folder,
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/environment",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _answers(self) -> bool:
        for process in self._processes:
            if process.exit_code is not None:
                logs = "\n".join(log.read_text(errors="replace") for log in self.directory.glob("*.log"))
                raise ServerUnavailableError(f"RabbitMQ did not start:\n{logs}")
        with kombu.Connection(self.url, connect_timeout=2) as connection:
            try:
                connection.connect()
            except OSError:
                return False
            return True
