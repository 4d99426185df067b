"""The private names of Celery that are needed where a task runs: around its body, and in result backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend, SentinelBackend

from .celery import CELERY

overridden: Callable[[Any, str], Any] = CELERY.look_up("celery.app.trace", "task_has_custom")
"""Which class of a *task* replaces an attribute of Celery's ``Task``; None if none does."""

_RedisBackend: Any = RedisBackend
_mark_as_done: Any = CELERY.look_up("celery.backends.base", "Backend.mark_as_done")
for _name in ("_get_result_meta", "encode", "encode_result", "get_key_for_task"):
    CELERY.look_up("celery.backends.base", f"KeyValueStoreBackend.{_name}")
CELERY.check_inside("celery.backends.base", "Backend.__init__", "expires")
CELERY.check_inside("celery.backends.redis", "RedisBackend.__init__", "connparams", "url")


def stores_no_success(backend: Any) -> bool:
    """Whether a backend does nothing for a success if its result is ignored: it has no such method of its own."""
    return bool(type(backend).mark_as_done is _mark_as_done)


def is_celerys_redis(backend: Any, url: str) -> bool:
    """Whether it is Celery's own backend for the Redis with this URL, and not a class that is derived from it."""
    return type(backend) is _RedisBackend and backend.url == url


def stored_form(
    backend: Any, request: Any, result: Any, state: str = states.SUCCESS, traceback: str | None = None
) -> tuple[str, str | bytes, int]:
    """How a backend stores a state and its result: the key, the text, and for how many seconds."""
    meta = backend._get_result_meta(
        result=backend.encode_result(result, state), state=state, traceback=traceback, request=request
    )
    text = backend.encode({**meta, "task_id": request.id})
    text = text if isinstance(text, str) else bytes(text)
    return backend.get_key_for_task(request.id), text, int(backend.expires or 0)


def connection_parameters(app: Any, url: str, *, by_sentinels: bool = False) -> dict[str, Any]:
    """The parameters that Celery's backend reads from a URL of Redis; with Sentinels, ``hosts`` is one of them."""
    backend: Any = (SentinelBackend if by_sentinels else _RedisBackend)(app=app, url=url)
    return dict(backend.connparams)
