"""The private names of Celery that a worker's main process needs: of its requests, one for each message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker.request import Request

from .celery import CELERY, symbol_by_name

all_of: Callable[[Any], list[Any]] = CELERY.look_up("celery.utils.functional", "maybe_list")
"""A list as it is; anything else as a list of one."""

for _name in (
    "_already_cancelled",
    "_already_revoked",
    "_announce_cancelled",
    "_announce_revoked",
    "_context",
    "_success_was_stored",
    # Undocumented names of Celery that the worker's request class overrides.
    "cancel",
    "maybe_expire",
    "on_failure",
    "on_timeout",
    "replaced_task_nesting",
    "request_dict",
    "send_event",
    "worker_pid",
):
    CELERY.look_up("celery.worker.request", f"Request.{_name}")
CELERY.look_up("celery.worker.components", "Pool")
CELERY.look_up("celery.worker.state", "revoked")
CELERY.look_up("celery.worker.state", "revoked_stamps")
CELERY.check_inside("celery.worker.worker", "WorkController.setup_defaults", "task_events")


def request_class(named: Any) -> type[Request]:
    """The request class that a task names: it names the class itself, or its dotted path."""
    return symbol_by_name(named)  # type: ignore[no-any-return]


class OpenRequest(Request):
    """Celery's request. Its private parts have names here that stay if Celery changes its own."""

    @property
    def celery_context(self) -> Any:
        """The facts that the task gets as its request."""
        return self._context  # type: ignore[attr-defined]

    @property
    def was_stopped(self) -> bool:
        """Whether the task was revoked, or the worker has cancelled it when it ended."""
        return bool(self._already_cancelled or self._already_revoked)  # type: ignore[attr-defined]

    def announce_cancelled(self, *, emit_retry: bool) -> None:
        """Tell everybody that the worker has cancelled the task; *emit_retry*: also that this is a retry."""
        super()._announce_cancelled(emit_retry=emit_retry)  # type: ignore[misc]

    def _announce_cancelled(self, emit_retry: bool = True) -> None:
        self.announce_cancelled(emit_retry=emit_retry)

    def announce_revoked(self, reason: str, *, terminated: bool, signum: Any, expired: bool) -> None:
        """Tell everybody that the task was revoked."""
        how: Any = {"terminated": terminated, "signum": signum, "expired": expired}
        super()._announce_revoked(reason, **how)  # type: ignore[misc]

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        self.announce_revoked(reason, terminated=terminated, signum=signum, expired=expired)

    def stored_success(self) -> Any:
        """What the result backend has of the task if it has succeeded; else something false."""
        return super()._success_was_stored()  # type: ignore[misc]

    def _success_was_stored(self) -> Any:
        return self.stored_success()
