"""Keeps the process from forking while a thread works with locks.

A child process inherits a lock as it is, but not the thread that holds it. So the child would wait for ever. redis-py
and kombu have such locks.
"""

from __future__ import annotations

import os
import threading

_LONGEST = 2.0
"""The longest time for which a fork waits, in seconds."""


class _NoFork:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held_by_fork = False
        os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._start_over)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def _before(self) -> None:
        self._held_by_fork = self._lock.acquire(timeout=_LONGEST)

    def _after(self) -> None:
        if self._held_by_fork:
            self._lock.release()

    def _start_over(self) -> None:
        self._lock = threading.Lock()


no_fork = _NoFork()
"""``with no_fork:`` the process does not fork inside this block."""
