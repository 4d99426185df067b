"""What is serialized in the journal is read only as the app accepts it: who can write to Redis runs no code here."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

import pytest
from celery import Celery

from celery_durable import (
    ConfigurationError,
    DurableContext,
    durable_task,
)
from celery_durable.delivery import outcome
from celery_durable.delivery.call import Call
from celery_durable.values import codec
from tests.unit.conftest import Action
from tests.unit.tasks import applied, failure_of

PICKLE = "application/x-python-serialize"
executed: list[str] = []


def execute(code: str) -> str:
    executed.append(code)
    return code


class Hostile:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return execute, ("code",)


DATA = base64.b64encode(pickle.dumps(Hostile())).decode()


def read_step(accept: frozenset[str], name: str) -> Any:
    metadata = {"serializer": name, "content_type": PICKLE, "charset": "binary"}
    return codec.decode(json.dumps(DATA), metadata, accept=accept)


def read_outcome(accept: frozenset[str], _: str) -> Any:
    facts = {"content_type": PICKLE, "charset": "binary", "data": DATA}
    return outcome.read({b"status": b"succeeded", b"outcome": json.dumps(facts).encode()}, accept).value


def read_call(accept: frozenset[str], _: str) -> Any:
    data = base64.b64encode(pickle.dumps({"args": Hostile(), "kwargs": {}, "options": {}})).decode()
    return Call.load(json.dumps({"content_type": PICKLE, "charset": "binary", "data": data}), accept).args


@pytest.mark.parametrize("name", ["json", "pickle", "nonsense"])
@pytest.mark.parametrize("read", [read_step, read_outcome, read_call], ids=lambda read: read.__name__)
def test_pickle_in_the_journal_runs_only_where_the_app_accepts_it(read: Any, name: str) -> None:
    """By its content type, whatever the serializer's name beside it is."""
    executed.clear()
    with pytest.raises(ConfigurationError, match="accept_content"):
        read(frozenset({"json"}), name)
    assert executed == []

    for accepted in ("pickle", PICKLE):
        assert read(frozenset({"json", accepted}), name) == "code"
    assert executed == ["code", "code"]


def test_what_json_says_of_a_run_needs_no_permission() -> None:
    assert Call.load('{"args": [1], "kwargs": {}, "options": {}}', frozenset()).args == [1]
    assert outcome.read({b"outcome": b'{"value": [1]}'}, frozenset()).value == [1]


# -- whole tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_to", ["task", "app"])
@pytest.mark.parametrize("directly", [False, True])
def test_a_serializer_that_the_app_does_not_accept_is_refused_before_an_action_runs(
    app: Celery, given_to: str, directly: bool
) -> None:
    def work(ctx: DurableContext) -> Any:
        return ctx.run("work", action)

    action = Action(1)
    if given_to == "app":
        app.conf.durable_serializer = "pickle"
    task = durable_task(name="shop.work", **({"durable_serializer": "pickle"} if given_to == "task" else {}))(work)

    if directly:
        with pytest.raises(ConfigurationError) as refused:
            task()
        error = refused.value
    else:
        error = failure_of(task.apply(), ConfigurationError)

    assert "shop.work: durable_serializer 'pickle' runs code" in str(error)
    assert "accept_content" in str(error)
    assert action.executions == 0


def test_a_serializer_that_the_app_accepts_is_used(app: Celery) -> None:
    def work(ctx: DurableContext) -> Any:
        return ctx.run("work", lambda: (1, 2)) == (1, 2)

    app.conf.accept_content = ["json", "pickle"]

    assert applied(work, durable_serializer="pickle").result is True
