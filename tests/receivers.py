"""Receivers of Celery's signals, and observers of happenings, for as long as a test listens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

from celery.utils.dispatch import Signal

from celery_durable import happenings
from celery_durable.signals import SIGNALS


@contextmanager
def receiver(signal: Signal) -> Iterator[Mock]:
    """Connect a receiver to a signal; it knows what it was called with."""
    listener = Mock(return_value=None)
    signal.connect(listener, weak=False)
    try:
        yield listener
    finally:
        signal.disconnect(listener)


@contextmanager
def observed() -> Iterator[list[tuple[str, Any, Any]]]:
    """Yield what an observer is told: what has happened, the record of the run, and that of the step or None.

    What has no signal, and is only measured, is left out.
    """
    told: list[tuple[str, Any, Any]] = []

    def note(happening: str, run: Any, step: Any) -> None:
        told.append((happening, run, step))

    happenings.observe(note, SIGNALS)
    try:
        yield told
    finally:
        happenings.forget(note)
