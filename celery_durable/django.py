"""Django: its task class. Nothing here imports it: where a process does without, there is nothing to do."""

from __future__ import annotations

from typing import Any

from kombu.utils.imports import symbol_by_name

_FIXUP = "celery.fixups.django"


def task_class(app: Any) -> type | None:
    """The one that an app's tasks have under Django, with ``delay_on_commit``; None where Celery knows no Django.

    Celery leaves it out where a task class is given: ``task_cls="celery_durable:DurableTask"`` is one, too.
    """
    fixups = getattr(app, "_fixups", None) or ()
    if not any(type(fixup).__module__ == _FIXUP for fixup in fixups):
        return None
    return symbol_by_name("celery.contrib.django.task:DjangoTask")  # type: ignore[no-any-return]
