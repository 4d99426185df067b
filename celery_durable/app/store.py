"""The Redis of an app, and the connections of this process to it."""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakKeyDictionary, ref

from celery_durable.config.settings import Settings
from celery_durable.delivery import result
from celery_durable.delivery.backend import Interim
from celery_durable.journal.port import LONGEST_READ, Result
from celery_durable.redis.client.cluster import Cluster
from celery_durable.redis.client.connector import Connector
from celery_durable.redis.client.pool import JournalConnectionPool
from celery_durable.redis.family import Families
from celery_durable.redis.index import Index
from celery_durable.redis.journal import RedisJournal
from celery_durable.redis.keys import Keys
from celery_durable.redis.lease import Lease, LeaseKeeper
from celery_durable.redis.runs import StoredRuns
from celery_durable.redis.shards import Shards

from .address import Address
from .owner import owner_name
from .settings import settings_of


class Store:
    """Keeps the runs of an app in Redis: gives their journals, and a view of all runs.

    Args:
        app: the Celery app.
        patience: seconds for which a command is tried again, and after which a read is given up, if somebody waits for
            it. Default: a worker tries again for as long as a lease lasts.
    """

    def __init__(self, app: Any, patience: float | None = None) -> None:
        self.settings = settings_of(app)
        self.address = Address.of(app.conf, self.settings)
        self.patience = patience
        # The reference is weak: an app holds its store.
        app, address, lease = ref(app), self.address, self.settings.lease
        longest_read = LONGEST_READ if patience is None else min(patience, LONGEST_READ)
        timeout = lease if patience is None else patience

        def connector() -> Connector:
            return address.connector(app(), longest_read)

        if address.is_cluster:
            self._cluster: Cluster | None = Cluster(connector, address.nodes, timeout)
            self.shards = Shards(self.settings.key_prefix, self._cluster.pool_for)
        else:
            self._cluster, pool = None, JournalConnectionPool(connector, timeout)
            self.shards = Shards(self.settings.key_prefix, lambda _key: pool)
        # In a Cluster each shard has its own keeper. So one that waits for a dead node does not hold up the others.
        self._keepers = {pool: LeaseKeeper(pool, lease) for pool in self.shards.by_pool()}
        self.pool, self.leases = next(iter(self._keepers.items()))
        """The connections and the leases of one Redis; in a Cluster, those of the first shard."""
        self.runs = StoredRuns(self.shards, self.settings.lease)
        self.families = Families(self.shards, self.settings.lease)
        self.index = Index(self.shards)

    def masters(self) -> list[JournalConnectionPool]:
        """The connections to each server that has runs.

        Raises:
            JournalUnavailableError: no node of the Cluster answers.
        """
        return [self.pool] if self._cluster is None else self._cluster.by_master()

    def keys(self, task_id: str) -> Keys:
        """The names of the keys in Redis that belong to the run."""
        return self.shards.of(task_id).keys(task_id)

    def journal(self, task_id: str) -> RedisJournal:
        """The journal of a run, with the settings of the app."""
        shard = self.shards.of(task_id)
        return RedisJournal(shard.pool, shard.keys(task_id), owner_name(os.getpid()), self.settings.lease)

    def result_of(self, task: Any, request: Any, value: Any) -> Result | None:
        """The result of a success, if the journal can write it: see :mod:`~celery_durable.delivery.result`."""
        return result.colocated_result(task, request, value, self.address.url_for_celery)

    def interim_of(self, task: Any, request: Any, shown: Interim) -> Result | None:
        """What the result backend shows of a run that goes on later, if the journal can write it."""
        return result.colocated_interim(task, request, shown, self.address.url_for_celery)

    def journal_for(self, task_id: str, settings: Settings) -> tuple[RedisJournal, Lease]:
        """The journal of a run, not opened yet, and its lease; *settings* are the settings of its task."""
        shard = self.shards.of(task_id)
        keep = min(settings.retention, settings.failure_retention)
        owner, lease = owner_name(os.getpid()), self.settings.lease
        journal = RedisJournal(shard.pool, shard.keys(task_id), owner, lease, settings.journal_sync, keep)
        return journal, Lease(self._keepers[shard.pool], journal.ownership)


_stores: WeakKeyDictionary[Any, Store] = WeakKeyDictionary()
_making = threading.Lock()


def store_of(app: Any) -> Store:
    """The store of *app*. It is made at the first call.

    Raises:
        ConfigurationError: a ``durable_*`` setting is wrong, or no Redis is configured.
    """
    store = _stores.get(app)
    if store is None:
        with _making:
            store = _stores.get(app) or _stores.setdefault(app, Store(app))
    return store


def be_patient(app: Any, seconds: float) -> None:
    """From now on, the store of *app* waits no longer than that: in this process, a person waits for its answers.

    Raises:
        ConfigurationError: see :func:`store_of`.
    """
    with _making:
        store = _stores.get(app)
        if store is None or store.patience != seconds:
            _stores[app] = Store(app, seconds)
