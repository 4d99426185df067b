"""What a worker's main process makes of a message for a durable task."""

from __future__ import annotations

import json
import pickle
import time
from typing import Any
from unittest import mock

import pytest
from celery import Celery, Task
from celery.app.task import Context
from celery.app.trace import trace_task_ret
from celery.worker.request import Request

from celery_durable import DurableContext, DurableTask, durable_task
from celery_durable.delivery.message import ARGUMENTS, received_at
from celery_durable.worker.request import DurableRequest


@pytest.fixture
def task(app: Celery) -> DurableTask[Any, Any]:
    @app.task(name="request.same", base=DurableTask)
    def same(x: int) -> int:
        return x

    return app.tasks["request.same"]


def delivered(kind: type[Request], task: DurableTask[Any, Any], args: Any = (1,)) -> Request:
    """A request of Celery's, of a message as its Redis transport gives it."""
    payload = [list(args), {}, {}]
    message: Any = mock.Mock(
        headers={
            "id": "42",
            "task": task.name,
            "root_id": "42",
            "parent_id": None,
            "retries": 0,
            "headers": {"a": "b"},
        },
        body=json.dumps(payload).encode(),
        payload=payload,
        content_type="application/json",
        content_encoding="utf-8",
        delivery_info={"exchange": "", "routing_key": "celery", "redelivered": False},
        properties={"correlation_id": "42", "reply_to": "client", "priority": 0, "delivery_mode": 2},
    )
    return kind(message, app=task.app, task=task, hostname="worker")


def test_when_a_message_arrived_is_known_where_the_task_runs_and_shown_to_nobody(task: DurableTask[Any, Any]) -> None:
    before = time.monotonic()
    durable, plain = delivered(DurableRequest, task), delivered(Request, task)
    after = time.monotonic()

    ours, celerys = (Context(request.request_dict) for request in (durable, plain))  # type: ignore[attr-defined]

    assert before <= received_at(ours) <= after
    assert durable.info() == plain.info()  # of `celery inspect active`, and of Flower
    assert ours.delivery_info == celerys.delivery_info
    assert ours.headers == celerys.headers == {"a": "b"}
    assert ours.as_execution_options() == celerys.as_execution_options()
    assert vars(ours).keys() == vars(celerys).keys()


def test_a_message_that_is_read_twice_keeps_what_it_said(task: DurableTask[Any, Any]) -> None:
    """Its properties are the broker's."""
    request = delivered(DurableRequest, task)

    assert set(request.message.properties) == {"correlation_id", "reply_to", "priority", "delivery_mode"}  # type: ignore[attr-defined]


class Counting(Request):
    """A request class as Celery's documentation shows one."""

    timeouts = 0

    def on_timeout(self, soft: bool, timeout: float) -> None:
        super().on_timeout(soft, timeout)
        type(self).timeouts += 1


class BaseOfTheFleet(Task):  # type: ignore[type-arg]
    abstract = True
    Request = f"{__name__}:Counting"


@pytest.mark.parametrize("made_by", ["decorator", "base class"])
def test_a_request_class_of_the_users_own_is_used_and_durable(app: Celery, made_by: str) -> None:
    def counted(ctx: DurableContext) -> None: ...

    if made_by == "decorator":
        durable_task(name="request.counted", base=BaseOfTheFleet)(counted)
    else:
        mixed = type("Mixed", (DurableTask, BaseOfTheFleet), {"abstract": True})
        app.task(name="request.counted", base=mixed)(counted)
    task = app.tasks["request.counted"]

    for _ in range(2):  # a worker that has lost its broker begins again
        task.start_strategy(app, mock.MagicMock(app=app))
    request: Any = delivered(task.Request, task)
    with mock.patch.object(request, "_terminate_run") as terminated:
        request.on_timeout(soft=False, timeout=1)

    theirs_comes_last = ["Counting", "DurableRequest", "OpenRequest", "Counting"]
    assert [kind.__name__ for kind in task.Request.__mro__[:4]] == theirs_comes_last
    terminated.assert_called_once()
    assert request.timeouts == 1


def test_the_arguments_are_known_apart_from_those_that_the_body_is_given(app: Celery) -> None:
    """They travel to a process of the pool with the message, from which the body's are read there."""
    seen: list[Any] = []

    @app.task(name="request.grows", base=DurableTask, bind=True)
    def grows(self: Any, items: list[int]) -> None:
        items.append(2)
        seen.extend([items, self.request.properties[ARGUMENTS]])

    request: Any = delivered(DurableRequest, app.tasks["request.grows"], [[1]])
    name, uuid, facts, body, kind, encoding = pickle.loads(  # noqa: S301
        pickle.dumps((request.type, "42", request.request_dict, request.body, request.content_type, "utf-8"))
    )
    failed, value, _ = trace_task_ret(name, uuid, facts, body, kind, encoding, app=app)

    assert (failed, value) == (0, "None")
    assert seen == [[1, 2], ([[1]], {})]


def test_the_request_class_is_ours_where_the_user_has_none(task: DurableTask[Any, Any]) -> None:
    task.start_strategy(task.app, mock.MagicMock(app=task.app))

    assert task.Request is DurableRequest


@pytest.mark.parametrize("end", ["revoked", "hard time limit"])
def test_a_setting_that_is_wrong_does_not_end_the_worker(task: DurableTask[Any, Any], end: str) -> None:
    """A ``durable_exchange`` of the user's own, say: it fails the durable tasks, each with a message."""
    task.app.conf.durable_exchange = "orders"
    request: Any = delivered(DurableRequest, task)

    with (
        mock.patch.object(Request, "_announce_revoked", autospec=True) as revoked,
        mock.patch.object(Request, "on_timeout", autospec=True) as timed_out,
    ):
        if end == "revoked":
            request._announce_revoked("revoked", False, None, False)  # noqa: SLF001
        else:
            request.on_timeout(False, 5)

    assert revoked.call_count + timed_out.call_count == 1
