"""The processes that tests start: each leads a session of its own, so that all of it is found, and ended, by id."""

import os
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil

from tests.waiting import eventually

PROJECT = Path(__file__).parents[1]

_sessions: set[int] = set()
"""The ids of all sessions that were started: what is left of one is found even when its leader has died."""


def end_as_by_ctrl_c() -> None:
    """Have the other signals that end this process unwind it, too, so that nothing it started is left behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


class Running(Protocol):
    """A program in one of its lives, wherever it runs."""

    @property
    def pid(self) -> int: ...
    @property
    def exit_code(self) -> int | None: ...
    def children(self) -> list[int]: ...
    def send(self, number: signal.Signals) -> None: ...
    def kill_child(self, pid: int) -> None: ...
    def wait(self, deadline: float) -> int: ...
    def kill(self) -> None: ...


class Process:
    """A program that runs in a session of its own and writes all its output to the file `log`.

    *options* are further ones of `subprocess.Popen`.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        env: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=PROJECT,
                start_new_session=True,
                **(options or {}),
            )
        _sessions.add(self.pid)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while the leader of the session runs."""
        return self._popen.poll()

    def children(self) -> list[int]:
        """The ids of the leader's child processes, oldest first."""
        try:
            found = psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return []
        return sorted(child.pid for child in found if is_running(child))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the leader alone, as an operator does."""
        self._popen.send_signal(number)

    def kill_child(self, pid: int) -> None:
        assert pid in self.children(), f"{pid} is no child of {self.pid}, but {self.children()} are"
        os.kill(pid, signal.SIGKILL)

    def wait(self, deadline: float) -> int:
        """Wait until the leader has ended; return its exit code."""
        return self._popen.wait(deadline)

    def kill(self) -> None:
        """End the whole session at once, as a power cut does."""
        self._popen.kill()  # the leader first, since it would replace its children
        eventually(lambda: end(members(self.pid)), what=f"the end of session {self.pid}")
        self._popen.wait()


def is_running(process: psutil.Process) -> bool:
    """Tell a live process from a zombie, which has ended and only awaits its parent."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def members(*sessions: int) -> list[psutil.Process]:
    """Return the live processes of these sessions."""
    return [process for process in psutil.process_iter() if session_of(process) in sessions and is_running(process)]


def session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return "(has just ended)"


def end(processes: Collection[psutil.Process]) -> bool:
    """Kill these processes by id; tell whether there was none."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return not processes


def alive() -> set[psutil.Process]:
    """Return all live processes that this test run has started, directly or through what it started."""
    descendants = psutil.Process().children(recursive=True)
    led = set(members(*_sessions))
    # The id of a session that is empty may be given to somebody else's process.
    _sessions.intersection_update([session_of(process) for process in led])
    return {process for process in descendants if is_running(process)} | led
