"""The address of an app's Redis: a server, the master that Sentinels name, or a Cluster. URLs are read as by Celery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from celery_durable.config.settings import Settings
from celery_durable.exceptions import ConfigurationError
from celery_durable.journal.port import LONGEST_READ
from celery_durable.redis.client.connector import Connector, to_master, to_server

if TYPE_CHECKING:
    from celery import Celery

_SINGLE = frozenset({"redis", "rediss", "redis+socket", "socket"})
_SENTINEL = "sentinel"
_CLUSTER = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_SCHEMES = _SINGLE | {_SENTINEL} | _CLUSTER.keys()
_SUPPORTED = "a URL of redis://, rediss://, redis+socket://, sentinel://, redis+cluster:// or rediss+cluster://"
_SEPARATOR = ";"


class Address(NamedTuple):
    """The URL of a Redis. Sentinels and a Cluster may have several URLs, separated by ``;``."""

    url: str
    options: Mapping[str, Any] = {}
    """``result_backend_transport_options``; ``broker_transport_options`` if the URL is the broker's."""

    @classmethod
    def of(cls, conf: Any, settings: Settings) -> Address:
        """The first Redis among ``durable_redis_url``, the result backend and the broker.

        Raises:
            ConfigurationError: none of them is a Redis, or the name of a Sentinel master is missing.
        """
        candidates = {
            "durable_redis_url": settings.redis_url,
            # These are read as attributes, because Celery then looks into the environment, too.
            "result_backend": conf.result_backend,
            "broker_url": conf.broker_url,
        }
        for name, value in candidates.items():
            urls = value if isinstance(value, (list, tuple)) else str(value or "").split(_SEPARATOR)
            scheme = urlsplit(urls[0]).scheme if urls else ""
            if scheme in _SCHEMES:
                option = f"{'broker' if name == 'broker_url' else 'result_backend'}_transport_options"
                options = getattr(conf, option)
                # If single servers are listed, kombu takes the first one that answers. A journal has one place only.
                address = cls(urls[0] if scheme in _SINGLE else _SEPARATOR.join(urls), options or {})
                if address.is_sentinel and not address.master_name:
                    raise ConfigurationError(
                        f"{address} names Sentinels, but not their master: set {option} = {{'master_name': ...}}"
                    )
                return address
            if name == "durable_redis_url" and value:
                raise ConfigurationError(f"durable_redis_url must be {_SUPPORTED}, got {without_password(value)}")
        found = ", ".join(f"{name}={without_password(value) if value else None}" for name, value in candidates.items())
        raise ConfigurationError(f"no Redis for the journal: set durable_redis_url to {_SUPPORTED}; found {found}")

    @property
    def _scheme(self) -> str:
        return urlsplit(self.url).scheme

    @property
    def is_sentinel(self) -> bool:
        """Whether the URL names Sentinels."""
        return self._scheme == _SENTINEL

    @property
    def is_cluster(self) -> bool:
        """Whether the URL names nodes of a Cluster."""
        return self._scheme in _CLUSTER

    @property
    def master_name(self) -> str | None:
        """The name of the master that the Sentinels watch: from the URL, else from the options, where Celery has it."""
        in_url = parse_qs(urlsplit(self.url.split(_SEPARATOR)[0]).query).get("master_name")
        return in_url[0] if in_url else self.options.get("master_name")

    @property
    def nodes(self) -> list[tuple[str, int]]:
        """Host and port of the nodes of a Cluster that the URL names."""
        urls = [part if "://" in part else f"redis://{part}" for part in self.url.split(_SEPARATOR) if part]
        return [(parts.hostname or "localhost", parts.port or 6379) for parts in map(urlsplit, urls)]

    def __str__(self) -> str:
        return without_password(self.url)

    @property
    def url_for_celery(self) -> str:
        """The URL in the form that Celery's backend for a single Redis takes."""
        return self.url.removeprefix("redis+")

    # -- connections

    def connector(self, app: Celery | None, longest_read: float = LONGEST_READ) -> Connector:
        """Makes connections to this Redis, with the parameters that Celery reads from the URL and its settings."""
        if self.is_sentinel:
            return self._connector_by_sentinels(app, longest_read)
        from celery_durable.seams.results import connection_parameters

        url = self.url_for_celery
        if self.is_cluster:
            url = _CLUSTER[self._scheme] + self.url.split(_SEPARATOR)[0].removeprefix(self._scheme)
        return to_server(connection_parameters(app, url), longest_read)

    def _connector_by_sentinels(self, app: Celery | None, longest_read: float) -> Connector:
        from celery_durable.seams.results import connection_parameters

        params = connection_parameters(app, self.url, by_sentinels=True)
        sentinels = [(host["host"], host["port"]) for host in params.pop("hosts")]
        return to_master(
            self.master_name,
            sentinels,
            params,
            longest_read,
            min_other_sentinels=self.options.get("min_other_sentinels", 0),
            sentinel_params=self.options.get("sentinel_kwargs", {}),
        )


def without_password(url: Any) -> str:
    """One URL or several, with ``***`` in place of each password."""
    return _SEPARATOR.join(_masked(part) for part in str(url).split(_SEPARATOR))


def _masked(url: str) -> str:
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", ":***@") if parts.password else url
