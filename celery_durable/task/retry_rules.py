"""Celery's own retry options, turned into retry rules of a task."""

from __future__ import annotations

from typing import Any

from celery_durable.config.checks import exception_classes, seconds, whole
from celery_durable.config.retry import Backoff, RetryPolicy, TaskRetryRules
from celery_durable.exceptions import ConfigurationError

# Celery's retry options. If the user gives some of them, they replace the task retry policy.
CELERY_RETRY_OPTIONS = frozenset(
    {
        "max_retries",
        "retry_backoff",
        "retry_backoff_max",
        "retry_jitter",
        "default_retry_delay",
        "autoretry_for",
        "dont_autoretry_for",
        "retry_kwargs",
    }
)


def rules_from_celery(given: dict[str, Any], default: RetryPolicy) -> TaskRetryRules:
    """The retry rules from the options of Celery that the user has *given*; *default* gives the rest.

    Raises:
        ConfigurationError: the value of an option is wrong.
    """
    given = {**given, **_retry_kwargs(given.get("retry_kwargs") or {})}
    initial, factor, longest, jitter = _intervals(given, default.backoff)
    counts_retries = "max_retries" in given
    max_attempts = default.backoff.max_attempts
    if counts_retries:
        retries = given["max_retries"]
        max_attempts = None if retries is None else whole("max_retries", retries, least=0) + 1
    return TaskRetryRules(
        Backoff(initial, factor, longest, max_attempts, default.backoff.max_duration, jitter),
        retry_for=exception_classes("autoretry_for", given.get("autoretry_for", BaseException)),
        fail_for=exception_classes("dont_autoretry_for", given.get("dont_autoretry_for") or ()),
        resets_on_progress=not counts_retries,
        on_exhausted=default.on_exhausted,
    )


def set_by_classes(kind: type) -> dict[str, Any]:
    """Celery's retry options that a base class of the user, or ``task_annotations``, has set on *kind*."""
    options: dict[str, Any] = {}
    for each in reversed(kind.__mro__):
        if each.__module__.partition(".")[0] not in ("celery", "celery_durable"):
            options |= {name: vars(each)[name] for name in CELERY_RETRY_OPTIONS & vars(each).keys()}
    return options


def _retry_kwargs(retry_kwargs: dict[str, Any]) -> dict[str, Any]:
    unknown = retry_kwargs.keys() - {"max_retries", "countdown"}
    if unknown:
        raise ConfigurationError(f"retry_kwargs takes max_retries and countdown, got {sorted(unknown)}")
    renamed = {"countdown": "default_retry_delay"}
    return {renamed.get(name, name): value for name, value in retry_kwargs.items()}


def _intervals(given: dict[str, Any], default: Backoff) -> tuple[float, float, float, bool]:
    backoff = given.get("retry_backoff")
    if backoff:
        initial = 1.0 if backoff is True else seconds("retry_backoff", backoff, zero=False)
        longest = seconds("retry_backoff_max", given.get("retry_backoff_max", 600), zero=False)
        return initial, 2.0, longest, bool(given.get("retry_jitter", True))
    if "default_retry_delay" in given:
        constant = seconds("default_retry_delay", given["default_retry_delay"])
        return constant, 1.0, constant, bool(given.get("retry_jitter", False))
    longest = seconds("retry_backoff_max", given.get("retry_backoff_max", default.longest), zero=False)
    return default.initial, default.factor, longest, bool(given.get("retry_jitter", default.jitter))
