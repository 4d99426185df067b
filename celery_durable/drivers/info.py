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
    """Called as a plain function: no retries, errors as they are."""
    eager: bool = False
    """Never wait."""
    control_flow: tuple[type[BaseException], ...] = ()
    """Exceptions by which user code says what becomes of the task: no failures of a step."""
    limits: tuple[type[BaseException], ...] = ()
    """Exceptions that come from outside, wherever the code is, and once: Celery's soft time limit."""
    atomic_blocks: Mapping[str, int] = MappingProxyType({})
    """Of Django's connections: those that whoever has called the task is in, which are not the task's."""

    @property
    def is_local(self) -> bool:
        """Whether it is no worker that runs the task, but its caller: a test, say, whose thread has its connections."""
        return self.direct or self.eager
