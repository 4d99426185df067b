"""What Celery keeps to itself where a task runs: each name that is used fails here when it is not what it was."""

from __future__ import annotations

import inspect
import json
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, Task, states
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.backends.base import Backend, KeyValueStoreBackend
from celery.backends.cache import CacheBackend
from celery.backends.redis import RedisBackend

from celery_durable.seams.results import (
    connection_parameters,
    is_celerys_redis,
    overridden,
    stored_form,
    stores_no_success,
)


def nothing() -> None: ...


def stored(backend: Any, task_id: str) -> Any:
    """What a backend of keys and values has of a task."""
    return json.loads(backend.get(backend.get_key_for_task(task_id)))


@pytest.fixture
def task_id() -> str:
    """One that the memory of this process, which is the backend, does not know."""
    return str(uuid4())


@pytest.mark.parametrize("extended", [False, True])
def test_a_success_is_stored_as_is_expected(app: Celery, task_id: str, extended: bool) -> None:
    app.conf.result_extended = extended
    backend: Any = app.backend
    assert isinstance(backend, KeyValueStoreBackend)
    request = Context(id=task_id, task="seam.done", name="seam.done", args=[1], kwargs={}, parent_id="0", children=[])

    backend.store_result(task_id, {"sum": 3}, states.SUCCESS, request=request)
    celerys = stored(backend, task_id)
    key, text, _ = stored_form(backend, request, {"sum": 3})
    ours = json.loads(text)

    assert backend.get(key)
    assert celerys["status"] == "SUCCESS"
    assert (celerys["result"], celerys["traceback"]) == ({"sum": 3}, None)
    assert ("args" in celerys) == extended
    assert {**celerys, "date_done": ""} == {**ours, "date_done": ""}


@pytest.mark.parametrize(
    ("state", "result", "traceback"),
    [(states.RETRY, OSError("away"), "Traceback ..."), ("SUSPENDED", {"until": "2030-01-01"}, None)],
)
def test_a_state_of_a_run_that_goes_on_is_stored_as_is_expected(
    app: Celery, task_id: str, state: str, result: Any, traceback: str | None
) -> None:
    backend: Any = app.backend
    request = Context(id=task_id, task="seam", args=[1], kwargs={}, hostname="w@x")

    backend.store_result(task_id, result, state, request=request, traceback=traceback)
    celerys = stored(backend, task_id)
    _, text, _ = stored_form(backend, request, result, state, traceback)

    assert (celerys["status"], celerys["traceback"]) == (state, traceback)
    assert {**celerys, "date_done": ""} == {**json.loads(text), "date_done": ""}


def test_celery_makes_what_it_stores_by_the_methods_that_are_used(app: Celery, task_id: str) -> None:
    """A backend of the user's may have put others in their place."""
    calls: list[str] = []

    class Counting(CacheBackend):
        def _get_result_meta(self, result: Any, state: str, traceback: Any, request: Any, **options: Any) -> Any:
            calls.append("meta")
            return super()._get_result_meta(result, state, traceback, request, **options)

        def encode_result(self, result: Any, state: str) -> Any:
            calls.append("encode_result")
            return super().encode_result(result, state)

        def encode(self, data: Any) -> Any:
            calls.append("encode")
            return super().encode(data)

        def get_key_for_task(self, task_id: str, *args: Any) -> Any:
            calls.append("key")
            return super().get_key_for_task(task_id, *args)

    backend = Counting(app=app, backend="memory://")

    backend.store_result(task_id, "done", states.SUCCESS, request=Context(id=task_id))

    assert {"meta", "encode_result", "encode", "key"} <= set(calls)


def test_celerys_own_backend_of_this_redis_is_known(app: Celery) -> None:
    app.conf.result_expires = 60
    backend: Any = RedisBackend(app=app, url="redis://shop:1/2")
    derived: Any = type("Own", (RedisBackend,), {})(app=app, url="redis://shop:1/2")

    assert is_celerys_redis(backend, "redis://shop:1/2")
    assert not is_celerys_redis(backend, "redis://shop:1/3")
    assert not is_celerys_redis(derived, "redis://shop:1/2")
    key, _, seconds = stored_form(backend, Context(id="1"), 3)
    assert key == b"celery-task-meta-1"
    assert seconds == 60
    app.conf.result_expires = None
    assert stored_form(RedisBackend(app=app, url="redis://shop:1/2"), Context(id="1"), 3)[2] == 0


def test_a_backend_that_stores_no_success_is_known(app: Celery) -> None:
    class Own(CacheBackend):
        def mark_as_done(self, *_: Any, **__: Any) -> None: ...

    assert stores_no_success(app.backend)
    assert not stores_no_success(Own(app=app, backend="memory://"))


def test_an_override_of_celerys_task_is_found(app: Celery) -> None:
    class Own(Task):  # type: ignore[type-arg]
        abstract = True

        def on_success(self, *_: Any) -> None: ...

    app.task(name="seam.plain", shared=False)(nothing)
    app.task(name="seam.own", shared=False, base=Own)(nothing)

    assert overridden(app.tasks["seam.plain"], "on_success") is None
    assert overridden(app.tasks["seam.own"], "on_success") is Own
    assert overridden(app.tasks["seam.own"], "after_return") is None
    app.task(name="seam.option", shared=False, on_success=nothing)(nothing)
    assert overridden(app.tasks["seam.option"], "on_success") is type(app.tasks["seam.option"])


def test_a_url_is_read_as_celerys_backend_reads_it(app: Celery) -> None:
    parameters = connection_parameters(app, "redis://user:word@shop:6380/2?socket_timeout=3")

    assert (parameters["host"], parameters["port"], parameters["db"]) == ("shop", 6380, 2)
    assert (parameters["username"], parameters["password"]) == ("user", "word")
    assert float(parameters["socket_timeout"]) == 3
    assert "path" in connection_parameters(app, "socket:///run/redis.sock")


def test_the_sentinels_of_a_url_are_its_hosts(app: Celery) -> None:
    url = "sentinel://:word@one:26379/3;sentinel://two:26380"

    parameters = connection_parameters(app, url, by_sentinels=True)

    assert [(host["host"], host["port"]) for host in parameters["hosts"]] == [("one", 26379), ("two", 26380)]
    assert (parameters["db"], parameters["password"]) == (3, "word")
    assert "host" not in parameters
    assert "port" not in parameters


# -- what of a task's backend Celery calls -----------------------------------------------------------------------------


class Told:
    """Notes what it is told, as a result backend."""

    def __init__(self, backend: Any) -> None:
        self.calls: list[tuple[str, str]] = []
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)
        if not name.startswith("mark_as"):
            return method

        def noted(task_id: str, *args: Any, **options: Any) -> Any:
            self.calls.append((name, task_id))
            return method(task_id, *args, **options)

        return noted


@pytest.mark.parametrize(
    ("ending", "told"),
    [("return", "mark_as_done"), ("fail", "mark_as_failure"), ("retry", "mark_as_retry")],
)
def test_celery_tells_the_end_of_a_task_to_the_backend_that_the_task_has(app: Celery, ending: str, told: str) -> None:
    def end(self: Any) -> None:
        if ending == "fail":
            raise KeyError
        if ending == "retry":
            raise self.retry(countdown=1)

    class Own(Task):  # type: ignore[type-arg]
        abstract = True
        backend = property(lambda _: backend, lambda *_: None)  # type: ignore[assignment]

    backend = Told(app.backend)
    app.task(name="seam.end", base=Own, bind=True, shared=False)(end)
    task = app.tasks["seam.end"]

    build_tracer(task.name, task, app=app)("1", (), {}, {"id": "1", "delivery_info": {}, "called_directly": False})

    assert backend.calls == [(told, "1")]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("mark_as_done", ["task_id", "result"]),
        ("mark_as_failure", ["task_id", "exc"]),
        ("mark_as_retry", ["task_id", "exc"]),
        ("mark_as_revoked", ["task_id", "reason", "request", "store_result"]),
        ("store_result", ["task_id", "result", "state", "traceback", "request"]),
        ("on_chord_part_return", ["request", "state", "result"]),
    ],
)
def test_a_backend_is_told_by_these_parameters(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(Backend, method)).parameters)[1 : len(parameters) + 1] == parameters
