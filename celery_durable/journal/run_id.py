"""The id of a run, as people and programs give it."""

from __future__ import annotations


def checked_id(task_id: object, refusal: type[Exception]) -> str:
    """An id that somebody has given.

    Raises:
        refusal: it is no text, or it is empty.
    """
    if not (isinstance(task_id, str) and task_id):
        raise refusal(f"the id of a task is a text, got {task_id!r}")
    return task_id


def no_journal(task_id: str) -> str:
    """How it is told that a run has no journal."""
    return (
        f"task {task_id} has no journal: is the id right? The task has not begun, is not durable, has never used its "
        f"context, or its journal has expired or was purged"
    )
