"""When a run is retried, and who keeps the wait until then. It is decided once, and logged when it is final."""

from __future__ import annotations

import logging
from enum import Enum
from typing import NamedTuple

from celery_durable.delivery import message
from celery_durable.invocation.invocation import Invocation

logger = logging.getLogger("celery_durable")


class Carrier(Enum):
    """Who keeps the wait until a retry."""

    BROKER = "the broker"
    JOURNAL = "the journal"
    CALLER = "its caller"
    """An eager run does not wait: its caller runs it again at once."""


class RetryPlan(NamedTuple):
    """When a run is retried, and who keeps the wait until then."""

    delay: float
    """Seconds until the retry."""
    carrier: Carrier
    slack: float
    """Seconds after that: if no message has brought the run back by then, a worker sends it."""
    reason: str

    def log(self, task_id: str) -> None:
        """Log when the next attempt follows, why, and who keeps the wait."""
        logger.info(
            "task %s: %s: the next attempt follows in %g s, kept by %s",
            task_id, self.reason, self.delay, self.carrier.value,
        )  # fmt: skip


def plan(invocation: Invocation, delay: float, reason: str) -> RetryPlan:
    """Plan a retry in *delay* seconds: the broker keeps a short wait, and the journal a long one."""
    assert invocation.session is not None  # noqa: S101
    settings = invocation.session.settings
    if invocation.eager:
        return RetryPlan(0.0, Carrier.CALLER, settings.lease, reason)
    delay = message.sendable_delay(invocation.task.app, delay)
    if delay > settings.max_broker_delay:
        return RetryPlan(delay, Carrier.JOURNAL, 0.0, reason)
    return RetryPlan(delay, Carrier.BROKER, settings.lease, reason)
