"""The app's ``durable_*`` settings are read once, checked, and win or lose against the decorator's as documented."""

from __future__ import annotations

import inspect
import json
import re
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
from celery import Celery
from redis.connection import SSLConnection

from celery_durable import ConfigurationError, DurableContext, DurableTask, RetryPolicy, durable_task
from celery_durable.app.address import Address, without_password
from celery_durable.app.settings import read_settings
from celery_durable.config.settings import TASK_OPTIONS, AttemptSettings, Settings


def nothing() -> None:
    """The body of a task."""


def with_context(ctx: DurableContext) -> None:
    """The body of a task that @durable_task makes."""


def test_the_defaults_are_the_documented_ones() -> None:
    settings = read_settings({})
    assert settings.redis_url is None
    assert settings.key_prefix == "durable:"
    assert settings.task_retry_policy == RetryPolicy()
    assert settings.inline_retry_limit == 0
    assert settings.inactivity_timeout == 60
    assert settings.abort_timeout == 10 * 60
    assert settings.lease == 30
    assert settings.max_recoveries == 10
    assert settings.retention == 24 * 60 * 60
    assert settings.failure_retention == 7 * 24 * 60 * 60
    assert settings.max_entry_size == 32 * 1024 * 1024
    assert settings.journal_sync == "memory"
    assert settings.build is None
    assert settings.stall_timeout == 60 * 60
    assert settings.serializer == "json"
    assert settings.redact is None


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Settings().lease = 5


@pytest.mark.parametrize("given", [90, 90.0, timedelta(minutes=1, seconds=30)], ids=repr)
@pytest.mark.parametrize(
    "name",
    ["inline_retry_limit", "inactivity_timeout", "abort_timeout", "lease", "retention", "failure_retention"],
)
def test_durations_are_seconds_or_a_timedelta(name: str, given: Any) -> None:
    assert getattr(read_settings({f"durable_{name}": given}), name) == 90.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("durable_redis_url", 5),
        ("durable_redis_url", ""),
        ("durable_key_prefix", ""),
        ("durable_key_prefix", "{shop}:"),
        ("durable_task_retry_policy", {"max_attempts": 3}),
        ("durable_inline_retry_limit", -1),
        ("durable_inline_retry_limit", "5"),
        ("durable_inactivity_timeout", 0),
        ("durable_inactivity_timeout", float("inf")),
        ("durable_abort_timeout", -1),
        ("durable_abort_timeout", timedelta(0)),
        ("durable_abort_timeout", "never"),
        ("durable_lease", 0),
        ("durable_lease", 0.5),
        ("durable_max_recoveries", -1),
        ("durable_max_recoveries", 1.5),
        ("durable_max_recoveries", True),
        ("durable_retention", timedelta(seconds=-1)),
        ("durable_failure_retention", "1 week"),
        ("durable_max_entry_size", 0),
        ("durable_journal_sync", "everywhere"),
        ("durable_journal_sync", True),
        ("durable_build", 2),
        ("durable_build", ""),
        ("durable_stall_timeout", -1),
        ("durable_redact", 5),
        ("durable_redact", "no.such.module.redact"),
        ("durable_redact", "json.no_such_function"),
        ("durable_redact", "json.decoder"),
        ("durable_max_entry_size", 1e6),
    ],
    ids=repr,
)
def test_a_wrong_value_is_named_with_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_settings({key: value})
    assert key in str(refused.value)
    if not isinstance(value, timedelta):  # shown in seconds
        assert repr(value) in str(refused.value)


@pytest.mark.parametrize("value", [json.dumps, "json.dumps", "json:dumps"], ids=["function", "path", "entry point"])
def test_a_redactor_is_a_function_or_its_dotted_path(value: Any) -> None:
    assert read_settings({"durable_redact": value}).redact is json.dumps


@pytest.mark.parametrize("value", ["nonsense", 5], ids=repr)
def test_a_wrong_serializer_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^durable_serializer .*kombu"):
        read_settings({"durable_serializer": value})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("durable_retentoin", "durable_retention"),
        ("durable_redis", "durable_redis_url"),
        ("durable_max_recovery", "durable_max_recoveries"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no setting '{wrong}' .did you mean '{right}'"):
        read_settings({wrong: 1})


def test_an_unknown_key_is_refused_when_a_task_of_a_real_app_reads_it(app: Celery) -> None:
    app.conf.durable_retentoin = 5
    task = app.task(base=DurableTask, name="settings.unknown")(nothing)
    with pytest.raises(ConfigurationError, match="durable_retention"):
        task.durable_settings  # noqa: B018


@pytest.mark.parametrize(
    ("config", "namespace"),
    [
        (SimpleNamespace(durable_lease=7), None),
        (SimpleNamespace(CELERY_DURABLE_LEASE=7), "CELERY"),
        (SimpleNamespace(shop_durable_lease=7), "shop"),
    ],
    ids=["plain", "upper case", "lower case"],
)
def test_namespaced_forms_work(app: Celery, config: Any, namespace: str | None) -> None:
    app.config_from_object(config, namespace=namespace)
    assert read_settings(app.conf).lease == 7


@pytest.mark.parametrize(
    ("key", "namespace"),
    [
        ("CELERY_DURABLE_LEASES", "CELERY"),
        ("CELERY_DURABLE_LEASES", "CELERY_"),
        ("shop_durable_leases", "shop"),
        ("shop_durable_leases", "Shop"),
        ("durable_leases", "CELERY"),
    ],
)
def test_an_unknown_namespaced_key_is_refused(app: Celery, key: str, namespace: str) -> None:
    app.config_from_object(SimpleNamespace(**{key: 7}), namespace=namespace)
    with pytest.raises(ConfigurationError, match="durable_lease"):
        read_settings(app.conf, app.namespace)


@pytest.mark.parametrize("namespace", ["CELERY", "celery", None])
def test_an_upper_case_key_without_the_namespace_is_somebody_else_s(app: Celery, namespace: str | None) -> None:
    """In the settings of a Django project, say."""
    app.config_from_object(SimpleNamespace(DURABLE_FOO=7, DURABLE_LEASE=7), namespace=namespace)
    assert read_settings(app.conf, app.namespace) == Settings()


TASK_VALUES: dict[str, tuple[Any, Any]] = {
    "task_retry_policy": (RetryPolicy(max_attempts=5), RetryPolicy(max_attempts=6)),
    "inline_retry_limit": (5, 6),
    "inactivity_timeout": (5, 6),
    "abort_timeout": (5, 6),
    "max_recoveries": (5, 6),
    "retention": (5, 6),
    "failure_retention": (5, 6),
    "max_entry_size": (5, 6),
    "journal_sync": ("replicas", "memory"),
    "build": ("7", "8"),
    "stall_timeout": (5, 6),
    "durable_serializer": ("pickle", "json"),
    "redact": (json.dumps, json.loads),
}


@pytest.mark.parametrize("option", sorted(TASK_OPTIONS))
def test_an_option_of_the_task_wins_over_the_setting_of_the_app(app: Celery, option: str) -> None:
    of_app, of_task = TASK_VALUES[option]
    field = TASK_OPTIONS[option]
    setattr(app.conf, f"durable_{field}", of_app)
    plain = durable_task(name="settings.plain")(with_context)
    special = durable_task(name="settings.special", **{option: of_task})(with_context)
    assert getattr(plain.durable_settings, field) == of_app
    assert getattr(special.durable_settings, field) == of_task


@pytest.mark.parametrize("option", sorted(TASK_OPTIONS.keys() - {"task_retry_policy"}))
def test_the_base_class_takes_all_options_but_the_retry_policy(app: Celery, option: str) -> None:
    of_app, of_task = TASK_VALUES[option]
    field = TASK_OPTIONS[option]
    setattr(app.conf, f"durable_{field}", of_app)
    plain = app.task(base=DurableTask, name="settings.plain")(nothing)
    special = app.task(base=DurableTask, name="settings.special", **{option: of_task})(nothing)
    assert getattr(plain.durable_settings, field) == of_app
    assert getattr(special.durable_settings, field) == of_task


def test_a_method_of_a_task_is_no_option(app: Celery) -> None:
    class Letters(DurableTask):  # type: ignore[type-arg]
        name = "settings.letters"

        def build(self) -> str:
            return "a letter"

        def redact(self, letter: str) -> str:
            return letter.replace("secret", "")

        def run(self) -> str:
            return self.redact(self.build())

    task = app.register_task(Letters())
    assert (task.durable_settings.build, task.durable_settings.redact) == (None, None)
    assert task.run() == "a letter"


def test_a_wrong_option_of_a_task_is_named_without_the_prefix(app: Celery) -> None:
    task = app.task(base=DurableTask, name="settings.wrong", max_recoveries=-1)(nothing)
    with pytest.raises(ConfigurationError, match=r"^max_recoveries must be 0 or more, got -1"):
        task.durable_settings  # noqa: B018


# -- one declaration, and what is to have the same names ---------------------------------------------------------------


@pytest.mark.parametrize("field", [name for name, value in Settings()._asdict().items() if value is not None])
def test_a_default_is_what_its_own_check_makes_of_it(field: str) -> None:
    assert Settings().of_app({f"durable_{field}": getattr(Settings(), field)}) == Settings()


def test_the_base_class_has_an_attribute_for_each_option_of_a_task() -> None:
    attributes = {name for name, hint in DurableTask.__annotations__.items() if hint == "Any"}
    assert attributes == set(TASK_OPTIONS)
    assert {vars(DurableTask)[option] for option in TASK_OPTIONS} == {None}


@pytest.mark.parametrize("option", sorted(TASK_OPTIONS))
def test_an_option_of_a_task_is_documented_where_it_is_given(option: str) -> None:
    documented = re.findall(r"^    ([\w, ]+):", inspect.getdoc(durable_task) or "", re.MULTILINE)
    assert option in ", ".join(documented).split(", ")
    if option != "task_retry_policy":  # the base class refuses it
        assert f"``{option}``" in (DurableTask.__doc__ or "")


def test_attempts_get_the_values_of_the_settings_that_they_go_by() -> None:
    given = Settings()._replace(**{name: object() for name in Settings._fields})
    found = AttemptSettings.of(given, build="7")
    own = AttemptSettings._field_defaults.keys() | {"build"}
    assert {name: getattr(found, name) for name in AttemptSettings._fields if name not in own} == {
        name: getattr(given, name) for name in AttemptSettings._fields if name not in own
    }
    assert found.build == "7"


def test_settings_of_attempts_have_the_types_of_the_settings() -> None:
    types, of_attempts = get_type_hints(Settings), get_type_hints(AttemptSettings)
    shared = of_attempts.keys() & types.keys() - {"build"}
    assert {name: of_attempts[name] for name in shared} == {name: types[name] for name in shared}
    assert of_attempts.keys() - types.keys() == AttemptSettings._field_defaults.keys()


# -- which Redis -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "url"),
    [
        ({"durable_redis_url": "redis://own/0"}, "redis://own/0"),
        ({"durable_redis_url": "rediss://own/0", "result_backend": "redis://b/1"}, "rediss://own/0"),
        ({"result_backend": "redis://b/1", "broker_url": "redis://c/2"}, "redis://b/1"),
        ({"result_backend": "db+sqlite:///x", "broker_url": "redis://c/2"}, "redis://c/2"),
        ({"broker_url": "redis+socket:///run/redis.sock"}, "redis+socket:///run/redis.sock"),
        ({"durable_redis_url": "redis://one/0;redis://two/0"}, "redis://one/0"),
        ({"durable_redis_url": "redis+cluster://one;redis+cluster://two"}, "redis+cluster://one;redis+cluster://two"),
        ({"durable_redis_url": "rediss+cluster://one:7000;two:7001"}, "rediss+cluster://one:7000;two:7001"),
        (
            {"broker_url": "sentinel://one;sentinel://two", "broker_transport_options": {"master_name": "m"}},
            "sentinel://one;sentinel://two",
        ),
        (
            {"result_backend": "sentinel://one", "result_backend_transport_options": {"master_name": "m"}},
            "sentinel://one",
        ),
        ({"durable_redis_url": "sentinel://one/0?master_name=m"}, "sentinel://one/0?master_name=m"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_journal_is_in_the_first_redis_that_is_configured(app: Celery, conf: dict[str, Any], url: str) -> None:
    app.conf.update(conf)
    assert Address.of(app.conf, read_settings(app.conf)).url == url


@pytest.mark.parametrize(
    ("conf", "option"),
    [
        ({"durable_redis_url": "sentinel://one"}, "result_backend_transport_options"),
        ({"result_backend": "sentinel://one"}, "result_backend_transport_options"),
        (
            {"durable_redis_url": "sentinel://one", "broker_transport_options": {"master_name": "m"}},
            "result_backend_transport_options",
        ),
        (
            {"broker_url": "sentinel://one", "result_backend_transport_options": {"master_name": "m"}},
            "broker_transport_options",
        ),
    ],
)
def test_sentinels_without_the_name_of_their_master_are_refused(app: Celery, conf: dict[str, Any], option: str) -> None:
    app.conf.update(conf)
    with pytest.raises(ConfigurationError, match=rf"not their master: set {option} = "):
        Address.of(app.conf, read_settings(app.conf))


def test_a_cluster_s_nodes_are_read_from_its_url() -> None:
    address = Address("rediss+cluster://shop:secret@one:7000/0?ssl_cert_reqs=none;two:7001;rediss+cluster://three")
    assert address.nodes == [("one", 7000), ("two", 7001), ("three", 6379)]
    assert str(address).startswith("rediss+cluster://shop:***@one:7000")


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        (Address("redis+cluster://shop:secret@one:7000;two"), {"username": "shop", "password": "secret"}),
        (Address("rediss+cluster://one:7000?ssl_cert_reqs=none;two"), {"connection_class": SSLConnection}),
        (
            Address("sentinel://shop:secret@one/2;sentinel://two", {"master_name": "m"}),
            {"username": "shop", "password": "secret", "db": 2},
        ),
    ],
)
def test_user_and_tls_of_the_first_url_hold_for_all(app: Celery, address: Address, wanted: dict[str, Any]) -> None:
    pool: Any = address.connector(app)
    found = pool.connection_kwargs | {"connection_class": pool.connection_class}
    assert {name: found.get(name) for name in wanted} == wanted


def test_a_sentinel_is_given_a_second_unless_it_is_said_otherwise(app: Celery) -> None:
    options = {"master_name": "m", "min_other_sentinels": 2, "sentinel_kwargs": {"socket_timeout": 3, "password": "p"}}
    pools: list[Any] = [
        Address("sentinel://one", {"master_name": "m"}).connector(app),
        Address("sentinel://one", options).connector(app),
    ]
    usual, special = (pool.sentinel_manager for pool in pools)
    assert usual.sentinel_kwargs["socket_timeout"] == usual.sentinel_kwargs["socket_connect_timeout"] == 1
    assert (special.sentinel_kwargs["socket_timeout"], special.sentinel_kwargs["password"]) == (3, "p")
    assert (usual.min_other_sentinels, special.min_other_sentinels) == (0, 2)


def test_a_process_may_have_more_attempts_than_redis_py_allows_connections(app: Celery) -> None:
    pool = Address("redis://one").connector(app)
    assert len({pool.make_connection() for _ in range(101)}) == 101


def test_without_a_redis_the_error_says_what_was_found_and_what_to_set(app: Celery) -> None:
    app.conf.broker_url = "amqp://shop:secret@rabbit//"
    with pytest.raises(ConfigurationError) as refused:
        Address.of(app.conf, read_settings(app.conf))
    assert "set durable_redis_url" in str(refused.value)
    assert "amqp://shop:***@rabbit" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_url_that_is_no_redis_is_refused_without_showing_its_password(app: Celery) -> None:
    app.conf.update(durable_redis_url="postgres://shop:secret@db/0", result_backend="redis://b/1")
    with pytest.raises(ConfigurationError) as refused:
        Address.of(app.conf, read_settings(app.conf))
    assert "durable_redis_url must be" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_password_is_never_shown() -> None:
    assert without_password("redis://:secret@host:6379/0") == "redis://:***@host:6379/0"
    assert without_password("redis://host:6379/0") == "redis://host:6379/0"
    assert without_password("sentinel://:one@a;sentinel://:two@b") == "sentinel://:***@a;sentinel://:***@b"
