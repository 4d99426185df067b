"""The app's ``durable_*`` settings and the decorator's options, read once into a frozen, checked object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from celery_durable.exceptions import ConfigurationError
from celery_durable.values.serializers import ACCEPT_ANY, check_serializer

from .checks import seconds, suggestion, whole
from .retry import RetryPolicy

PREFIX = "durable_"
SYNCS = ("memory", "replicas", "disk")

_VISIBILITY = 3600
"""Seconds: kombu's default where brokers have such a thing."""


class Settings(NamedTuple):
    """One field per ``durable_*`` key; durations in seconds."""

    redis_url: str | None = None
    key_prefix: str = "durable:"
    task_retry_policy: RetryPolicy = RetryPolicy()
    inline_retry_limit: float = 0.0
    max_broker_delay: float = 60.0
    inactivity_timeout: float = 60.0
    abort_timeout: float = 600.0
    lease: float = 30.0
    max_recoveries: int = 10
    retention: float = timedelta(hours=24).total_seconds()
    failure_retention: float = timedelta(days=7).total_seconds()
    max_entry_size: int = 32 * 2**20
    step_threads: int = 64
    serializer: Any = "json"
    journal_sync: str = "memory"
    allow_atomic: bool = False
    build: str | None = None
    stall_timeout: float = timedelta(hours=1).total_seconds()

    @classmethod
    def read(cls, conf: Mapping[str, Any], namespace: str | None = None) -> Settings:
        """From a Celery configuration, whose keys may have the *namespace* of ``config_from_object``.

        Raises:
            ConfigurationError: a value is wrong, or a ``durable_*`` key is unknown.
        """
        known = {PREFIX + name for name in cls._fields}
        for key in _durable_keys(conf, namespace):
            if key not in known:
                raise ConfigurationError(f"there is no setting {key!r}{suggestion(key, known)}; known: {sorted(known)}")
        given = {name: conf.get(PREFIX + name) for name in cls._fields}
        return cls().with_options({name: value for name, value in given.items() if value is not None}, PREFIX)

    @classmethod
    def of(cls, app: Any) -> Settings:
        """Those of a Celery app."""
        settings = cls.read(app.conf, app.namespace)
        # A broker delivers again what it holds for longer than that.
        visibility = (app.conf.broker_transport_options or {}).get("visibility_timeout", _VISIBILITY)
        return settings._replace(max_broker_delay=min(settings.max_broker_delay, visibility / 2))

    def with_options(self, given: Mapping[str, Any], prefix: str = "") -> Settings:
        """These settings with some replaced, after a check of each."""
        return self._replace(**{name: _CHECKS[name](prefix + name, value) for name, value in given.items()})


def _durable_keys(conf: Mapping[str, Any], namespace: str | None) -> Iterable[str]:
    """The keys of ours in a Celery configuration, without the namespace.

    Celery finds a key in lower case, or in the namespace and in its case. In the configuration of a whole project
    (``django.conf:settings``) others may be somebody else's.
    """
    start = _as_celery_looks_for(namespace) if namespace else ""
    for key in map(str, conf):
        name = key.removeprefix(start).lower() if start and key.startswith(start) else key
        if name.startswith(PREFIX):
            yield name


def _as_celery_looks_for(namespace: str) -> str:
    start = namespace.rstrip("_") + "_"
    return start if start.isupper() else start.lower()


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{name} must be a text, got {value!r}")
    return value


def _policy(name: str, value: Any) -> RetryPolicy:
    if not isinstance(value, RetryPolicy):
        raise ConfigurationError(f"{name} must be a RetryPolicy, got {value!r}")
    return value


def _above_zero(name: str, value: Any) -> float:
    return seconds(name, value, zero=False)


def _lease(name: str, value: Any) -> float:
    if (lease := seconds(name, value)) < 1:
        raise ConfigurationError(f"{name} must be 1 second or more (it is renewed three times in it), got {value!r}")
    return lease


def _serializer(_name: str, value: Any) -> Any:
    # The decorator's option has the prefix, too.
    check_serializer(value, ACCEPT_ANY, PREFIX + "serializer")
    return value


def _sync(name: str, value: Any) -> str:
    if value not in SYNCS:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, SYNCS))}, got {value!r}")
    return str(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, got {value!r}")
    return value


def _prefix(name: str, value: Any) -> str:
    if "{" in _text(name, value) or "}" in value:
        raise ConfigurationError(f"{name} must not contain braces, which mark the Cluster hash tag, got {value!r}")
    return str(value)


_CHECKS: dict[str, Any] = {
    "redis_url": _text,
    "key_prefix": _prefix,
    "task_retry_policy": _policy,
    "inline_retry_limit": seconds,
    "max_broker_delay": seconds,
    "inactivity_timeout": _above_zero,
    "abort_timeout": _above_zero,
    "lease": _lease,
    "max_recoveries": lambda name, value: whole(name, value, least=0),
    "retention": seconds,
    "failure_retention": seconds,
    "max_entry_size": lambda name, value: whole(name, value, least=1),
    "step_threads": lambda name, value: whole(name, value, least=1),
    "serializer": _serializer,
    "journal_sync": _sync,
    "allow_atomic": _flag,
    "build": _text,
    "stall_timeout": seconds,
}

# What a decorator may set; ``serializer`` is Celery's name for that of the message, so ours keeps its prefix there.
TASK_OPTIONS = {
    "task_retry_policy": "task_retry_policy",
    "inline_retry_limit": "inline_retry_limit",
    "inactivity_timeout": "inactivity_timeout",
    "abort_timeout": "abort_timeout",
    "max_recoveries": "max_recoveries",
    "retention": "retention",
    "failure_retention": "failure_retention",
    "max_entry_size": "max_entry_size",
    "journal_sync": "journal_sync",
    "build": "build",
    "stall_timeout": "stall_timeout",
    "durable_serializer": "serializer",
}
