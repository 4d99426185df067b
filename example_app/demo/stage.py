"""The stage: which processes run, what the demo waits for, and the end of it all, also by Ctrl-C."""

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from example_app.demo.process import Process

LAST_LINES = 20


class DemoFailedError(Exception):
    """Something did not happen that had to happen."""


class Interrupted(Exception):
    """A signal told the demo to end; its number is the argument."""


class Stage:
    """Starts processes in *project*, each with a log in *directory*, until `close`.

    A signal is noted when it comes and acted upon in `wait_until`: an exception out of nowhere could strike
    between the start of a process and the line that takes note of it.
    """

    def __init__(self, project: Path, directory: Path, seconds: float) -> None:
        self.directory = directory
        self._project = project
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._running: list[Process] = []
        self._signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def close(self) -> None:
        """End whatever runs."""
        for process in reversed(self._running):
            process.kill()

    def start(self, name: str, command: list[str], environ: Mapping[str, str] | None = None) -> Process:
        """Run *command* with these variables on top of the demo's own; its log is called *name*."""
        process = Process(command, self._project, self.directory / f"{name}.log", environ or {})
        self._running.append(process)
        return process

    def kill(self, process: Process) -> None:
        """End one of them before the others."""
        process.kill()
        self._running.remove(process)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Look again and again, as long as everything runs and there is time."""
        self._check()
        while not condition():
            time.sleep(0.05)
            self._check()

    def _check(self) -> None:
        """Whether it makes sense to wait any longer."""
        if self._signal is not None:
            raise Interrupted(self._signal)
        for process in self._running:
            if process.exit_status is not None:
                raise DemoFailedError(f"{process.log.stem} has ended by itself:\n{_last_lines(process.log)}")
        if time.monotonic() > self._end:
            raise DemoFailedError(f"not finished after {self._seconds:.0f} s")

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = number


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
