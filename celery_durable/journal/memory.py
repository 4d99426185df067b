"""The shortest implementation of a journal: in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping

from .layout import UNBRANCHED, Fields, Status, Wait, new_seed
from .port import NO_RESULT, Delivery, Finished, Opened, OpenResult, Reserve, Result, alone

_NOT_REOPENED = (Status.SUCCEEDED.encode(), Status.FAILED.encode())


class MemoryJournal:
    """A run in this process only: for direct calls, eager mode and unit tests. It never waits and is never fenced."""

    owner = ""
    lease_in_doubt = False
    has_pending = False
    cancel_requested = False

    def __init__(self) -> None:
        self.fields: Fields = {}

    def open(self, delivery: Delivery, reserve: Reserve = alone) -> OpenResult:  # noqa: ARG002
        fields = self.fields
        if fields.get(b"status") in _NOT_REOPENED:
            return Finished(fields)
        if not fields:
            said = {"task": delivery.task, "call": delivery.call, "build": delivery.build}
            self.send({"v": UNBRANCHED, **said, "seed": new_seed()})
        number = int(fields.get(b"attempt", 0)) + 1
        self.send({"attempt": str(number), "status": Status.RUNNING})
        return Opened(number, int(time.time() * 1000), 0, False, dict(fields))

    def send(self, fields: Mapping[str, str], *, with_next: bool = False) -> None:  # noqa: ARG002
        self.fields.update({name.encode(): value.encode() for name, value in fields.items()})

    def record_aside(self, fields: Mapping[str, str]) -> bool:
        self.send(fields)
        return True

    def flush(self) -> None: ...

    def flush_if_connected(self) -> bool:
        return True

    def spin_wait(self) -> bool:
        return True

    def fileno(self) -> int | None:
        return None

    def prove_lease(self) -> None: ...

    def by_redis(self, moment: float) -> float | None: ...

    def look_for_cancellation(self) -> None: ...

    def suspend(
        self,
        delay: float,  # noqa: ARG002
        fields: Mapping[str, str],
        slack: float = 0.0,  # noqa: ARG002
        result: Result = NO_RESULT,  # noqa: ARG002
        *,
        waits: str = Wait.RETRY,  # noqa: ARG002
        though_cancelled: bool = False,  # noqa: ARG002
    ) -> bool:
        self.send({**fields, "status": Status.SUSPENDED})
        return True

    def finish(self, status: str, fields: Mapping[str, str]) -> None:
        self.send({**fields, "status": status})

    def conclude(self, fields: Mapping[str, str], keep: float, result: Result) -> bool:  # noqa: ARG002
        return False

    def deliver(self, keep: float, *, arrived: bool = True) -> None: ...

    def release(self, *, orderly: bool) -> None: ...

    def close(self) -> None: ...
