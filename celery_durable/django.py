"""Django: its transactions, its connections. A process that has not imported it is left alone."""

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
    """How many atomic blocks this code is in, by the alias of the database connection."""
    return {each.alias: _depth(each) for each in connections()}


def entered_since(before: Mapping[str, int]) -> str | None:
    """The alias of a connection that has entered an atomic block since :func:`atomic_blocks` gave *before*."""
    if not is_imported():  # every step asks
        return None
    for each in connections():
        if each.in_atomic_block and _depth(each) > before.get(each.alias, 0):
            return str(each.alias)
    return None


def _depth(connection: Any) -> int:
    # An older Django knows only whether there is one.
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
    """Whether this process may have databases by Django."""
    return "django.db" in sys.modules


def is_used() -> bool:
    """Whether this process has databases by Django."""
    return _handler() is not None


def _handler() -> Any:
    handler = getattr(sys.modules.get("django.db"), "connections", None)
    # Somebody may have imported Django that does not use it; its settings would raise then.
    return handler if handler is not None and sys.modules["django.conf"].settings.configured else None


# -- connections that are too old --------------------------------------------------------------------------------------

_reuse = threading.local()
"""How often this thread has kept its connections since it closed them, where Celery is told how often it may."""


def close_old_connections(reuse_max: int) -> None:
    """Close those of this thread that are too old (CONN_MAX_AGE) or broken, as Django does around a request.

    *reuse_max*: Celery's CELERY_DB_REUSE_MAX. Unless it is 0, a connection is not too old before so many uses.
    """
    _close_old(connections(), reuse_max)


def close_old_connections_of_async_code(reuse_max: int) -> None:
    """The same in the one thread that executes the queries of async code, in turn with them; nobody waits for it."""
    if _handler() is None:
        return
    from asgiref.sync import SyncToAsync  # a dependency of Django's

    with suppress(RuntimeError):  # the process ends
        SyncToAsync.single_thread_executor.submit(_close_old_of_siblings, reuse_max)


def _close_old_of_siblings(reuse_max: int) -> None:
    _close_old([each for each in connections() if not each.in_atomic_block], reuse_max)


def _close_old(opened: Sequence[Any], reuse_max: int) -> None:
    kept = getattr(_reuse, "count", 0) + 1 if opened else 0
    # It is asked before and after each use.
    _reuse.count = kept = kept % (2 * reuse_max) if reuse_max else 0
    for each in opened:
        try:
            if reuse_max and not kept:
                each.close()
            elif not reuse_max or each.errors_occurred:
                each.close_if_unusable_or_obsolete()
        except Exception as error:
            logger.warning("the database connection %r could not be closed: %r", each.alias, error)


# -- the thread that waits for async code, and whose connections that is to use ----------------------------------------


def wait_lending_this_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async code on a loop of its own; what it asks Django, and :func:`in_lent_thread`, is executed in this thread.

    A connection belongs to a thread, and the transaction of a ``TestCase`` to a connection.
    """
    from asgiref.sync import async_to_sync

    return async_to_sync(work, force_new_loop=True)()


async def in_lent_thread(work: Callable[[], None]) -> None:
    """Do it in the thread that waits for this code, if that has lent itself, else in the one of all async code."""
    from asgiref.sync import sync_to_async

    await sync_to_async(work, thread_sensitive=True)()
