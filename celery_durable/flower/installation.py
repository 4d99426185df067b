"""Adds all of it to Flower, before Flower makes its web application."""

from __future__ import annotations

from tornado.template import DictLoader
from tornado.web import StaticFileHandler, url

from celery_durable.seams.flower import handlers, settings, templates

from .answers import RunAnswer, RunsAnswer, VerbAnswer
from .assets import FOLDER, SCRIPT, own_templates
from .pages import PanelPage, RunPage, RunsPage
from .task_list import TaskList

_TAB = "durable"
_LOADER = "template_loader"
"""The setting of Tornado by which an application has templates from elsewhere."""


def install() -> None:
    """Add the tab *Durable* to Flower, a panel to its page of a task, and ``/api/durable/...``.

    Call it in Flower's configuration file, ``flowerconfig.py``. A second call changes nothing.

    Raises:
        ImportError: Flower is not installed, or this version of it is not known.
    """
    if isinstance(settings.get(_LOADER), _Templates):
        return
    settings[_LOADER] = _Templates(templates(_TAB, SCRIPT) | own_templates())
    run = r"/durable/run/([^/]+)"
    # The first one that fits answers.
    handlers[:0] = [
        url(r"/durable", RunsPage, name=_TAB),
        url(run, RunPage),
        url(r"/durable/panel/([^/]+)", PanelPage),
        url(r"/durable/static/(.+)", StaticFileHandler, {"path": str(FOLDER)}),
        url(r"/api/durable/runs", RunsAnswer),
        url(rf"/api{run}", RunAnswer),
        url(rf"/api{run}/([a-z_]+)", VerbAnswer),
        url(r"/tasks/datatable", TaskList),
    ]


class _Templates(DictLoader):
    """Flower's templates, and ours."""
