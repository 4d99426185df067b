"""The private names of Flower: its pages, its API, its templates. Flower has no plugins, so all of it is private."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .lookup import Package

try:
    import flower.urls  # type: ignore[import-untyped]  # noqa: F401
    import tornado
    from tornado.template import Template
except ImportError as error:
    raise ImportError(f'celery_durable.flower needs Flower: pip install "celery-durable[flower]" ({error})') from error

FLOWER = Package("flower", ">=2.0.1,<2.3")

handlers: list[Any] = FLOWER.look_up("flower.urls", "handlers")
"""What answers which address. Flower reads it when it makes its web application."""
settings: dict[str, Any] = FLOWER.look_up("flower.urls", "settings")
"""The settings of that application."""
_is_yes: Any = FLOWER.look_up("flower.utils", "strtobool")

if TYPE_CHECKING:
    from tornado.web import RequestHandler

    class FlowerPage(RequestHandler):
        """A page of Flower."""

        capp: Any
        """The Celery app of Flower."""

    class FlowerAPI(FlowerPage):
        """An answer of Flower's API, which is closed if Flower knows no users."""

    class FlowerTaskList(FlowerPage):
        """The rows of Flower's list of tasks."""

        def get(self) -> None: ...

else:
    FlowerPage = FLOWER.look_up("flower.views", "BaseHandler")
    FlowerAPI = FLOWER.look_up("flower.api", "BaseApiHandler")
    FlowerTaskList = FLOWER.look_up("flower.views.tasks", "TasksDataTable")

for _module, _path, _names in (
    ("flower.views", "BaseHandler.render", ("url_prefix",)),
    ("flower.views", "BaseHandler.get_current_user", ("basic_auth", "auth")),
    ("flower.app", "Flower.__init__", ("options", "capp", "events")),
    ("flower.utils.tasks", "get_task_by_id", ("state", "tasks")),
):
    FLOWER.check_inside(_module, _path, *_names)
FLOWER.look_up("flower.api", "BaseApiHandler.prepare")
FLOWER.look_up("flower.views", "BaseHandler.capp")

ENCODER = "_tt_utf8"
"""What a template of Tornado's calls to encode a text."""
if ENCODER not in Template("").code:
    raise ImportError(
        f"the templates of tornado {tornado.version} do not call {ENCODER}, which celery-durable replaces"
    )


# -- what Flower's options say -----------------------------------------------------------------------------------------


def knows_users(page: FlowerPage) -> bool:
    """Whether Flower asks who somebody is (``--basic-auth``, ``--auth``)."""
    options = _options(page)
    return bool(options.basic_auth or options.auth)


def is_open(page: FlowerPage, environment: Any) -> bool:
    """Whether Flower's API answers: it does to users that Flower knows, or to everybody if the environment says so."""
    return knows_users(page) or bool(_is_yes(environment.get("FLOWER_UNAUTHENTICATED_API") or "false"))


def is_read_only(page: FlowerPage) -> bool:
    """Whether Flower does nothing but show (``--read-only``, from 2.1 on)."""
    return bool(getattr(_options(page), "read_only", False))


def refreshes_itself(page: FlowerPage) -> bool:
    """Whether pages ask for news by themselves (``--auto-refresh``)."""
    return bool(_options(page).auto_refresh)


def known_task(page: FlowerPage, task_id: str) -> Any:
    """The task as Flower knows it by its events; None if it does not."""
    return _events(page).state.tasks.get(task_id)


def set_state(page: FlowerPage, task: Any, state: str) -> None:
    """Correct the state of a task that Flower knows."""
    task.state = state
    if (index := getattr(_events(page).state, "search_engine", None)) is not None:  # from 2.1 on
        index.upsert(task)


def _options(page: FlowerPage) -> Any:
    return page.application.options  # type: ignore[attr-defined]


def _events(page: FlowerPage) -> Any:
    return page.application.events  # type: ignore[attr-defined]


# -- its list of tasks -------------------------------------------------------------------------------------------------


def rows_of(answer: Any) -> dict[str, dict[str, Any]]:
    """The rows in an answer of ``/tasks/datatable``, by the ids of their tasks; empty: it has none."""
    rows = answer.get("data", ()) if isinstance(answer, dict) else ()
    return {row["uuid"]: row for row in rows}


def set_row_state(row: dict[str, Any], state: str) -> None:
    """Show this state in a row."""
    row["state"] = state


# -- its templates -----------------------------------------------------------------------------------------------------

_NAVIGATION, _TASK = "navbar.html", "task.html"
_NEIGHBOUR = "broker"
"""The tab before ours: ours looks the same."""
_TAB = re.compile(rf"[ \t]*<li\b(?:(?!</li>).)*?reverse_url\('{_NEIGHBOUR}'\).*?</li>\n", re.DOTALL)


def templates(tab: str, script: str) -> dict[str, str]:
    """Flower's templates by name. Its navigation has one *tab* more, and its page of a task loads a *script*.

    Raises:
        ImportError: the templates of the installed version do not look as expected.
    """
    texts = {path.name: path.read_text("utf-8") for path in Path(settings["template_path"]).glob("*.html")}
    texts[_NAVIGATION] = _with_tab(texts.get(_NAVIGATION, ""), tab)
    texts[_TASK] = _with_script(texts.get(_TASK, ""), texts.get("base.html", ""), script)
    return texts


def _with_tab(navigation: str, tab: str) -> str:
    neighbour = _TAB.search(navigation)
    if neighbour is None:
        raise FLOWER.lacks(f"templates/{_NAVIGATION}: the tab {_NEIGHBOUR!r}")
    ours = neighbour[0].replace(_NEIGHBOUR, tab).replace(_NEIGHBOUR.title(), tab.title())
    return navigation[: neighbour.end()] + ours + navigation[neighbour.end() :]


def _with_script(task: str, base: str, script: str) -> str:
    for text, name, mark in (
        (task, _TASK, "id='task-page'"),
        (task, _TASK, 'id="taskid"'),
        (base, "base.html", "{% block extra_scripts %}"),
    ):
        if mark not in text.replace('id="task-page"', "id='task-page'"):
            raise FLOWER.lacks(f"templates/{name}: {mark}")
    return f"{task}\n{{% block extra_scripts %}}{script}{{% end %}}\n"
