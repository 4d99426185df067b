"""The Redis of an app: which one it is, and this process's connections to it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, ref

from .exceptions import ConfigurationError
from .hold import Hold
from .lease import Lease, LeaseKeeper
from .redis_journal import Keys, RedisJournal
from .runs import Runs
from .settings import Settings
from .wire import Wires

if TYPE_CHECKING:
    from celery import Celery
    from redis.connection import ConnectionPool

_SCHEMES = frozenset({"redis", "rediss", "redis+socket", "socket"})
_LONGEST_READ = 5.0
_UNLIMITED = 2**31


class Store:
    """Where the runs of an app are kept."""

    def __init__(self, app: Any) -> None:
        self.settings = Settings.of(app)
        self.url = redis_url(app.conf, self.settings)
        # A write is retried for as long as the lease that protects it.
        # The app is not to be kept alive by its store.
        app, url = ref(app), self.url
        self.wires = Wires(lambda: make_pool(app(), url), patience=self.settings.lease)
        self.leases = LeaseKeeper(self.wires, self.settings.lease)
        self.runs = Runs(self.wires, self.settings.key_prefix, self.settings.lease)

    def keys(self, task_id: str) -> Keys:
        return self.runs.keys(task_id)

    def journal(self, task_id: str) -> RedisJournal:
        return RedisJournal(self.wires, self.keys(task_id), self.settings.lease)

    def hold(self, task_id: str, settings: Settings) -> Hold:
        """A hold on a run, not opened yet; *settings* are those of its task."""
        journal = self.journal(task_id)
        return Hold(journal, settings, Lease(self.leases, journal))


_stores: WeakKeyDictionary[Any, Store] = WeakKeyDictionary()
_making = threading.Lock()


def store_of(app: Any) -> Store:
    """The store of *app*, made at first use.

    Raises:
        ConfigurationError: a ``durable_*`` setting is wrong, or no Redis is configured.
    """
    try:
        return _stores[app]
    except KeyError:
        with _making:
            if app not in _stores:
                _stores[app] = Store(app)
            return _stores[app]


def redis_url(conf: Any, settings: Settings) -> str:
    """``durable_redis_url``, else the result backend, else the broker: the first that is a Redis."""
    candidates = {
        "durable_redis_url": settings.redis_url,
        # As attributes: Celery looks into the environment, too.
        "result_backend": conf.result_backend,
        "broker_url": conf.broker_url,
    }
    for name, value in candidates.items():
        urls = value if isinstance(value, (list, tuple)) else str(value or "").split(";")
        if urls and urlsplit(urls[0]).scheme in _SCHEMES:
            return str(urls[0])
        if name == "durable_redis_url" and value:
            raise ConfigurationError(f"durable_redis_url must be {_supported()}, got {without_password(value)}")
    found = ", ".join(f"{name}={without_password(value) if value else None}" for name, value in candidates.items())
    raise ConfigurationError(f"no Redis for the journal: set durable_redis_url to {_supported()}; found {found}")


def _supported() -> str:
    return "a URL of redis://, rediss:// or redis+socket://"


def without_password(url: Any) -> str:
    parts = urlsplit(str(url))
    return str(url).replace(f":{parts.password}@", ":***@") if parts.password else str(url)


def make_pool(app: Celery | None, url: str) -> ConnectionPool:
    """Celery's own reading of a Redis URL (TLS, sockets, credential providers), with reads that end in seconds."""
    from celery.backends.redis import RedisBackend
    from redis.backoff import NoBackoff
    from redis.connection import ConnectionPool
    from redis.retry import Retry

    backend: Any = RedisBackend(app=app, url=url.removeprefix("redis+"))
    params = dict(backend.connparams)
    params.pop("retry_on_timeout", None)
    params["max_connections"] = _UNLIMITED  # each live attempt has one
    params["retry"] = Retry(NoBackoff(), 0)  # the wire tries again, and knows for how long
    for timeout in ("socket_timeout", "socket_connect_timeout"):
        if timeout in params or "path" not in params:
            params[timeout] = min(params.get(timeout) or _LONGEST_READ, _LONGEST_READ)
    return ConnectionPool(**params)
