"""What a worker says when it starts: each risk for its durable tasks is one line in the log."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals

from celery_durable import DurableTask
from celery_durable.worker.startup import Risk, risks_of
from tests.integration.runs import app_at, task_of
from tests.servers import RedisServer


def work(self: Any) -> None:
    """Do nothing."""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that a test may configure, as it should be at first: with AOF, without eviction."""
    with RedisServer(appendonly=True) as server:
        yield server


@pytest.fixture
def app(server: RedisServer) -> Iterator[Celery]:
    with app_at(server.url(), durable_lease=1) as app:
        yield app


def risks(app: Celery, **options: Any) -> list[str]:
    """Return what is logged as a warning."""
    return [risk.text for risk in found(app, **options) if risk.level == logging.WARNING]


def notes(app: Celery, **options: Any) -> list[str]:
    """Return what is logged as mere information."""
    return [risk.text for risk in found(app, **options) if risk.level == logging.INFO]


def found(app: Celery, **options: Any) -> list[Risk]:
    return list(risks_of(app, [task_of(app, work, **options)]))


def test_a_server_as_it_should_be_needs_no_word(app: Celery) -> None:
    assert risks(app) == []


def test_no_append_only_file(server: RedisServer, app: Celery) -> None:
    with server.client() as admin:
        admin.config_set("appendonly", "no")

    (risk,) = risks(app)

    assert server.url() in risk
    assert "no append-only file" in risk
    assert "appendonly yes" in risk


@pytest.mark.parametrize(("fsync", "lost"), [("everysec", "about a second"), ("no", "half a minute")])
def test_what_the_death_of_the_machine_may_lose_is_information(
    server: RedisServer, app: Celery, fsync: str, lost: str
) -> None:
    with server.client() as admin:
        admin.config_set("appendfsync", fsync)

    (note,) = notes(app)

    assert f"appendfsync {fsync}: if the machine dies, {lost} of acknowledged steps" in note
    assert risks(app) == []


def test_with_appendfsync_always_there_is_nothing_to_say(app: Celery) -> None:
    assert found(app) == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-ttl"])
def test_an_eviction_policy_that_may_drop_journals(server: RedisServer, app: Celery, policy: str) -> None:
    with server.client() as admin:
        admin.config_set("maxmemory", "1gb")
        admin.config_set("maxmemory-policy", policy)

    (risk,) = risks(app)

    assert f"maxmemory-policy {policy}" in risk
    assert "noeviction" in risk


def test_a_memory_limit_that_evicts_nothing_needs_no_word(server: RedisServer, app: Celery) -> None:
    with server.client() as admin:
        admin.config_set("maxmemory", "1gb")

    assert risks(app) == []


@pytest.mark.parametrize("limit", [{"time_limit": 61}, {"soft_time_limit": 61}])
def test_a_visibility_timeout_that_is_shorter_than_a_time_limit(app: Celery, limit: dict[str, int]) -> None:
    app.conf.update(broker_url="redis://broker/0", broker_transport_options={"visibility_timeout": 60})

    (risk,) = risks(app, **limit)

    assert [word for word in ("visibility_timeout=60", "shop.work", "61 s", "broker_transport_options") if word in risk]
    assert "61" in risk


@pytest.mark.parametrize("limit", [{"time_limit": 60}, {"soft_time_limit": 59}, {}])
def test_a_visibility_timeout_that_is_long_enough_needs_no_word(app: Celery, limit: dict[str, int]) -> None:
    app.conf.update(broker_url="redis://broker/0", broker_transport_options={"visibility_timeout": 60})

    assert risks(app, **limit) == []


def test_the_visibility_timeout_is_an_hour_where_none_is_set(app: Celery) -> None:
    app.conf.update(broker_url="redis://broker/0")

    (risk,) = risks(app, time_limit=3601)

    assert "visibility_timeout=3600" in risk


def test_the_time_limits_of_the_app_count_too(app: Celery) -> None:
    app.conf.update(
        broker_url="redis://broker/0", broker_transport_options={"visibility_timeout": 60}, task_time_limit=61
    )

    (risk,) = risks(app)

    assert "61" in risk


def test_a_broker_without_visibility_timeout_needs_no_word(app: Celery) -> None:
    app.conf.update(broker_url="amqp://rabbit//")

    assert risks(app, time_limit=100_000) == []


def test_several_risks_are_several_lines(server: RedisServer, app: Celery) -> None:
    with server.client() as admin:
        admin.config_set("appendonly", "no")
        admin.config_set("maxmemory", "1gb")
        admin.config_set("maxmemory-policy", "allkeys-lru")
    app.conf.update(broker_url="redis://broker/0", broker_transport_options={"visibility_timeout": 1})

    assert len(risks(app, time_limit=2)) == 3


def test_a_wrong_setting_is_one_line_that_says_that_durable_tasks_will_fail() -> None:
    app = Celery("startup", broker="memory://", set_as_current=False)
    app.conf.durable_retension = 5

    ((risk, _),) = risks_of(app, [])

    assert "durable_retension" in risk
    assert "durable_retention" in risk
    assert "durable tasks will fail until" in risk


def test_a_wrong_option_of_a_task_is_one_line_that_names_it_and_ends_no_check(server: RedisServer, app: Celery) -> None:
    def other(self: Any) -> None: ...

    def third(self: Any) -> None: ...

    with server.client() as admin:
        admin.config_set("appendonly", "no")
    app.conf.update(broker_url="redis://broker/0", broker_transport_options={"visibility_timeout": 60})
    tasks = [task_of(app, work, retention=-1), task_of(app, other, time_limit=61), task_of(app, third, retention=-1)]

    option, persistence, visibility = [risk.text for risk in risks_of(app, tasks)]

    assert (
        option == "retention must be 0 or more seconds, got -1.0; shop.work, shop.third will fail until this is mended"
    )
    assert "no append-only file" in persistence
    assert "shop.other (61 s)" in visibility


def test_a_serializer_that_the_app_does_not_accept_is_one_line_that_names_its_tasks(app: Celery) -> None:
    def other(self: Any) -> None: ...

    app.conf.durable_serializer = "pickle"
    tasks = [task_of(app, work), task_of(app, other, durable_serializer="json")]

    (risk,) = [risk.text for risk in risks_of(app, tasks)]

    assert "durable_serializer 'pickle' runs code" in risk
    assert "accept_content" in risk
    assert "; shop.work will fail until this is mended" in risk


def test_a_missing_redis_is_one_line_that_says_that_durable_tasks_will_fail() -> None:
    app = Celery("startup", broker="memory://", set_as_current=False)

    ((risk, _),) = risks_of(app, [])

    assert "no Redis for the journal" in risk
    assert "durable tasks will fail until" in risk


def test_a_redis_that_does_not_answer_is_one_line_that_says_that_durable_tasks_wait(
    server: RedisServer, app: Celery
) -> None:
    server.stop()

    (risk,) = risks(app)

    assert "durable tasks wait until it is back" in risk


def test_a_user_who_may_not_ask_for_the_state_of_the_server_is_no_lost_redis(server: RedisServer) -> None:
    with server.client() as admin:
        rules = ["on", ">word", "resetchannels", "~durable:*", "+@all", "-@dangerous", "-@admin"]
        admin.execute_command("ACL", "SETUSER", "durable", *rules)
    url = f"redis://durable:word@127.0.0.1:{server.port}/0"

    with app_at(url, durable_lease=1) as app:
        lines = risks(app)

    assert not any("wait until it is back" in line for line in lines)
    assert not any("durable tasks will fail" in line for line in lines)


def test_the_lines_name_the_server_without_its_password(server: RedisServer) -> None:
    with server.client() as admin:
        admin.config_set("appendonly", "no")
        admin.config_set("requirepass", "s3cret")
        url = f"redis://:s3cret@127.0.0.1:{server.port}/0"
        with app_at(url, durable_lease=1) as app:
            (risk,) = risks(app)

    assert "s3cret" not in risk
    assert f"127.0.0.1:{server.port}" in risk


def test_a_worker_logs_the_risks_when_it_starts(
    server: RedisServer, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    with server.client() as admin:
        admin.config_set("appendonly", "no")
    task_of(app, work)

    signals.celeryd_after_setup.send(sender="worker@host", instance=SimpleNamespace(app=app))

    (record,) = (record for record in caplog.records if "append-only" in record.getMessage())
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("celery-durable: ")


def test_what_is_given_up_knowingly_is_logged_as_information(
    server: RedisServer, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    with server.client() as admin:
        admin.config_set("appendfsync", "everysec")
    task_of(app, work)
    caplog.set_level(logging.INFO)

    signals.celeryd_after_setup.send(sender="worker@host", instance=SimpleNamespace(app=app))

    (record,) = (record for record in caplog.records if "appendfsync" in record.getMessage())
    assert record.levelname == "INFO"


def test_a_worker_without_durable_tasks_asks_nothing(
    server: RedisServer, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name, task in app.tasks.items() if isinstance(task, DurableTask)]:
        del app.tasks[name]
    with server.client() as admin:
        admin.config_set("appendonly", "no")
        before = admin.info("stats")["total_connections_received"]
        signals.celeryd_after_setup.send(sender="worker@host", instance=SimpleNamespace(app=app))

        assert admin.info("stats")["total_connections_received"] == before
    assert caplog.records == []
