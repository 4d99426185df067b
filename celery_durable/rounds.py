"""Work in rounds: one thread of this process makes a round whenever one is due, and sleeps in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import inf


class Rounds:
    """The rounds of one kind. The first call of :meth:`expect` starts their thread."""

    def __init__(self, name: str, make_round: Callable[[], float]) -> None:
        """*make_round* does what is due, and says when the next round is, by the monotonic clock (``inf``: unknown)."""
        self._name = name
        self._make_round = make_round
        self.start_over()

    def start_over(self) -> None:
        """Begin without a thread. A forked child does so: the thread of its parent is not here."""
        self._thread: threading.Thread | None = None
        self._runs = False
        """Whether the thread runs. It says so itself: to ask it takes a microsecond of each attempt."""
        self._starting = threading.Lock()
        self._bell = threading.Event()
        self._sleeps_until = inf

    def expect(self, when: float) -> None:
        """Make a round at this monotonic time, or before."""
        if not self._runs:
            # A thread may have ended, and one that could not be started has never lived: each call tries it again.
            self._start()
        elif when < self._sleeps_until:
            self._bell.set()

    def _start(self) -> None:
        # Without the lock, two attempts that begin side by side would start two threads.
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                # It is a daemon, so it keeps no process from ending.
                self._thread = threading.Thread(target=self._keep_on, name=self._name, daemon=True)
                self._thread.start()

    def _keep_on(self) -> None:
        with self._starting:
            if self._thread is not threading.current_thread():
                return  # a time limit struck while this thread was started, and another one was started in its place
            self._runs = True
        try:
            while True:
                self._bell.clear()
                # From now on each call of `expect` rings the bell: it may come too late for this round.
                self._sleeps_until = inf
                self._sleeps_until = until = self._make_round()
                self._bell.wait(None if until == inf else max(0.0, until - time.monotonic()))
        finally:
            with self._starting:
                self._runs = False
