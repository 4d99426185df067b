"""``durable_redact``: what is shown of runs is redacted, and what is recorded is not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from celery_durable import ConfigurationError, Runs, TerminalError
from celery_durable.app.store import store_of
from tests.integration.runs import app_at, execute, new_id, task_of
from tests.receivers import observed

SECRET = "4111111111111111"  # noqa: S105

seen: list[tuple[str, str, Any]] = []


def hide(task: str, where: str, value: Any) -> Any:
    """Note what is asked, and hide the number of a card."""
    seen.append((task, where, value))
    return json.loads(json.dumps(value).replace(SECRET, "***"))


def fails(task: str, where: str, value: Any) -> Any:
    raise ValueError(f"cannot hide {value}")


def pays(self: Any, card: str, *, note: str) -> None:
    self.ctx.run("look up", lambda: {"card": card})
    self.ctx.run("charge", decline, card)


def looks(self: Any, card: str) -> None:
    self.ctx.run("look up", lambda: card)


def decline(card: str) -> None:
    raise TerminalError(f"declined: {card}")


@pytest.fixture(params=[hide, f"{__name__}.hide", f"{__name__}:hide"], ids=["a function", "a path", "a colon"])
def app(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Celery]:
    seen.clear()
    with app_at(redis_url, durable_redact=request.param) as app:
        yield app


def paid(app: Celery) -> str:
    task, task_id = task_of(app, pays), new_id()
    assert execute(task, SECRET, task_id=task_id, kwargs={"note": SECRET}) == "FAILURE"
    return task_id


def test_nothing_of_a_run_is_shown_that_is_redacted(app: Celery, redis_client: redis.Redis) -> None:
    task_id = paid(app)

    run = Runs(app).get(task_id)
    [listed] = Runs(app).list()

    assert (run.args, run.kwargs) == (listed.args, listed.kwargs) == (["***"], {"note": "***"})
    assert run.error == listed.error == "TerminalError: declined: ***"
    assert [(step.preview, step.error) for step in run.steps] == [
        ('{"card": "***"}', ""),
        ("", "TerminalError: declined: ***"),
    ]
    assert SECRET not in repr((run, listed))
    assert {where for _, where, _ in seen} == {"args", "kwargs", "error", "step look up"}
    assert {task for task, _, _ in seen} == {"shop.pays"}
    assert ("shop.pays", "step look up", {"card": SECRET}) in seen
    fields = redis_client.hgetall(store_of(app).keys(task_id).run)
    assert SECRET in fields["call"]
    assert SECRET in fields["step:1"]
    assert SECRET in json.dumps(Runs(app).export(task_id)), "an export is what is recorded"
    assert list(Runs(app).list(text=SECRET)) == [], "nobody finds a run by what is not shown"


def test_a_task_may_have_a_redactor_of_its_own(redis_url: str) -> None:
    def stars(_task: str, _where: str, _value: Any) -> str:
        return "***"

    seen.clear()
    with app_at(redis_url, durable_redact=hide) as app:
        own = task_of(app, looks, redact=stars)
        task_id = new_id()
        with observed() as told:
            execute(own, SECRET, task_id=task_id)
        run = Runs(app).get(task_id)
        assert (run.args, run.steps[0].preview) == ("***", '"***"')
        assert [step.preview for _, _, step in told if step is not None] == ['"***"']
        assert Runs(app).get(paid(app)).args == ["***"]
        assert {task for task, _, _ in seen} == {"shop.pays"}

    with app_at(redis_url) as app:
        task_of(app, looks, redact=stars)
        assert list(Runs(app).list(text=SECRET, task="shop.looks")) == [], "nobody finds a run by what is not shown"


def test_a_redactor_that_fails_shows_nothing(redis_url: str) -> None:
    with app_at(redis_url, durable_redact=fails) as app:
        run = Runs(app).get(paid(app))

    hidden = "<redacted: durable_redact has failed with ValueError>"
    assert (run.args, run.kwargs, run.error) == (hidden, hidden, hidden)
    assert [step.preview or step.error for step in run.steps] == [hidden, hidden]
    assert SECRET not in repr(run)


def test_what_is_redacted_need_not_be_data(redis_url: str) -> None:
    with app_at(redis_url, durable_redact=lambda *_: ...) as app:
        [first, _] = Runs(app).get(paid(app)).steps

    assert first.preview == '"Ellipsis"'


def test_a_redactor_may_stand_beside_the_app(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery looks into the folder in which it was started, and that is not in Python's path."""
    (tmp_path / "shop_privacy.py").write_text("def hide(task, where, value):\n    return 'hidden'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with app_at(redis_url, durable_redact="shop_privacy.hide") as app:
        run = Runs(app).get(paid(app))

    assert (run.args, run.steps[0].preview) == ("hidden", '"hidden"')
    assert str(tmp_path) not in sys.path


def test_a_redactor_that_is_not_there_is_told_before_anything_is_shown(redis_url: str) -> None:
    said = r"durable_redact names 'shop\.privacy\.hide', which cannot be imported"
    with app_at(redis_url, durable_redact="shop.privacy.hide") as app, pytest.raises(ConfigurationError, match=said):
        Runs(app)


def test_what_signals_carry_is_redacted_too(app: Celery) -> None:
    with observed() as told:
        paid(app)

    assert SECRET not in repr(told)
    [succeeded] = [step for _, _, step in told if step is not None and step.state == "done"]
    assert succeeded.preview == '{"card": "***"}'
    assert [run.error for _, run, _ in told if run.error] == ["TerminalError: declined: ***"]
