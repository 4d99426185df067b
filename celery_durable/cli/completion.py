"""What a shell completes: states, tasks, the ids of the newest runs, and the steps of a run.

A person waits for it with a half-written line. So what goes wrong, or takes long, completes nothing.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from threading import Thread
from typing import Any

from celery_durable.operate.states import STATES
from celery_durable.seams import celery as seam

Completion = Callable[[Any, Any, str], list[Any]]
"""What click takes: given the context, the parameter and the begin of a word, it returns texts or its own items."""

_LONGEST = 1.0
"""Seconds that Redis has to answer."""
_MOST_IDS = 50


def states(_ctx: Any, _param: Any, incomplete: str) -> list[str]:
    """The states of runs."""
    return [state for state in STATES if state.startswith(incomplete.upper())]


def tasks(ctx: Any, _param: Any, incomplete: str) -> list[str]:
    """The names of the durable tasks of the app."""
    from celery_durable.task.of_app import durable_tasks

    app = _app_of(ctx)
    names = [] if app is None else sorted(durable_tasks(app))
    return [name for name in names if name.startswith(incomplete)]


def ids(*of_states: str) -> Completion:
    """The ids of the newest runs in these states."""

    def complete(ctx: Any, _param: Any, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        app = _app_of(ctx)
        found = (
            [] if app is None else _within(_LONGEST, lambda: list(_runs_of(app).list(state=of_states, limit=_MOST_IDS)))
        )
        return [
            CompletionItem(run.id, help=f"{run.task} {run.state}") for run in found if run.id.startswith(incomplete)
        ]

    return complete


def steps(ctx: Any, _param: Any, incomplete: str) -> list[Any]:
    """The steps and waits of the run that the line names. One whose name a shell would split is named by its place."""
    from click.shell_completion import CompletionItem

    # An option without its value is an error, so click has not come as far as to the arguments.
    app, task_id = _app_of(ctx), ctx.params.get("task_id") or next(iter(ctx.args), None)
    found = _within(_LONGEST, lambda: list(_runs_of(app).get(task_id).steps)) if app is not None and task_id else []
    named = Counter(step.name for step in found)
    offered = {step.name if _is_one_word(step.name) and named[step.name] == 1 else step.place: step for step in found}
    return [
        CompletionItem(word, help=f"{step.place} {step.name} {step.state}")
        for word, step in offered.items()
        if word.startswith(incomplete)
    ]


def _is_one_word(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+", name) is not None


def _runs_of(app: Any) -> Any:
    from celery_durable.app.store import be_patient
    from celery_durable.operate.runs import Runs

    be_patient(app, _LONGEST)
    return Runs(app)


def _app_of(ctx: Any) -> Any:
    """The app of ``celery -A``. It is not loaded yet: while a line is completed, no command runs."""
    given = ctx.find_root().params
    for option, variable in (("broker", "CELERY_BROKER_URL"), ("result_backend", "CELERY_RESULT_BACKEND")):
        if given.get(option):
            os.environ[variable] = given[option]
    try:
        # What its modules print would be taken for completions.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            app = seam.app_named(given["app"])
            app.loader.import_default_modules()
            app.finalize()
    except Exception:
        return None
    return app


def _within(seconds: float, ask: Callable[[], list[Any]]) -> list[Any]:
    """What *ask* returns; empty if it fails, or does not return in time."""
    answers: list[list[Any]] = [[]]

    def answer() -> None:
        try:
            answers.append(ask())
        except Exception:
            return

    asking = Thread(target=answer, daemon=True)
    asking.start()
    asking.join(seconds)
    return answers[-1]
