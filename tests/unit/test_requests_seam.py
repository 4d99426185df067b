"""What Celery keeps to itself of a worker's requests: each name that is used fails here when it is not what it was."""

from __future__ import annotations

import inspect
import json
import os
import time
from collections.abc import Container
from datetime import datetime, timedelta, timezone
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, states
from celery.app.task import Context
from celery.exceptions import WorkerLostError
from celery.worker import WorkController
from celery.worker import state as worker_state
from celery.worker.consumer.consumer import Consumer
from celery.worker.request import Request, create_request_cls

from celery_durable.seams.requests import OpenRequest, all_of, request_class
from celery_durable.worker.bootstep import RecoveryStep


class Noted(OpenRequest):
    """Notes which of its methods Celery calls, and with what."""

    stored: Any = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[tuple[str, Any]] = []

    def announce_cancelled(self, *, emit_retry: bool) -> None:
        self.calls.append(("cancelled", emit_retry))
        super().announce_cancelled(emit_retry=emit_retry)

    def announce_revoked(self, reason: str, *, terminated: bool, signum: Any, expired: bool) -> None:
        self.calls.append(("revoked", (reason, terminated, signum, expired)))
        super().announce_revoked(reason, terminated=terminated, signum=signum, expired=expired)

    def stored_success(self) -> Any:
        found = super().stored_success()
        self.calls.append(("stored", found))
        return self.stored or found

    def maybe_expire(self) -> Any:
        expired = super().maybe_expire()
        self.calls.append(("expired", expired))
        return expired

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  Celery's name for it
        self.calls.append(("event", type))
        super().send_event(type, **fields)

    def of(self, kind: str) -> list[Any]:
        return [what for name, what in self.calls if name == kind]


@pytest.fixture
def task(app: Celery) -> Any:
    @app.task(name="seam.same", shared=False, acks_late=True)
    def same(x: int) -> int:
        return x

    return app.tasks["seam.same"]


@pytest.fixture
def request_of(task: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes requests of messages; what a worker notes of them is forgotten."""
    for name in ("revoked", "reserved_requests", "active_requests", "requests"):
        monkeypatch.setattr(worker_state, name, type(getattr(worker_state, name))())
    revoked = worker_state.revoked
    monkeypatch.setattr("celery.worker.request.revoked_tasks", revoked)

    def made(kind: type[Request] = Noted, **headers: Any) -> Any:
        payload = [[1], {}, {"chain": None}]
        message: Any = mock.Mock(
            headers={
                "id": str(uuid4()),
                "task": task.name,
                "root_id": "42",
                "parent_id": None,
                "retries": 0,
                **headers,
            },
            body=json.dumps(payload).encode(),
            payload=payload,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_info={"exchange": "", "routing_key": "celery", "redelivered": False},
            properties={"correlation_id": "42"},
        )
        return kind(
            message,
            app=task.app,
            task=task,
            hostname="worker",
            on_ack=mock.Mock(),
            on_reject=mock.Mock(),
            eventer=mock.Mock(),
        )

    return made


def lost() -> ExceptionInfo:
    try:
        raise WorkerLostError("it was killed")  # noqa: TRY301
    except WorkerLostError:
        return ExceptionInfo()


@pytest.mark.parametrize("emit_retry", [True, False])
def test_celery_announces_here_that_it_cancels_a_task(task: Any, request_of: Any, emit_retry: bool) -> None:
    """At a cold shutdown."""
    request = request_of()
    request.on_accepted(os.getpid(), time.monotonic())
    assert not request.was_stopped

    request.cancel(mock.Mock(), emit_retry=emit_retry)

    assert request.of("cancelled") == [emit_retry]
    assert "task-cancelled" in request.of("event")
    assert request.was_stopped
    assert (task.AsyncResult(request.id).state == states.RETRY) == emit_retry


def test_celery_announces_here_that_a_task_was_revoked(task: Any, request_of: Any) -> None:
    request = request_of()
    assert not request.revoked()
    worker_state.revoked.add(request.id)

    assert request.revoked()

    assert request.of("revoked") == [("revoked", False, None, False)]
    assert request.of("event") == ["task-revoked"]
    assert request.was_stopped
    assert task.AsyncResult(request.id).state == states.REVOKED
    request.on_ack.assert_called_once()


def test_celery_announces_here_that_a_task_is_terminated(request_of: Any) -> None:
    request = request_of()
    request.on_accepted(os.getpid(), time.monotonic())

    request.terminate(mock.Mock(), signal="TERM")

    assert request.of("revoked") == [("terminated", True, 15, False)]


@pytest.mark.parametrize(("seconds", "expired"), [(-1, True), (60, None)])
def test_celery_asks_here_whether_a_task_has_expired(request_of: Any, seconds: float, expired: bool | None) -> None:
    request = request_of(expires=(datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat())

    request.revoked()

    assert request.of("expired") == [expired]
    assert request.of("revoked") == ([("expired", False, None, True)] if expired else [])


def test_celery_asks_here_whether_a_lost_task_had_succeeded(task: Any, request_of: Any) -> None:
    request = request_of()

    request.on_failure(lost())

    assert request.of("stored") == [False]
    assert task.AsyncResult(request.id).state == states.FAILURE

    succeeded = request_of()
    task.backend.store_result(succeeded.id, "done", states.SUCCESS)
    succeeded.on_failure(lost())
    [found] = succeeded.of("stored")
    assert found["result"] == "done"
    assert succeeded.of("event") == ["task-succeeded"]


def test_celery_takes_the_word_for_it_that_a_lost_task_had_succeeded(task: Any, request_of: Any) -> None:
    request = request_of()
    request.stored = {"result": None}

    request.on_failure(lost())

    assert request.of("event") == ["task-succeeded"]
    assert task.AsyncResult(request.id).state == states.PENDING
    request.on_ack.assert_called_once()


def test_what_the_task_has_as_its_request_is_known(request_of: Any) -> None:
    request = request_of(chord="chord")

    assert isinstance(request.celery_context, Context)
    assert (request.celery_context.id, request.celery_context.task) == (request.id, "seam.same")
    assert request.celery_context.chord == "chord"


def test_a_request_class_is_named_by_itself_or_where_it_is() -> None:
    assert request_class(Noted) is Noted
    assert request_class(f"{__name__}:Noted") is Noted
    assert request_class("celery.worker.request:Request") is Request


def test_a_stamp_is_one_or_several() -> None:
    assert all_of("one") == ["one"]
    assert all_of(["one", "two"]) == ["one", "two"]


# -- what a worker does with the public methods that are overridden ----------------------------------------------------


def test_the_worker_hands_these_methods_to_its_pool(task: Any, request_of: Any) -> None:
    pool = mock.Mock()
    request = request_of(create_request_cls(Noted, task, pool, "worker", mock.Mock(), app=task.app))

    request.execute_using_pool(pool)

    options = pool.apply_async.call_args.kwargs
    assert options["error_callback"] == request.on_failure
    assert options["timeout_callback"] == request.on_timeout
    assert options["accept_callback"] == request.on_accepted
    # What stands in it arrives where the task runs.
    assert any(given is request.request_dict for given in options["args"])


def test_the_worker_notes_which_process_has_a_task(request_of: Any) -> None:
    request = request_of()

    request.on_accepted(7, time.monotonic())

    assert request.worker_pid == 7
    assert request.of("event") == ["task-started"]


def test_a_request_is_given_up_and_given_back(request_of: Any) -> None:
    request = request_of()
    request.acknowledge()
    request.on_ack.assert_called_once()

    other = request_of()
    other.reject(requeue=True)
    assert other.on_reject.call_args.args[2] is True
    assert other.of("event") == ["task-rejected"]


def test_the_worker_makes_requests_of_the_class_that_a_task_names(task: Any, request_of: Any) -> None:
    """It asks each task for what is to be done with its messages."""
    type(task).Request = Noted
    consumer = mock.MagicMock(app=task.app, strategies={})
    with mock.patch.object(
        type(task), "start_strategy", autospec=True, side_effect=type(task).start_strategy
    ) as started:
        Consumer.update_strategies(consumer)
    assert [call.args for call in started.call_args_list] == [(task, task.app, consumer)]

    consumer.strategies[task.name](request_of().message, None, mock.Mock(), mock.Mock(), ())

    [(request, *_)] = [call.args for call in consumer.on_task_request.call_args_list]
    assert isinstance(request, Noted)


def test_recovery_starts_when_the_pool_of_a_worker_has() -> None:
    assert set(RecoveryStep.requires) <= WorkController.Blueprint.default_steps


def test_a_worker_knows_what_was_revoked() -> None:
    assert isinstance(worker_state.revoked, Container)
    assert isinstance(worker_state.revoked_stamps, dict)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("on_failure", ["exc_info", "send_failed_event", "return_ok"]),
        ("on_timeout", ["soft", "timeout"]),
        ("cancel", ["pool", "signal", "emit_retry"]),
        ("maybe_expire", []),
        ("send_event", ["type", "fields"]),
        ("reject", ["requeue"]),
        ("acknowledge", []),
    ],
)
def test_what_is_overridden_or_called_takes_these_parameters(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(Request, method)).parameters)[1:] == parameters
