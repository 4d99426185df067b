"""Attributes of runs: kept through all attempts, without a round trip of their own, and searched by Redis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import redis
from celery import Celery

from celery_durable.app.store import Store
from celery_durable.exceptions import ConfigurationError
from celery_durable.operate.runs import Runs
from tests.integration.network import Waits
from tests.integration.runs import app_at, execute, new_id, task_of


def sells(self: Any, attributes: Mapping[str, str]) -> None:
    self.ctx.set_attributes(**attributes)
    self.ctx.run("charge", lambda: 1)


def sold(app: Celery, **attributes: str) -> str:
    execute(task_of(app, sells), attributes, task_id=(task_id := new_id()))
    return task_id


def ids(runs: Runs, **attributes: str) -> list[str]:
    return [run.id for run in runs.list(attributes=attributes)]


def test_runs_are_found_by_their_attributes(app: Celery, runs: Runs) -> None:
    first, second = sold(app, order="o1", customer="ann"), sold(app, order="o12", customer="ann")
    other = sold(app, customer="o1")
    sold(app)

    assert runs.get(first).attributes == {"order": "o1", "customer": "ann"}
    assert ids(runs, order="o1") == [first]
    assert set(ids(runs, customer="ann")) == {first, second}
    assert ids(runs, customer="ann", order="o12") == [second]
    assert ids(runs, customer="o1") == [other]
    assert ids(runs, order="o") == ids(runs, order="ann") == ids(runs, rder="o1") == []
    assert ids(runs, customer="ann", order="o3") == []


@pytest.mark.parametrize("value", ['say "hi"', "back\\slash", "Grüße", "日本", "", '","order":"o1', "a\nb"])
def test_any_text_is_found_and_nothing_else_by_it(app: Celery, runs: Runs, value: str) -> None:
    task_id = sold(app, said=value)
    sold(app, order=value, **{'x"said': value})

    assert ids(runs, said=value) == [task_id]
    assert runs.get(task_id).attributes == {"said": value}


def test_pages_of_a_search_follow_one_another(app: Celery, runs: Runs) -> None:
    wanted = [sold(app, parity=str(number % 2)) for number in range(11)][::2]

    read: list[str] = []
    cursor, sizes = None, []
    while True:
        page = runs.list(attributes={"parity": "0"}, limit=2, cursor=cursor)
        read += [run.id for run in page]
        sizes.append(len(page))
        cursor = page.cursor
        if cursor is None:
            break

    assert (sorted(read), sizes) == (sorted(wanted), [2, 2, 2])


def test_attributes_stay_through_attempts(app: Celery, runs: Runs, redis_client: redis.Redis, store: Store) -> None:
    def goes_on(self: Any) -> None:
        self.ctx.set_attributes(order="o1", state="new")
        self.ctx.sleep(3600)
        self.ctx.set_attributes(state="paid")

    task, task_id = task_of(app, goes_on), new_id()
    execute(task, task_id=task_id)
    assert runs.get(task_id).attributes == {"order": "o1", "state": "new"}

    runs.wake(task_id)
    assert execute(task, task_id=task_id, delivery_info={"redelivered": True}) == "SUCCESS"

    assert runs.get(task_id).attributes == {"order": "o1", "state": "paid"}
    assert ids(runs, state="new") == []


def test_attributes_cost_no_round_trip(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    def sets(self: Any, number: int) -> None:
        for step in range(3):
            for place in range(number):
                self.ctx.set_attributes(order=f"{step} {place}")
            self.ctx.run("charge", lambda: 1)

    task = task_of(app, sets)
    execute(task, 0, task_id=new_id())
    waits, counts = Waits().install(monkeypatch), []
    for number in (0, 1, 5):
        waits.count = 0
        execute(task, number, task_id=new_id())
        counts.append(waits.count)

    assert len(set(counts)) == 1, counts


def test_what_is_hidden_finds_nothing(app: Celery, redis_url: str) -> None:
    def redact(_task: str, where: str, value: Any) -> Any:
        return "***" if where in ("attribute card", "args") else value

    task_id = sold(app, order="o1", card="4111")
    with app_at(redis_url, durable_redact=redact) as redacted:
        runs = Runs(redacted)

        assert [run.attributes for run in runs.list(text=task_id[:13])] == [{"order": "o1", "card": "***"}]
        assert ids(runs, order="o1") == [task_id]
        assert ids(runs, card="4111") == []
        assert list(runs.list(text="4111")) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"attributes": {"order": 7}}, "the attribute 'order' must be a text, got 7"),
        ({"attributes": {7: "order"}}, "the name of an attribute must be a text, got 7"),
        ({"text": 7}, "text must be a text, got 7"),
    ],
)
def test_what_is_no_text_is_refused(runs: Runs, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        runs.list(**wrong)
