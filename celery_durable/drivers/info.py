"""What an attempt knows of its task."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

logger = logging.getLogger("celery_durable")


class TaskInfo(NamedTuple):
    """The task that an attempt belongs to, as its code and its steps see it."""

    task_id: str
    task: str
    request: Any = None
    logger: logging.Logger = logger
    direct: bool = False
    """The task was called as a function: there are no retries, and errors pass as they are."""
    eager: bool = False
    """The task runs eagerly, and never waits."""
    control_flow: tuple[type[BaseException], ...] = ()
    """Exceptions by which user code says what becomes of the task. They are no failures of a step."""
    limits: tuple[type[BaseException], ...] = ()
    """Exceptions that come from outside, once, wherever the code is: Celery's soft time limit."""
    atomic_blocks: Mapping[str, int] = MappingProxyType({})
    """The blocks that Django's connections were in when the task was called. They are the caller's."""

    @property
    def is_local(self) -> bool:
        """Whether the caller runs the task, and no worker: a test, for example, whose thread has the connections."""
        return self.direct or self.eager
