"""Durable tasks of a Django project, in workers: transactions around verbs, and database connections."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_durable import InvalidStepError
from tests import django_project
from tests.smoke import effects
from tests.smoke.nodes import DurableSetup, Worker
from tests.smoke.watching import steps
from tests.waiting import eventually

pytestmark = pytest.mark.local_nodes(reason="the database is on this machine")

LONG = 30


@pytest.fixture
def worker_app() -> str:
    return "tests.django_project.celery"


@pytest.fixture
def celery_setup_app(celery_setup_config: dict[str, Any]) -> Iterator[Celery]:
    """An app that knows none of the tasks: they need Django, which is the workers'."""
    with Celery("client", set_as_current=False) as app:
        app.conf.update(celery_setup_config)
        yield app


@pytest.fixture
def sqlite(tmp_path: Path) -> dict[str, Any]:
    """A database in a file, with its tables; of Django's setting DATABASES."""
    options = {"timeout": 20, "transaction_mode": "IMMEDIATE"}
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db.sqlite3"), "OPTIONS": options}
    django_project.prepare(database)
    return database


def start_worker(durable: DurableSetup, database: dict[str, Any], **options: Any) -> Worker:
    return durable.start_worker(env=django_project.environment(database), **options)


def count_orders(database: dict[str, Any]) -> int:
    connection = sqlite3.connect(database["NAME"])
    try:
        return int(connection.execute("SELECT count(*) FROM shop_order").fetchone()[0])
    finally:
        connection.close()


# -- transactions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "then"), [("in_a_transaction", "sleep"), ("in_a_transaction", "retry"), ("of_an_atomic_base", "")]
)
def test_a_step_within_a_transaction_is_refused(
    durable: DurableSetup, sqlite: dict[str, Any], task: str, then: str
) -> None:
    """What rolls the transaction back would leave a journal that calls its steps done."""
    start_worker(durable, sqlite)
    result = durable.app.send_task(f"shop.{task}", ("tea", then))

    with pytest.raises(InvalidStepError) as refused:
        result.get(timeout=LONG)
    assert str(refused.value) == (
        f"task {result.id}: step 'create' was called inside of transaction.atomic() on the database connection "
        f"'default': a retry or a sleep rolls the transaction back, and its steps are not executed again; open the "
        f"transaction inside the step (durable_allow_atomic=True makes this a warning)"
    )
    assert effects.count("create") == count_orders(sqlite) == 0
    assert steps(durable.redis, result.id) == []


def test_a_sleep_within_a_transaction_is_refused(durable: DurableSetup, sqlite: dict[str, Any]) -> None:
    start_worker(durable, sqlite)
    result = durable.app.send_task("shop.sleep_in_a_transaction", ("tea",))

    with pytest.raises(InvalidStepError, match=r"wait 'sleep' was called inside of transaction.atomic\(\)"):
        result.get(timeout=LONG)
    assert (effects.count("create"), count_orders(sqlite)) == (1, 0)


def test_the_setting_makes_it_a_warning_once_per_run_and_place(durable: DurableSetup, sqlite: dict[str, Any]) -> None:
    worker = start_worker(durable, sqlite, conf={"durable_allow_atomic": True})
    second = {"retry": "step 'fail once'", "sleep": "wait 'sleep'"}
    results = {then: durable.app.send_task("shop.in_a_transaction", (then, then)) for then in second}

    assert [result.get(timeout=LONG) for result in results.values()] == [0, 0]
    for then, result in results.items():
        places = ["step 'create'", second[then]]
        warned = [line for line in worker.log().splitlines() if f"task {result.id}" in line and "atomic()" in line]
        assert [place in line for place, line in zip(places, warned, strict=True)] == [True, True]


def test_what_only_draws_a_value_may_be_within_a_transaction(durable: DurableSetup, sqlite: dict[str, Any]) -> None:
    start_worker(durable, sqlite)
    durable.app.send_task("shop.helpers_in_a_transaction", ("tea",)).get(timeout=LONG)
    assert count_orders(sqlite) == 1


def test_a_transaction_within_a_step_is_kept(durable: DurableSetup, sqlite: dict[str, Any]) -> None:
    start_worker(durable, sqlite)
    result = durable.app.send_task("shop.transaction_in_a_step", ("tea",))

    assert result.get(timeout=LONG) == 1
    assert (effects.count("create"), count_orders(sqlite)) == (1, 1)
    eventually(lambda: effects.count("confirm", "tea") == 1, what="the task that was sent on commit")
