"""A spin wait: the thread looks for a reply for a moment, before it sleeps until the reply comes.

To put a thread to sleep and to wake it up takes more time, and more of the processor, than a Redis on the same machine
needs for its answer. If answers take longer than that, a spin wait is soon tried only for one reply in a thousand.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from time import perf_counter

_MOMENT = 50e-6
"""Seconds. To sleep and to be woken up takes about as long. So to look in vain costs twice that at most."""
_MOST_SKIPPED = 1000
"""Replies."""


class SpinWait:
    """The spin waits of one connection. One thread at a time uses it."""

    __slots__ = ("_arrived", "_pause", "_to_skip")

    def __init__(self, arrived: Callable[[int], list[tuple[int, int]]]) -> None:
        self._arrived = arrived
        self._pause = 0
        self._to_skip = 0

    @classmethod
    def over(cls, sock: socket.socket) -> SpinWait | None:
        """The spin waits of a socket. None on Windows, and with greenlets: others in the thread would have to wait."""
        if type(sock).__module__ != "socket" or not hasattr(select, "poll") or not hasattr(os, "sched_yield"):
            return None
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return cls(poll.poll)

    def spin(self) -> bool:
        """Return whether something has arrived, when it has, or when the moment is over."""
        if self._to_skip:
            self._to_skip -= 1
            return False
        end = perf_counter() + _MOMENT
        while True:
            os.sched_yield()  # Redis may wait for this very core
            arrived = self._arrived(0)
            if perf_counter() > end:
                # If the thread had slept, what has arrived by now would have woken it up at once.
                self._to_skip = self._pause = min(2 * self._pause + 1, _MOST_SKIPPED)
                return bool(arrived)
            if arrived:
                self._pause = 0
                return True
