"""Signals that hit any line of a test's own thread, as a time limit's signal does."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType


class Struck(Exception):
    """What a time limit's signal raises."""


def raise_struck(frame: FrameType | None) -> None:
    raise Struck


@contextmanager
def alarms(delays: Iterable[float], strike: Callable[[FrameType | None], None] = raise_struck) -> Iterator[None]:
    """After each of `delays` (in seconds) the line that runs then is struck.

    There is one such timer in a process, and pytest-timeout uses it, too: it gets it back, with what was left of its
    time. An alarm that rings while this one ends must not set the timer again, or the test is told that it took too
    long.
    """
    pending = iter(delays)
    over = False

    def ring(_: int, frame: FrameType | None) -> None:
        if not over:
            signal.setitimer(signal.ITIMER_REAL, next(pending, 0))
            strike(frame)

    usual = signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, next(pending, 0))
    begun = time.monotonic()
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), 0.001))
