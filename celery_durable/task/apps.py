"""Finds the Celery app if the caller names none."""

from __future__ import annotations

from typing import Any

from celery_durable.exceptions import ConfigurationError
from celery_durable.invocation.current import current
from celery_durable.seams.celery import app_of_this_thread, apps_made, chosen_default_app, makeshift_app


def resolve_app(what: str) -> Any:
    """The app of this thread; else of the task that this code is in; else the default app; else the only app made.

    Celery itself gives a thread without a current app (a request thread of a web server) an app that it has made
    itself, with a broker that nobody has chosen. Here, that app is used only if the process has made no other.

    Args:
        what: what needs the app, for the text of the error.

    Raises:
        ConfigurationError: the process has made several apps. None of them is the default, or the app of this thread.
    """
    if (chosen := app_of_this_thread()) is not None:
        return chosen
    if (invocation := current.get()) is not None:
        return invocation.task.app
    if (default := chosen_default_app()) is not None:
        return default
    made = apps_made()
    if len(made) > 1:
        names = ", ".join(sorted(repr(app.main) for app in made))
        raise ConfigurationError(
            f"{what}: it is not known which app to use: this thread has none, and the process has made several "
            f"({names}): name one with app=..., or call set_default() of one of them"
        )
    return made[0] if made else makeshift_app()
