"""A process of the demo with all its children: started in a group of its own, and ended as one."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path


class Process:
    """*command*, running in *directory* until `kill`; what it says goes to the end of the file *log*."""

    def __init__(self, command: list[str], directory: Path, log: Path, environ: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            # In a session of its own: Ctrl-C in the terminal reaches the demo alone, which ends the others.
            self._leader = subprocess.Popen(  # noqa: S603 - the commands are the demo's own
                command,
                cwd=directory,
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The number of the process, and of its group."""
        return self._leader.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._leader.poll()

    def kill(self) -> None:
        """SIGKILL the whole group, and return when none of it can do anything any more."""
        self._signal_group(signal.SIGKILL)
        self._leader.wait()
        # Where nobody reaps orphans the dead stay listed: do not wait for them for long.
        end = time.monotonic() + 1.0
        while self._signal_group(0) and time.monotonic() < end:
            time.sleep(0.01)

    def _signal_group(self, number: int) -> bool:
        """Whether there was anyone to signal; number 0 asks just that."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # the second is what macOS answers when all are dead
            return False
        return True
