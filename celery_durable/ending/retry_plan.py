"""When a run is tried again, and who keeps that wait: decided once, and logged when it is final."""

from __future__ import annotations

import logging
from enum import Enum
from typing import NamedTuple

from celery_durable.delivery import message
from celery_durable.invocation.invocation import Invocation

logger = logging.getLogger("celery_durable")


class Carrier(Enum):
    """Who keeps a wait."""

    BROKER = "the broker"
    JOURNAL = "the journal"
    CALLER = "nobody"
    """An eager run does not wait: its caller executes it again at once."""


class RetryPlan(NamedTuple):
    """When a run is tried again."""

    delay: float
    """Seconds."""
    carrier: Carrier
    slack: float
    """Seconds after that, until a worker sends a run that no message has brought back."""
    reason: str

    def log(self, task_id: str) -> None:
        """Say when the run goes on; of a delay by a policy that was said with the failure."""
        logger.info(
            "task %s: %s: the next attempt follows in %g s, kept by %s",
            task_id, self.reason, self.delay, self.carrier.value,
        )  # fmt: skip


def plan(invocation: Invocation, delay: float, reason: str) -> RetryPlan:
    """What becomes of a delay: the broker keeps a short one, the journal a long one."""
    assert invocation.session is not None  # noqa: S101
    settings = invocation.session.settings
    if invocation.eager:
        return RetryPlan(0.0, Carrier.CALLER, settings.lease, reason)
    delay = message.sendable_delay(invocation.task.app, delay)
    if delay > settings.max_broker_delay:
        return RetryPlan(delay, Carrier.JOURNAL, 0.0, reason)
    return RetryPlan(delay, Carrier.BROKER, settings.lease, reason)
