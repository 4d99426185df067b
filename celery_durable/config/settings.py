"""The ``durable_*`` settings. Each is declared once, in a field of :class:`Settings`; the rest is derived from that.

A new setting needs its field here and its row in docs/settings.md. If a task may have a value of its own
(``option=True``), :class:`~celery_durable.DurableTask` needs an attribute of that name, for type checkers and editors,
and ``durable_task`` a line of documentation. If attempts or steps go by the setting, :class:`AttemptSettings` needs a
field of that name. A test says which of these is missing.
"""

# Without ``from __future__ import annotations``: what the fields are annotated with is read, here and at import.

from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, NamedTuple

from celery_durable.exceptions import ConfigurationError
from celery_durable.journal.layout import Status
from celery_durable.values.registry import ACCEPT_ANY, JSON_ONLY
from celery_durable.values.serializers import check_serializer

from .checks import flag, function, seconds, text, whole
from .retry import RetryPolicy

Redact = Callable[[str, str, Any], Any]
"""``(task, where, value) -> value``: what is shown in place of a value."""
PREFIX = "durable_"
"""What the key of a setting begins with in the configuration of an app."""


class Setting(NamedTuple):
    """The rest of a setting, beside its name, its type and its default."""

    check: Callable[[str, Any], Any]
    """``check(name, value)`` returns the value as it is kept; a ``ConfigurationError`` calls it by that *name*."""
    option: bool | str = False
    """Whether a task may have a value of its own. A text is the name of that option, if Celery uses the other name."""


# -- checks of one setting ---------------------------------------------------------------------------------------------


def _key_prefix(name: str, value: Any) -> str:
    if "{" in text(name, value) or "}" in value:
        raise ConfigurationError(f"{name} must not contain braces, which mark the Cluster hash tag, got {value!r}")
    return str(value)


def _retry_policy(name: str, value: Any) -> RetryPolicy:
    if not isinstance(value, RetryPolicy):
        raise ConfigurationError(f"{name} must be a RetryPolicy, got {value!r}")
    return value


def _lease(name: str, value: Any) -> float:
    if (lease := seconds(name, value)) < 1:
        raise ConfigurationError(f"{name} must be 1 second or more (it is renewed three times in it), got {value!r}")
    return lease


def _serializer(name: str, value: Any) -> Any:
    check_serializer(value, ACCEPT_ANY, name)
    return value


def _journal_sync(name: str, value: Any) -> str:
    known = ("memory", "replicas", "disk")
    if value not in known:
        raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return str(value)


_above_zero = partial(seconds, zero=False)
_one_or_more = partial(whole, least=1)
_zero_or_more = partial(whole, least=0)


# -- the settings ------------------------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """All settings of an app, or of a task, whose options come first. Durations are in seconds."""

    redis_url: Annotated[str | None, Setting(text)] = None
    key_prefix: Annotated[str, Setting(_key_prefix)] = "durable:"
    task_retry_policy: Annotated[RetryPolicy, Setting(_retry_policy, option=True)] = RetryPolicy()
    inline_retry_limit: Annotated[float, Setting(seconds, option=True)] = 0.0
    max_broker_delay: Annotated[float, Setting(seconds)] = 60.0
    inactivity_timeout: Annotated[float, Setting(_above_zero, option=True)] = 60.0
    abort_timeout: Annotated[float, Setting(_above_zero, option=True)] = 600.0
    lease: Annotated[float, Setting(_lease)] = 30.0
    max_recoveries: Annotated[int, Setting(_zero_or_more, option=True)] = 10
    retention: Annotated[float, Setting(seconds, option=True)] = timedelta(hours=24).total_seconds()
    failure_retention: Annotated[float, Setting(seconds, option=True)] = timedelta(days=7).total_seconds()
    max_entry_size: Annotated[int, Setting(_one_or_more, option=True)] = 32 * 2**20
    step_threads: Annotated[int, Setting(_one_or_more)] = 64
    serializer: Annotated[Any, Setting(_serializer, option="durable_serializer")] = "json"
    journal_sync: Annotated[str, Setting(_journal_sync, option=True)] = "memory"
    allow_atomic: Annotated[bool, Setting(flag)] = False
    build: Annotated[str | None, Setting(text, option=True)] = None
    stall_timeout: Annotated[float, Setting(seconds, option=True)] = timedelta(hours=1).total_seconds()
    redact: Annotated[Redact | None, Setting(function, option=True)] = None

    def of_app(self, given: Mapping[str, Any]) -> "Settings":
        """These, with the values that an app has *given* by its keys (``durable_lease``).

        Raises:
            ConfigurationError: a value is wrong.
        """
        return self._replace(**_checked(KEYS, given))

    def retention_after(self, status: str) -> float:
        """Seconds for which the journal of a run is kept that has ended with this *status*."""
        return self.failure_retention if status in (Status.FAILED, Status.REVOKED) else self.retention

    def of_task(self, given: Mapping[str, Any]) -> "Settings":
        """These, with the values that a task has *given* by its options (``max_recoveries``).

        Raises:
            ConfigurationError: a value is wrong.
        """
        return self._replace(**_checked(TASK_OPTIONS, given))


_DECLARED: dict[str, Setting] = {name: hint.__metadata__[0] for name, hint in Settings.__annotations__.items()}

KEYS = {PREFIX + name: name for name in _DECLARED}
"""The field of each key of a configuration."""

TASK_OPTIONS = {
    setting.option if isinstance(setting.option, str) else name: name
    for name, setting in _DECLARED.items()
    if setting.option
}
"""The field of each option of a task."""

FUNCTION_OPTIONS = frozenset(option for option, name in TASK_OPTIONS.items() if _DECLARED[name].check is function)
"""The options of a task whose values are functions."""


def _checked(names: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of what is *given*, each value as its check returns it."""
    return {names[name]: _DECLARED[names[name]].check(name, value) for name, value in given.items()}


# -- what attempts go by -----------------------------------------------------------------------------------------------


class AttemptSettings(NamedTuple):
    """The settings that the attempts of a task and their steps go by, and what they take from Celery's.

    A field that has the name of a setting has its value.
    """

    inline_retry_limit: float
    inactivity_timeout: float
    abort_timeout: float
    max_entry_size: int
    step_threads: int
    """How many sync steps of async tasks run at one time, in a process."""
    serializer: Any
    allow_atomic: bool
    """A verb inside an atomic block of Django is not refused: a warning is logged."""
    build: str
    """Which code of the task this process has."""
    redact: Redact | None
    """Replaces what observers are shown."""
    accept: frozenset[str] = JSON_ONLY
    """The content types that the app reads."""
    progress_forgives: bool = True
    """Whether a recorded step resets the count of failed attempts."""
    db_reuse_max: int = 0
    """Celery's CELERY_DB_REUSE_MAX: how often a connection of Django's is used; 0: as long as CONN_MAX_AGE says."""

    @classmethod
    def of(cls, settings: Settings, *, build: str, **others: Any) -> "AttemptSettings":
        """The settings of a task with these *settings* and this *build*; *others* are fields with another value."""
        values = {name: getattr(settings, name) for name in cls._fields if name in Settings._fields}
        return cls(**{**values, "build": build, **others})

    def check(self) -> None:
        """Refuse settings with which no step could be recorded.

        Raises:
            ConfigurationError: the app does not accept the serializer of its values.
        """
        check_serializer(self.serializer, self.accept, "durable_serializer")
