"""Actions of steps, for the tasks of every app: each counts its execution in `effects`, by the name of its step."""

import os
import signal
from collections.abc import Callable
from typing import Any

from celery_durable import current_step
from tests.smoke import effects


def count_execution() -> int:
    """Count this execution of the step; return which one it is."""
    step = current_step()
    return effects.hit(step.name, step.task_id)


def work() -> int:
    """Return the process."""
    count_execution()
    return os.getpid()


def held() -> int:
    """Wait at the gate of the step's name; return the process."""
    pid = work()
    effects.block(current_step().name)
    return pid


def fail_once() -> int:
    """Return which execution this is; the first one fails."""
    return fail(1)


def fail(failures: int) -> int:
    """Fail so many executions; return which one this is."""
    number = count_execution()
    if number <= failures:
        raise ConnectionError(f"failure {number}")
    return number


def named(action: Callable[[], Any]) -> str:
    """Return the name of the step whose action does this."""
    action()
    return current_step().name


def die() -> None:
    """End this process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
