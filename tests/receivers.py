"""Receivers of Celery's signals, for as long as a test listens."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import Mock

from celery.utils.dispatch import Signal


@contextmanager
def receiver(signal: Signal) -> Iterator[Mock]:
    """Connect a receiver to a signal; it knows what it was called with."""
    listener = Mock(return_value=None)
    signal.connect(listener, weak=False)
    try:
        yield listener
    finally:
        signal.disconnect(listener)
