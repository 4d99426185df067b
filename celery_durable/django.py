"""Django: its transactions and its database connections. If the process has not imported it, nothing is done."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger("celery_durable")


def atomic_blocks() -> dict[str, int]:
    """Alias of a database connection → how many atomic blocks this code is in."""
    return {each.alias: _depth(each) for each in connections()}


def entered_since(before: Mapping[str, int]) -> str | None:
    """The alias of a connection that has entered an atomic block since *before*; None if there is none.

    *before* is what :func:`atomic_blocks` has given.
    """
    if not is_imported():  # each step asks, so the answer must be quick
        return None
    for each in connections():
        if each.in_atomic_block and _depth(each) > before.get(each.alias, 0):
            return str(each.alias)
    return None


def _depth(connection: Any) -> int:
    # An older Django knows only whether there is a block, and not how many.
    return len(getattr(connection, "atomic_blocks", ())) or int(connection.in_atomic_block)


def connections() -> Sequence[Any]:
    """The database connections that this thread has used, or this asyncio task."""
    handler = _handler()
    if handler is None:
        return ()
    try:
        return handler.all(initialized_only=True)  # type: ignore[no-any-return]
    except TypeError:  # before Django 4.1
        return handler.all()  # type: ignore[no-any-return]


def is_imported() -> bool:
    """Whether this process has imported Django's databases."""
    return "django.db" in sys.modules


def is_used() -> bool:
    """Whether this process uses Django's databases."""
    return _handler() is not None


def _handler() -> Any:
    handler = getattr(sys.modules.get("django.db"), "connections", None)
    # A process may import Django and not use it. Then its settings would raise an error.
    return handler if handler is not None and sys.modules["django.conf"].settings.configured else None


# -- connections that are too old --------------------------------------------------------------------------------------

_reuse = threading.local()
"""``count``: how often this thread has kept its connections since it closed them (for CELERY_DB_REUSE_MAX)."""


def close_old_connections(reuse_max: int) -> None:
    """Close the connections of this thread that are too old (CONN_MAX_AGE) or broken, as Django does around a request.

    *reuse_max* is Celery's CELERY_DB_REUSE_MAX. Unless it is 0, a connection is kept for that many uses.
    """
    _close_old(connections(), reuse_max)


def close_old_connections_of_async_code(reuse_max: int) -> None:
    """The same in the one thread that executes the queries of async code, after those before it. It does not wait."""
    if _handler() is None:
        return
    from asgiref.sync import SyncToAsync  # a dependency of Django's

    with suppress(RuntimeError):  # the process ends
        SyncToAsync.single_thread_executor.submit(_close_old_of_siblings, reuse_max)


def _close_old_of_siblings(reuse_max: int) -> None:
    _close_old([each for each in connections() if not each.in_atomic_block], reuse_max)


def _close_old(opened: Sequence[Any], reuse_max: int) -> None:
    kept = getattr(_reuse, "count", 0) + 1 if opened else 0
    # This runs before and after each use, so each use counts twice.
    _reuse.count = kept = kept % (2 * reuse_max) if reuse_max else 0
    for each in opened:
        try:
            if reuse_max and not kept:
                each.close()
            elif not reuse_max or each.errors_occurred:
                each.close_if_unusable_or_obsolete()
        except Exception as error:
            logger.warning("the database connection %r could not be closed: %r", each.alias, error)


# -- the thread that waits for async code lends it its connections -----------------------------------------------------


def wait_lending_this_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async code on a loop of its own. Its queries, and :func:`in_lent_thread`, are executed in this thread.

    A connection belongs to a thread, and the transaction of a ``TestCase`` belongs to a connection.
    """
    from asgiref.sync import async_to_sync

    return async_to_sync(work, force_new_loop=True)()


async def in_lent_thread(work: Callable[[], None]) -> None:
    """Call *work* in the thread that waits for this code, if it is lent; else in Django's thread for async code."""
    from asgiref.sync import sync_to_async

    await sync_to_async(work, thread_sensitive=True)()
