"""Retry policies: frozen values that say whether to try again, and when. They have no effects."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from math import inf
from typing import Any, NamedTuple

from celery_durable.durations import Duration
from celery_durable.exceptions import ConfigurationError, RetryableError
from celery_durable.values.registry import ACCEPT_ANY, check_compression
from celery_durable.values.serializers import check_serializer

from .checks import KeywordOptions, exception_classes, factor, flag, seconds, whole


class Backoff(NamedTuple):
    """When to try again: exponential delays (in seconds) under optional limits."""

    initial: float
    factor: float
    longest: float
    max_attempts: int | None
    max_duration: float | None
    jitter: bool = False

    @property
    def limited(self) -> bool:
        return self.max_attempts is not None or self.max_duration is not None

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many *failures*: 1 after the first."""
        try:
            delay = min(self.longest, self.initial * self.factor ** (failures - 1))
        except OverflowError:
            delay = self.longest
        return random.uniform(0, delay) if self.jitter else delay  # noqa: S311

    def next(self, failures: int, elapsed: float, error: BaseException | None = None) -> float | None:
        """Seconds until the next execution, or None if the limits allow no further one.

        *failures* includes the failure that has just happened, whose *error* may ask for a delay of its own. *elapsed*
        is the time since the first execution began, in seconds.
        """
        if self.max_attempts is not None and failures >= self.max_attempts:
            return None
        delay = self.delay(failures)
        if isinstance(error, RetryableError) and error.retry_after is not None:
            delay = error.retry_after
        # A wait that would end after the limit does not begin.
        if self.max_duration is not None and elapsed + delay > self.max_duration:
            return None
        return delay


def _check_retry_fields(options: Any) -> None:
    """Refuse wrong values in the fields that RunOptions and RetryPolicy share."""
    intervals = ("initial_retry_interval", "max_retry_interval", "max_duration")
    for name in intervals:
        value = getattr(options, name)
        if value is not None:
            seconds(name, value, zero=False)
    if options.retry_interval_factor is not None:
        factor("retry_interval_factor", options.retry_interval_factor)
    if options.max_attempts is not None:
        whole("max_attempts", options.max_attempts, least=1)
    flag("jitter", options.jitter)


@dataclass(frozen=True, kw_only=True)
class RunOptions(metaclass=KeywordOptions):
    """How one step is retried and recorded; mirrors Restate's ``RunOptions``.

    All options are keywords, and may be left out. The first five are the retry options. If one of them is set, the step
    is retried by them, and those that are left out have the defaults below. If none is set, a failure of the step is
    like any other exception of the task. A duration is a ``timedelta`` or a number of seconds, more than 0.

    Args:
        initial_retry_interval: how long to wait after the first failure (duration). Default 50 ms.
        retry_interval_factor: each further wait is longer by this factor (a number above 0). Default 2.
        max_retry_interval: the longest wait (duration). Default 10 s.
        max_duration: the step fails if the next wait would end later than this after the start of the first execution
            (duration). Default None: no limit.
        max_attempts: the step fails after so many executions, the first included (a whole number, 1 or more). With 1 it
            starts at most once, whatever happens, until somebody retries the failed run. Default None: no limit.
        max_retry_duration: an alias of ``max_duration``.
        jitter: each wait is a random time between 0 and the computed delay, like Celery's ``retry_jitter``. Default
            False.
        timeout: how long one execution may run (duration). An execution that runs longer fails with
            :class:`DurableTimeoutError`. This is no retry option: alone, it leaves retries to the task. Default None:
            no limit.
        non_retryable: an exception class, or several. If the step raises one of them, it fails with a ``TerminalError``
            and is not retried. Default: none.
        serializer: how the result is written: a name of kombu's registry, or an object with ``serialize(obj) -> bytes``
            and ``deserialize(data)``. Default None: as ``durable_serializer`` says.
        compression: how the result is compressed: a name of kombu's compression registry (``"zlib"``, for example).
            Default None: not at all.
        type_hint: the type of the result. Default None: the return annotation of the action.

    Raises:
        ConfigurationError: a value is wrong, or a name is unknown. The message suggests the right one.
    """

    initial_retry_interval: Duration | None = None
    retry_interval_factor: float | None = None
    max_retry_interval: Duration | None = None
    max_duration: Duration | None = None
    max_attempts: int | None = None
    max_retry_duration: Duration | None = field(default=None, compare=False)
    jitter: bool = False
    timeout: Duration | None = None
    non_retryable: tuple[type[BaseException], ...] = ()
    serializer: Any = None
    compression: str | None = None
    type_hint: Any = None

    def __post_init__(self) -> None:
        if self.max_retry_duration is not None:
            alias = seconds("max_retry_duration", self.max_retry_duration, zero=False)
            if self.max_duration is not None and seconds("max_duration", self.max_duration) != alias:
                raise ConfigurationError(
                    f"max_retry_duration={self.max_retry_duration!r} is an alias of max_duration, which is "
                    f"{self.max_duration!r}: give one of them"
                )
            object.__setattr__(self, "max_duration", self.max_retry_duration)
        _check_retry_fields(self)
        if self.timeout is not None:
            seconds("timeout", self.timeout, zero=False)
        object.__setattr__(self, "non_retryable", exception_classes("non_retryable", self.non_retryable))
        if self.serializer is not None:
            check_serializer(self.serializer, ACCEPT_ANY)
        if self.compression is not None:
            check_compression(self.compression)

    @property
    def longest_execution(self) -> float:
        """How long one execution may run, in seconds."""
        return inf if self.timeout is None else seconds("timeout", self.timeout)

    @cached_property
    def backoff(self) -> Backoff | None:
        """The retry policy of the step, or None if that of the task decides."""
        given = (
            self.initial_retry_interval,
            self.retry_interval_factor,
            self.max_retry_interval,
            self.max_duration,
            self.max_attempts,
        )
        if all(value is None for value in given):
            return None
        return _backoff_of(self, initial=0.05, longest=10.0)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy(metaclass=KeywordOptions):
    """How a ``@durable_task`` is retried; mirrors Restate's ``InvocationRetryPolicy``.

    The policy counts the failed attempts since the run last recorded a step. All options are keywords. A duration is a
    ``timedelta`` or a number of seconds, more than 0.

    Args:
        initial_retry_interval: how long to wait after the first failure (duration). Default 500 ms.
        retry_interval_factor: each further wait is longer by this factor (a number above 0). Default 2.
        max_retry_interval: the longest wait (duration). Default 60 s.
        max_duration: the run fails if the next wait would end later than this after the start of the first of these
            attempts (duration). Default None: no limit.
        max_attempts: how many attempts in a row may fail (a whole number, 1 or more). Default 70. None: no limit.
        jitter: each wait is a random time between 0 and the computed delay. Default False.
        on_exhausted: what happens when no attempt is left. ``"fail"``: the state is FAILURE with the last exception,
            and the journal is kept. ``"pause"``: the state is PAUSED, and the run and its caller wait until somebody
            retries or cancels it. Default ``"fail"``.

    Raises:
        ConfigurationError: a value is wrong, or a name is unknown. The message suggests the right one.
    """

    initial_retry_interval: Duration = timedelta(milliseconds=500)
    retry_interval_factor: float = 2.0
    max_retry_interval: Duration = timedelta(seconds=60)
    max_duration: Duration | None = None
    max_attempts: int | None = 70
    jitter: bool = False
    on_exhausted: str = "fail"

    def __post_init__(self) -> None:
        _check_retry_fields(self)
        if self.on_exhausted not in ("fail", "pause"):
            raise ConfigurationError(f"on_exhausted must be 'fail' or 'pause', got {self.on_exhausted!r}")

    @cached_property
    def backoff(self) -> Backoff:
        """The policy in seconds."""
        return _backoff_of(self, initial=0.5, longest=60.0)


def _backoff_of(options: RunOptions | RetryPolicy, *, initial: float, longest: float) -> Backoff:
    def given(name: str, default: float | None) -> Any:
        value = getattr(options, name)
        return default if value is None else seconds(name, value)

    return Backoff(
        initial=given("initial_retry_interval", initial),
        factor=given("retry_interval_factor", 2.0),
        longest=given("max_retry_interval", longest),
        max_attempts=options.max_attempts,
        max_duration=given("max_duration", None),
        jitter=options.jitter,
    )


class TaskRetryRules(NamedTuple):
    """The task retry policy of one task, made from a ``RetryPolicy`` or from Celery's own options."""

    backoff: Backoff
    retry_for: tuple[type[BaseException], ...] = (BaseException,)
    fail_for: tuple[type[BaseException], ...] = ()
    resets_on_progress: bool = True
    on_exhausted: str = "fail"

    def next(self, failures: int, elapsed: float, error: BaseException) -> float | None:
        """Seconds until the next attempt after *error*, or None if no attempt is left."""
        return self.backoff.next(failures, elapsed, error) if self._retries(error) else None

    def pauses_after(self, error: BaseException) -> bool:
        """Whether the run is paused if no attempt is left after *error*. What is never retried fails at once."""
        return self.on_exhausted == "pause" and self._retries(error)

    def _retries(self, error: BaseException) -> bool:
        return isinstance(error, self.retry_for) and not isinstance(error, self.fail_for)
