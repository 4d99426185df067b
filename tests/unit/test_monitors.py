"""What a worker's main process says of a run where Celery says nothing."""

from __future__ import annotations

import pickle
from unittest.mock import Mock, call

import pytest

from celery_durable import TaskCancelled
from celery_durable.delivery.announcement import Announcement
from celery_durable.delivery.backend import SUSPENDED


@pytest.mark.parametrize(("seconds", "said"), [(3600, [call("task-suspended", until="soon")]), (0, [])])
def test_a_wait_that_is_over_is_no_news(seconds: float, said: list[object]) -> None:
    """Code after the task has taken so long that another worker may have said that the run goes on."""
    request = Mock()
    # As it comes from a process of the pool.
    pickle.loads(pickle.dumps(Announcement.of_wait(SUSPENDED, {"until": "soon"}, seconds))).publish(request)  # noqa: S301
    assert request.send_event.call_args_list == said


def test_what_a_run_was_cancelled_by_stays_in_its_process() -> None:
    class Unpicklable(TaskCancelled):
        def __reduce__(self) -> str:
            raise TypeError

    said = Announcement.of_cancellation(Unpicklable())
    received = pickle.loads(pickle.dumps(said))  # noqa: S301
    assert (str(received), received.event, received.error) == (str(said), "task-revoked", None)
