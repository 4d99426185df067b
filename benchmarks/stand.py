"""A stand for single attempts: the body of a durable task runs in this process, traced by Celery as in a worker.

Without a worker around it the cost of a step can be taken in the same process, and on the same core, as its yardstick.
"""

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import redis
from celery import Celery
from celery.app.trace import build_tracer
from celery.exceptions import Reject

import celery_durable
from celery_durable import AsyncDurableContext, DurableContext

SyncBody = Callable[[DurableContext], object]
AsyncBody = Callable[[AsyncDurableContext], Awaitable[object]]


class _Slot:
    """What the tasks below are to do now: no function fits into a message."""

    sync_body: SyncBody
    async_body: AsyncBody
    reached = False
    again = False

    def leave(self) -> None:
        self.reached = True
        if self.again:
            # The one way to end an attempt that neither ends its run nor sends anything.
            raise Reject(requeue=True)


_slot = _Slot()


@celery_durable.durable_task(name="benchmarks.sync")
def _sync(ctx: DurableContext) -> None:
    _slot.sync_body(ctx)
    _slot.leave()


@celery_durable.durable_task(name="benchmarks.async")
async def _async(ctx: AsyncDurableContext) -> None:
    await _slot.async_body(ctx)
    _slot.leave()


class Stand:
    """Attempts of runs whose journals are on the server at *url*."""

    def __init__(self, url: str) -> None:
        self.app = Celery("benchmarks", broker=url, set_as_current=False)
        self.app.conf.update(durable_redis_url=url, task_ignore_result=True)
        self.app.finalize()
        self._url = url
        self._tracers: dict[str, Callable[..., Any]] = {}

    def run(self, body: SyncBody, task_id: str | None = None, *, again: bool = False) -> str:
        """One attempt of a sync task; its id. With *again* the run stays open for another attempt."""
        _slot.sync_body = body
        return self._trace("benchmarks.sync", task_id, again=again)

    def run_async(self, body: AsyncBody, task_id: str | None = None, *, again: bool = False) -> str:
        """The same with an async task."""
        _slot.async_body = body
        return self._trace("benchmarks.async", task_id, again=again)

    def _trace(self, name: str, task_id: str | None, *, again: bool) -> str:
        task_id = task_id or str(uuid.uuid4())
        if name not in self._tracers:
            self._tracers[name] = build_tracer(name, self.app.tasks[name], app=self.app)
        _slot.reached, _slot.again = False, again
        ended = self._tracers[name](task_id, (), {}, {"id": task_id, "task": name, "is_eager": False})
        if not _slot.reached:
            raise RuntimeError(f"the body of {name} did not end: {ended}")
        return task_id

    def client(self) -> "redis.Redis":
        """A client of redis-py with the settings that Celery, and the journal with it, makes its connections by."""
        from celery.backends.redis import RedisBackend

        backend: Any = RedisBackend(app=self.app, url=self._url)
        names = ("host", "port", "db", "username", "password", "socket_timeout", "socket_connect_timeout")
        settings = {name: backend.connparams[name] for name in names if name in backend.connparams}
        return redis.Redis(**settings)

    def journal(self, task_id: str) -> dict[bytes, bytes]:
        """What the server keeps of a run."""
        with self.client() as client:
            [key] = client.scan_iter(match=f"*:run:{task_id}", count=10_000)
            fields: dict[bytes, bytes] = client.hgetall(key)
            return fields

    def forget(self, task_id: str) -> None:
        """Delete the journal of a run."""
        with self.client() as client:
            for key in client.scan_iter(match=f"*:run:{task_id}", count=10_000):
                client.unlink(key)
