"""What Celery keeps to itself where a task runs: of the code around its body, and of result backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import states
from celery.backends.base import KeyValueStoreBackend
from celery.backends.redis import RedisBackend, SentinelBackend

from .celery import CELERY

overridden: Callable[[Any, str], Any] = CELERY.look_up("celery.app.trace", "task_has_custom")
"""Which class of a *task* has something in the place of an attribute of Celery's ``Task``; None if none has."""

for _name in ("_get_result_meta", "encode", "encode_result", "get_key_for_task"):
    CELERY.look_up("celery.backends.base", f"KeyValueStoreBackend.{_name}")
CELERY.check_inside("celery.backends.redis", "RedisBackend.__init__", "connparams", "url")


def meta_of_success(backend: KeyValueStoreBackend, request: Any, value: Any) -> dict[str, Any]:
    """What a backend stores of a success, as data."""
    encode: Any = backend
    return encode._get_result_meta(  # type: ignore[no-any-return]
        result=encode.encode_result(value, states.SUCCESS), state=states.SUCCESS, traceback=None, request=request
    )


def connection_parameters(app: Any, url: str, *, by_sentinels: bool = False) -> dict[str, Any]:
    """What Celery's backend makes of a URL of Redis; of one of Sentinels there is ``hosts`` in it."""
    backend: Any = (SentinelBackend if by_sentinels else RedisBackend)(app=app, url=url)
    return dict(backend.connparams)
