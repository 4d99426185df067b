"""What a body draws (random numbers, UUIDs, times): the same on every attempt."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, TypeVar
from uuid import UUID

from celery_durable.drivers.pulse import Pulse
from celery_durable.exceptions import InvalidStepError
from celery_durable.journal.entries import damaged
from celery_durable.journal.layout import Fields

from .determinism import check_usable
from .outbox import Outbox
from .program_order import ProgramOrder

T = TypeVar("T")


class Draws:
    """The draws of one attempt."""

    def __init__(self, pulse: Pulse, seed: str, fields: Fields, order: ProgramOrder, outbox: Outbox) -> None:
        self._pulse = pulse
        self._seed = seed
        self._fields = fields
        self._order = order
        self._outbox = outbox
        self._numbers: dict[str, int] = {}
        self._randoms: dict[tuple[str, str | None], random.Random] = {}

    def random(self, name: str | None) -> random.Random:
        check_usable(self._pulse, draws=True)
        branch = self._path
        stream = self._randoms.get((branch, name))
        if stream is None:
            key = ":".join([self._seed, branch + "random", *([] if name is None else [name])])
            stream = self._randoms[branch, name] = random.Random(key)  # noqa: S311  documented as not for cryptography
        return stream

    def uuid(self) -> UUID:
        return self._drawn("uuid", lambda position: str(derived_uuid(self._seed, "uuid", position)), UUID)

    def time(self) -> int:
        return self._drawn("time", lambda _: str(time.time_ns() // 1_000_000), int)

    def datetime(self) -> datetime:
        return self._drawn("now", lambda _: datetime.now(timezone.utc).isoformat(), datetime.fromisoformat)

    def _drawn(self, kind: str, draw: Callable[[str], str], read: Callable[[str], T]) -> T:
        """The next value of its kind: as it is recorded, or drawn now, and recorded with the next write."""
        check_usable(self._pulse, draws=True)
        branch = f"{kind}:{self._path}"
        self._numbers[branch] = number = self._numbers.get(branch, 0) + 1
        field = f"{branch}{number}"
        recorded = self._fields.get(field.encode())
        if recorded is None:
            text = self._outbox.staged[field] = self._former(field) or draw(field.removeprefix(f"{kind}:"))
            return read(text)
        try:
            return read(recorded.decode())
        except ValueError:
            raise self._pulse.unreadable(damaged(field, recorded)) from None

    def _former(self, field: str) -> str | None:
        """What the run has drawn that this one restarts, until the code reaches the step from which it runs again."""
        former = self._restarted
        return None if former is None or self._order.has_reached(former["until"]) else former["drawn"].get(field)

    @cached_property
    def _restarted(self) -> dict[str, Any] | None:
        text = self._fields.get(b"former")
        return None if text is None else json.loads(text)

    @property
    def _path(self) -> str:
        """The path of the branch that draws."""
        try:
            return self._order.path
        except InvalidStepError as error:
            raise self._pulse.invalid(error) from None


def derived_uuid(seed: str, *path: object) -> UUID:
    """A version-4 UUID that depends on the seed and the path alone."""
    digest = hashlib.sha256(":".join([seed, *map(str, path)]).encode()).digest()
    return UUID(bytes=digest[:16], version=4)
