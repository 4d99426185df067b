"""The durable tasks of an app."""

from __future__ import annotations

from typing import Any

from .base import DurableTask


def durable_tasks(app: Any) -> dict[str, DurableTask[Any, Any]]:
    """The durable tasks that an app knows, by their names."""
    return {name: task for name, task in app.tasks.items() if isinstance(task, DurableTask)}
