"""Whole tasks without a worker: made of a body, and executed by ``apply()`` in Celery's eager mode."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from celery import states
from celery.result import EagerResult

from celery_durable import (
    DurableContext,
    RunOptions,
    durable_task,
)
from tests.unit.conftest import Action

needs_task_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 has brought task groups")
SLOW = RunOptions(initial_retry_interval=3600, max_attempts=3)


def applied(body: Callable[..., Any], *args: Any, **options: Any) -> EagerResult[Any]:
    """The result of a durable task made of *body*, in eager mode."""
    return durable_task(**options)(body).apply(args)


def failure_of(result: EagerResult[Any], kind: type[BaseException]) -> Any:
    """The exception by which the task failed."""
    assert result.state == states.FAILURE
    assert type(result.result) is kind, repr(result.result)
    return result.result


def body_of(action: Action) -> Callable[[DurableContext], Any]:
    def body(ctx: DurableContext) -> Any:
        return action()

    return body
