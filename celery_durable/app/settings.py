"""The ``durable_*`` settings of an app, read from its Celery configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celery_durable.config.checks import suggestion
from celery_durable.config.settings import KEYS, PREFIX, Settings
from celery_durable.exceptions import ConfigurationError

_VISIBILITY_TIMEOUT = 3600
"""Seconds: kombu's default for brokers that have a visibility timeout."""


def settings_of(app: Any) -> Settings:
    """The settings of a Celery app.

    Raises:
        ConfigurationError: a value is wrong, or a ``durable_*`` key is unknown.
    """
    settings = read_settings(app.conf, app.namespace)
    # If a worker holds a message for longer than the visibility timeout, the broker delivers it again.
    return settings._replace(max_broker_delay=min(settings.max_broker_delay, visibility_timeout(app) / 2))


def visibility_timeout(app: Any) -> float:
    """Seconds for which the broker of an app waits for the acknowledgement of a message."""
    timeout: float = (app.conf.broker_transport_options or {}).get("visibility_timeout", _VISIBILITY_TIMEOUT)
    return timeout


def read_settings(conf: Mapping[str, Any], namespace: str | None = None) -> Settings:
    """The settings in a configuration. Its keys may begin with the *namespace* of ``config_from_object``.

    Raises:
        ConfigurationError: a value is wrong, or a ``durable_*`` key is unknown.
    """
    for key in _durable_keys(conf, namespace):
        if key not in KEYS:
            raise ConfigurationError(f"there is no setting {key!r}{suggestion(key, KEYS)}; known: {sorted(KEYS)}")
    given = {key: conf.get(key) for key in KEYS}
    return Settings().of_app({key: value for key, value in given.items() if value is not None})


def _durable_keys(conf: Mapping[str, Any], namespace: str | None) -> Iterable[str]:
    """The keys of this library in a Celery configuration, without the namespace.

    Celery finds a key in lower case, or a key that begins with the namespace, in the case of the namespace. Other keys
    are left alone: in the settings of a whole project (``django.conf:settings``) they may belong to other software.
    """
    start = _as_celery_looks_for(namespace) if namespace else ""
    for key in map(str, conf):
        name = key.removeprefix(start).lower() if start and key.startswith(start) else key
        if name.startswith(PREFIX):
            yield name


def _as_celery_looks_for(namespace: str) -> str:
    """The prefix of the keys in a *namespace*, as Celery looks for it."""
    start = namespace.rstrip("_") + "_"
    return start if start.isupper() else start.lower()
