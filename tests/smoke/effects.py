"""What step actions leave in the world: counted executions, and gates that hold an execution where a test wants it.

Steps run in worker processes, tests in their own; both import this module. All of it is in files of one folder, so
that it survives whatever a test does to workers and to Redis, and works from every pool and process.
"""

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from tests.waiting import POLL_INTERVAL, eventually

FOLDER_VARIABLE = "DURABLE_TEST_EFFECTS"
LONGEST_BLOCK = 90
"""Seconds after which a held execution fails, so that no process waits for a test that has ended."""


@dataclass(frozen=True)
class Hit:
    """One execution: for which key, in which process (`pid`), when (`at`, seconds of the machine's clock)."""

    key: str
    pid: int
    at: float


def hit(name: str, key: object = "") -> int:
    """Count one execution of the action `name`; return how many there have been with this key.

    An action that is to fail twice says `if hit("charge", task_id) <= 2: raise ...`.
    """
    key = str(key)
    with _file(name, "hits").open("a+", encoding="utf-8") as file, _locked(file, fcntl.LOCK_EX):
        file.write(json.dumps(asdict(Hit(key, os.getpid(), time.time()))) + "\n")
        file.flush()
        file.seek(0)
        return sum(json.loads(line)["key"] == key for line in file)


@contextmanager
def _locked(file: TextIO, how: int) -> Iterator[None]:
    """Hold the lock of a file. To close the file is not enough: a process that is forked meanwhile has it open, too."""
    fcntl.flock(file, how)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def hits(name: str, key: object = None) -> list[Hit]:
    """Return the executions of an action so far, all or those with this key, in their order."""
    try:
        # A line that is being written is half there.
        with _file(name, "hits").open(encoding="utf-8") as file, _locked(file, fcntl.LOCK_SH):
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    found = [Hit(**json.loads(line)) for line in lines]
    return [one for one in found if key is None or one.key == str(key)]


def count(name: str, key: object = None) -> int:
    """Return the number of executions of an action so far, of all or of those with this key."""
    return len(hits(name, key))


def counts(*names: str, key: object = None) -> list[int]:
    """Return this number for each of several actions."""
    return [count(name, key) for name in names]


def keys(name: str) -> list[str]:
    """Return what the executions of an action were counted for, in their order."""
    return [hit.key for hit in hits(name)]


def executions(name: str) -> list[int]:
    """Return how often an action was executed for each key, in the order of their first executions."""
    all_keys = keys(name)
    return [all_keys.count(key) for key in dict.fromkeys(all_keys)]


def block(name: str) -> None:
    """In a step: report that the gate `name` has been reached, and wait there until the test releases it."""
    for _ in _closed(name):
        time.sleep(POLL_INTERVAL)


async def block_async(name: str) -> None:
    """In an async step: the same."""
    for _ in _closed(name):
        await asyncio.sleep(POLL_INTERVAL)


def release(name: str) -> None:
    """In a test: open a gate, for who waits there and for who comes later."""
    _file(name, "released").touch()


def wait_until_blocked(name: str, times: int = 1, deadline: float = 20) -> Hit:
    """In a test: wait until the gate has been reached this often; return who reached it last."""
    reached = f"{name}.gate"
    eventually(lambda: count(reached) >= times, deadline, what=f"execution {times} at the gate {name!r}")
    return hits(reached)[times - 1]


def _closed(name: str) -> Iterator[None]:
    """Report the gate as reached; yield as long as it is closed."""
    hit(f"{name}.gate")
    give_up_at = time.monotonic() + LONGEST_BLOCK
    while not _file(name, "released").exists():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"nobody released the gate {name!r}")
        yield


def _file(name: str, kind: str) -> Path:
    return Path(os.environ[FOLDER_VARIABLE]) / f"{name}.{kind}"
