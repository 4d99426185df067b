"""The Celery app that is meant where none is said."""

from __future__ import annotations

from typing import Any

from celery_durable.exceptions import ConfigurationError
from celery_durable.invocation.current import current
from celery_durable.seams.celery import app_of_this_thread, apps_made, chosen_default_app, makeshift_app


def present_app(what: str) -> Any:
    """That of this thread, else of the task that this code is in, else the default one, else the only one made.

    Celery itself gives a thread without a current app (a web server's request threads) an app of its own making, whose
    broker nobody has chosen. Here that one is taken where there is no other.

    Args:
        what: what the app is needed for, as the error says it.

    Raises:
        ConfigurationError: the process has made several, and none of them is this thread's, or the default.
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
            f"{what}: which app is meant is not known in a thread that has none, since the process has made several "
            f"({names}): say which with app=..., or call set_default() of one of them"
        )
    return made[0] if made else makeshift_app()
