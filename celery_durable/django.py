"""Django: its task class, its transactions. Nothing here imports it: a process without it has nothing to do."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

_FIXUP = "celery.fixups.django"


def task_class(app: Any) -> type | None:
    """The one that an app's tasks have under Django, with ``delay_on_commit``; None where Celery knows no Django.

    Celery leaves it out where a task class is given: ``task_cls="celery_durable:DurableTask"`` is one, too.
    """
    fixups = getattr(app, "_fixups", None) or ()
    if not any(type(fixup).__module__ == _FIXUP for fixup in fixups):
        return None
    from celery.contrib.django.task import DjangoTask  # it imports Django

    return DjangoTask


def atomic_blocks() -> dict[str, int]:
    """How many atomic blocks this code is in, by the alias of the database connection."""
    return {each.alias: _depth(each) for each in connections()}


def entered_since(before: Mapping[str, int]) -> str | None:
    """The alias of a connection that has entered an atomic block since :func:`atomic_blocks` gave *before*."""
    for each in connections():
        if each.in_atomic_block and _depth(each) > before.get(each.alias, 0):
            return str(each.alias)
    return None


def _depth(connection: Any) -> int:
    # An older Django knows only whether there is one.
    return len(getattr(connection, "atomic_blocks", ())) or int(connection.in_atomic_block)


def connections() -> Sequence[Any]:
    """The database connections that this thread has used, or this asyncio task."""
    handler = getattr(sys.modules.get("django.db"), "connections", None)
    # Somebody may have imported Django that does not use it; its settings would raise then.
    if handler is None or not sys.modules["django.conf"].settings.configured:
        return ()
    try:
        return handler.all(initialized_only=True)  # type: ignore[no-any-return]
    except TypeError:  # before Django 4.1
        return handler.all()  # type: ignore[no-any-return]
