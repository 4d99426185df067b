"""Durable tasks of a Django project, in workers: transactions around verbs, and database connections."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_durable import InvalidStepError
from tests import django_project
from tests.postgresql import PostgreSQL
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


# -- connections -------------------------------------------------------------------------------------------------------


OTHERS = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


def connections(postgresql: PostgreSQL) -> int:
    """How many others there are."""
    with postgresql.connect() as connection:
        return connection.execute(f"SELECT {OTHERS}").rowcount


def end_connections(postgresql: PostgreSQL) -> int:
    """End all of them, as a failover or an idle timeout does; how many there were."""
    with postgresql.connect() as connection:
        ended = connection.execute(f"SELECT pg_terminate_backend(pid) {OTHERS}").rowcount
    eventually(lambda: not connections(postgresql), what="the end of the connections")
    return ended


def test_steps_in_threads_leave_no_connection_open(durable: DurableSetup, postgresql: PostgreSQL) -> None:
    start_worker(durable, postgresql.django, concurrency=1)
    result = durable.app.send_task("shop.side_by_side", (20,))

    effects.wait_until_blocked("connected", times=20)
    assert connections(postgresql) == 20
    effects.release("connected")
    assert len(set(result.get(timeout=LONG))) == 20
    eventually(lambda: not connections(postgresql), what="the end of 20 connections")


@pytest.mark.parametrize("task", ["async_steps", "async_body", "async_step_of_a_def_task"])
def test_async_code_leaves_no_connection_open(durable: DurableSetup, postgresql: PostgreSQL, task: str) -> None:
    start_worker(durable, postgresql.django, concurrency=1)
    args = (3,) if task == "async_steps" else ()
    served_by = durable.app.send_task(f"shop.{task}", args).get(timeout=LONG)

    assert len(set(served_by)) == len(served_by)
    eventually(lambda: not connections(postgresql), what="the end of the connections")


@pytest.mark.parametrize("task", ["one_by_one", "async_steps"])
@pytest.mark.parametrize(
    ("age", "reuse", "expected"), [(0, 0, [0, 1, 2, 3]), (600, 0, [0, 0, 0, 0]), (0, 2, [0, 0, 1, 1])]
)
def test_connections_are_kept_as_long_as_the_settings_say(
    durable: DurableSetup, postgresql: PostgreSQL, task: str, age: int, reuse: int, expected: list[int]
) -> None:
    database = {**postgresql.django, "CONN_MAX_AGE": age}
    env = {**django_project.environment(database), django_project.REUSE_VARIABLE: str(reuse)}
    worker = durable.start_worker(env=env, concurrency=1)

    served_by = durable.app.send_task(f"shop.{task}", (4,)).get(timeout=LONG)
    order = list(dict.fromkeys(served_by))
    assert [order.index(pid) for pid in served_by] == expected
    worker.stop()


@pytest.mark.parametrize("task", ["one_by_one", "async_steps"])
@pytest.mark.parametrize(("checks", "failures"), [(True, 0), (False, 1)], ids=["health checks", "no health checks"])
def test_a_connection_that_the_server_has_ended_is_made_again(
    durable: DurableSetup, postgresql: PostgreSQL, task: str, checks: bool, failures: int
) -> None:
    database = {**postgresql.django, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": checks}
    worker = start_worker(durable, database, concurrency=1)

    for cut in (0, 1, 1):
        assert end_connections(postgresql) == cut
        result = durable.app.send_task(f"shop.{task}", (2,))
        assert len(set(result.get(timeout=LONG))) == 1
        failed = [line for line in worker.log().splitlines() if f"{result.id}: step" in line and " failed (" in line]
        assert len(failed) == failures * cut
    worker.stop()


def test_whoever_keeps_something_by_thread_is_told(durable: DurableSetup, postgresql: PostgreSQL) -> None:
    start_worker(durable, postgresql.django, concurrency=1)
    for task, args in (("one_by_one", (2,)), ("async_steps", (1,)), ("async_step_of_a_def_task", ())):
        result = durable.app.send_task(f"shop.{task}", args)
        result.get(timeout=LONG)

        before, after = ([hit.key for hit in effects.hits(f"step_{when}")] for when in ("prerun", "postrun"))
        assert before == after
        told = [key.rpartition(" ")[0] for key in before if result.id in key]
        names = {"one_by_one": ["step 0", "step 1"], "async_steps": ["step 0"], "async_step_of_a_def_task": ["step"]}
        assert told == [f"shop.{task} {result.id} {name}" for name in names[task]]


def test_a_step_in_celerys_own_thread_is_celerys_to_look_after(durable: DurableSetup, sqlite: dict[str, Any]) -> None:
    start_worker(durable, sqlite)
    durable.app.send_task("shop.transaction_in_a_step", ("tea",)).get(timeout=LONG)
    assert effects.count("step_prerun") == effects.count("step_postrun") == 0
