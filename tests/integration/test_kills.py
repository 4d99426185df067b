"""What a worker's main process makes of a child that was lost: as the journal knows how far its run had come."""

import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from billiard.einfo import ExceptionInfo
from celery import Celery, signals
from celery.exceptions import WorkerLostError

from celery_durable.app.store import store_of
from tests.integration.runs import execute, new_id, request_of, task_of
from tests.receivers import receiver


@pytest.fixture
def failures() -> Iterator[Mock]:
    """Who listens for failed tasks."""
    with receiver(signals.task_failure) as listener:
        yield listener


def succeeds(self: Any) -> str:
    return str(self.ctx.uuid())


def sleeps(self: Any) -> None:
    self.ctx.sleep(60)


def events_of_the_loss(task: Any, task_id: str, by: type[BaseException] = WorkerLostError) -> list[str]:
    """Lose the process of a task, this one; return what monitors hear of it."""
    eventer = Mock()
    request = request_of(task, task_id, hostname="worker", eventer=eventer)
    request.worker_pid = os.getpid()
    with pytest.raises(by) as lost:
        raise by("lost")
    request.on_failure(ExceptionInfo((lost.type, lost.value, lost.tb)))
    assert request.acknowledged is task.acks_late
    return [call.args[0] for call in eventer.send.call_args_list]


@pytest.mark.parametrize("by", [WorkerLostError, SystemExit])
@pytest.mark.parametrize("acks_late", [True, False])
@pytest.mark.parametrize("ignore_result", [True, False])
def test_a_process_that_is_lost_when_all_was_done_has_succeeded(
    app: Celery, failures: Mock, acks_late: bool, ignore_result: bool, by: type[BaseException]
) -> None:
    """As in plain Celery, which does not know it of an ignored result."""
    task = task_of(app, succeeds, acks_late=acks_late, ignore_result=ignore_result)
    task_id = new_id()
    assert execute(task, task_id=task_id) == "SUCCESS"

    assert events_of_the_loss(task, task_id, by) == ["task-succeeded"]
    assert failures.call_count == 0


def test_a_process_that_is_lost_when_its_run_sleeps_has_neither_failed_nor_succeeded(
    app: Celery, failures: Mock, redis_client: redis.Redis
) -> None:
    task = task_of(app, sleeps)
    task_id = new_id()
    assert execute(task, task_id=task_id) == "IGNORED"

    assert events_of_the_loss(task, task_id) == []
    assert failures.call_count == 0
    assert redis_client.hget(store_of(app).keys(task_id).run, "status") == "suspended"
