"""Brings a run back that was exported: what ``celery_durable.import`` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery_durable.app.store import store_of
from celery_durable.exceptions import RunNotImportableError
from celery_durable.journal.layout import Fields

from .documents import journal_in


def import_run(app: Any, document: Mapping[str, Any], request: str, *, by: str | None = None) -> str:
    """Write the journal of a *document*, and keep in it *by* whom. Returns the id of the run.

    *request* names this wish: it may come several times.
    """
    task_id, fields = journal_in(document)
    if not store_of(app).runs.plant(task_id, fields, _retention(app, fields), "import", by, request):
        raise RunNotImportableError(f"task {task_id} cannot be imported: it has a journal here; purge that first")
    return task_id


def _retention(app: Any, fields: Fields) -> float:
    """Seconds for which the journal of a run that has ended is kept."""
    task = app.tasks.get(fields[b"task"].decode())
    settings = getattr(task, "durable_settings", store_of(app).settings)
    return float(settings.retention_after(fields[b"status"].decode()))
