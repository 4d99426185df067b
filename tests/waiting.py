"""How tests wait: for a condition, up to a deadline, never for a length of time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_INTERVAL = 0.02
"""Seconds between two looks: short beside what is waited for, long enough to leave the CPU to it."""


def eventually(condition: Callable[[], T], deadline: float = 15, *, what: str = "") -> T:
    """Return the first truthy value of `condition()`; fail when there is none within `deadline` seconds.

    What `condition` raises is not caught: it is how a condition says that waiting has become pointless.
    `what` completes the sentence "waited in vain for ..." of the failure.
    """
    give_up_at = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= give_up_at:
            what = what or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"waited in vain for {what} during {deadline} s; last seen: {value!r}")
        time.sleep(POLL_INTERVAL)
