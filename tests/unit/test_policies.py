"""Retry policies answer "again, and when?"; wrong options are refused with the right name."""

from __future__ import annotations

import dataclasses
import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_durable import ConfigurationError, RetryableError, RetryPolicy, RunOptions
from celery_durable.config.retry import Backoff, TaskRetryRules
from celery_durable.task.retry_rules import rules_from_celery

positive = st.floats(1e-3, 1e6)
factors = st.floats(1e-3, 1e300)
counts = st.integers(1, 100_000)


def backoff(
    *,
    initial: float = 1.0,
    factor: float = 2.0,
    longest: float = 60.0,
    max_attempts: int | None = None,
    max_duration: float | None = None,
    jitter: bool = False,
) -> Backoff:
    return Backoff(initial, factor, longest, max_attempts, max_duration, jitter)


# -- the formula -------------------------------------------------------------------------------------------------------


@given(positive, st.floats(1.0, 4.0), positive, st.integers(1, 200))
def test_the_delay_is_the_documented_formula(initial: float, factor: float, longest: float, n: int) -> None:
    expected = min(longest, initial * factor ** (n - 1))
    assert backoff(initial=initial, factor=factor, longest=longest).delay(n) == expected


@given(positive, factors, positive, counts)
def test_no_factor_and_no_count_overflow(initial: float, factor: float, longest: float, n: int) -> None:
    assert 0 <= backoff(initial=initial, factor=factor, longest=longest).delay(n) <= longest


@given(positive, st.floats(1.0, 1e10), positive, st.integers(1, 1000))
def test_delays_never_shrink_with_a_factor_of_one_or_more(
    initial: float, factor: float, longest: float, n: int
) -> None:
    policy = backoff(initial=initial, factor=factor, longest=longest)
    assert policy.delay(n) <= policy.delay(n + 1)


@given(positive, factors, positive, counts)
def test_full_jitter_stays_between_nothing_and_the_plain_delay(
    initial: float, factor: float, longest: float, n: int
) -> None:
    plain = backoff(initial=initial, factor=factor, longest=longest)
    assert 0 <= plain._replace(jitter=True).delay(n) <= plain.delay(n)


def test_full_jitter_spreads_over_the_whole_range() -> None:
    delays = [backoff(initial=10, jitter=True).delay(1) for _ in range(200)]
    assert min(delays) < 2
    assert max(delays) > 8


# -- the limits --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 1000), st.integers(1, 2000))
def test_max_attempts_includes_the_first_execution(max_attempts: int, failures: int) -> None:
    again = backoff(max_attempts=max_attempts).next(failures, 0.0)
    assert (again is None) is (failures >= max_attempts)


@given(positive, positive, st.floats(0, 1e6))
def test_a_wait_that_would_end_past_max_duration_is_not_begun(
    initial: float, max_duration: float, elapsed: float
) -> None:
    policy = backoff(initial=initial, longest=initial, max_duration=max_duration)
    assert (policy.next(1, elapsed) is None) is (elapsed + initial > max_duration)


@pytest.mark.parametrize(
    ("failures", "elapsed", "again"),
    [(1, 0.0, 1.0), (2, 7.0, 2.0), (3, 0.0, None), (1, 9.5, None), (3, 9.5, None)],
    ids=["neither", "nearly both", "count", "time", "both"],
)
def test_of_two_limits_the_first_to_come_decides(failures: int, elapsed: float, again: float | None) -> None:
    assert backoff(max_attempts=3, max_duration=10.0).next(failures, elapsed) == again


def test_without_limits_there_is_always_a_next_time() -> None:
    assert backoff().next(10**9, 1e12) == 60.0


@pytest.mark.parametrize("after", [0, 0.25, 300, timedelta(minutes=5)], ids=str)
def test_retry_after_wins_over_the_computed_delay(after: Any) -> None:
    expected = after.total_seconds() if isinstance(after, timedelta) else after
    assert backoff(jitter=True).next(1, 0.0, RetryableError("busy", retry_after=after)) == expected


def test_a_retryable_error_without_a_time_waits_as_the_policy_says() -> None:
    assert backoff().next(3, 0.0, RetryableError("busy")) == 4.0


@pytest.mark.parametrize("limits", [{"max_attempts": 1}, {"max_duration": 299.0}], ids=str)
def test_retry_after_does_not_lift_the_limits(limits: dict[str, Any]) -> None:
    assert backoff(**limits).next(1, 0.0, RetryableError("busy", retry_after=300)) is None


# -- RunOptions and RetryPolicy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "filled"),
    [
        ({"initial_retry_interval": timedelta(seconds=1)}, backoff(initial=1, longest=10)),
        ({"retry_interval_factor": 3}, backoff(initial=0.05, factor=3, longest=10)),
        ({"max_retry_interval": 2}, backoff(initial=0.05, longest=2)),
        ({"max_duration": timedelta(minutes=5)}, backoff(initial=0.05, longest=10, max_duration=300)),
        ({"max_retry_duration": 300}, backoff(initial=0.05, longest=10, max_duration=300)),
        ({"max_attempts": 10, "jitter": True}, backoff(initial=0.05, longest=10, max_attempts=10, jitter=True)),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_any_retry_option_of_a_step_fills_the_others_with_defaults(given: dict[str, Any], filled: Backoff) -> None:
    assert RunOptions(**given).backoff == filled


@pytest.mark.parametrize(
    "given",
    [{}, {"jitter": True}, {"non_retryable": (ValueError,)}, {"type_hint": int}, {"compression": "zlib"}],
    ids=str,
)
def test_without_one_of_the_five_the_task_decides_about_retries(given: dict[str, Any]) -> None:
    assert RunOptions(**given).backoff is None


def test_the_task_retry_policy_has_its_own_defaults() -> None:
    assert RetryPolicy().backoff == backoff(initial=0.5, longest=60, max_attempts=70)
    assert RetryPolicy().on_exhausted == "fail"
    assert RetryPolicy(max_attempts=None).backoff.limited is False


@pytest.mark.parametrize("kind", [RunOptions, RetryPolicy])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("initial_retry_interval", 0),
        ("initial_retry_interval", -1),
        ("initial_retry_interval", timedelta(seconds=-1)),
        ("initial_retry_interval", "1s"),
        ("initial_retry_interval", True),
        ("initial_retry_interval", math.nan),
        ("max_retry_interval", 0),
        ("max_retry_interval", math.inf),
        ("max_duration", -0.001),
        ("max_duration", timedelta(0)),
        ("retry_interval_factor", 0),
        ("retry_interval_factor", -2.0),
        ("retry_interval_factor", math.inf),
        ("retry_interval_factor", math.nan),
        ("retry_interval_factor", "2"),
        ("max_attempts", 0),
        ("max_attempts", -1),
        ("max_attempts", 2.0),
        ("max_attempts", True),
        ("max_attempts", "3"),
        ("jitter", 1),
        ("jitter", "full"),
    ],
    ids=repr,
)
def test_a_wrong_value_is_refused_when_the_object_is_built(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        kind(**{name: value})
    assert name in str(refused.value)
    if not isinstance(value, timedelta):  # shown in seconds
        assert repr(value) in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("non_retryable", (ValueError("an instance"),)),
        ("non_retryable", ("ValueError",)),
        ("non_retryable", 5),
        ("max_retry_duration", -1),
        ("max_retry_duration", 0),
        ("compression", 5),
        ("compression", "nonsense"),
        ("serializer", 5),
        ("serializer", "nonsense"),
    ],
    ids=repr,
)
def test_a_wrong_option_of_a_step_is_refused_when_the_object_is_built(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        RunOptions(**{name: value})


@pytest.mark.parametrize(
    "kinds", [ValueError, (ValueError,), [ValueError], {ValueError}], ids=["class", "tuple", "list", "set"]
)
def test_non_retryable_can_be_asked_with_isinstance_however_it_was_given(kinds: Any) -> None:
    assert isinstance(ValueError(), RunOptions(non_retryable=kinds).non_retryable)


@pytest.mark.parametrize("kind", [RunOptions, RetryPolicy])
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("retry_interval", "initial_retry_interval"),
        ("initial_interval", "initial_retry_interval"),
        ("retry_interval_multiplier", "retry_interval_factor"),
        ("max_retries", "max_attempts"),
        ("max_atempts", "max_attempts"),
        ("max_interval", "max_retry_interval"),
    ],
)
def test_a_wrong_name_suggests_the_right_one(kind: Any, wrong: str, right: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{kind.__name__} has no option '{wrong}' .did you mean '{right}'"):
        kind(**{wrong: 1})


@pytest.mark.parametrize("kind", [RunOptions, RetryPolicy])
def test_options_are_keyword_only_and_frozen(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="keyword arguments only, got"):
        kind(3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().max_attempts = 5


def test_max_retry_duration_is_an_alias_of_max_duration() -> None:
    options = RunOptions(max_retry_duration=timedelta(seconds=30))
    assert options.max_duration == timedelta(seconds=30)
    assert RunOptions(max_retry_duration=30, max_duration=timedelta(seconds=30)).backoff == options.backoff
    with pytest.raises(ConfigurationError, match="max_retry_duration=30 is an alias of max_duration"):
        RunOptions(max_retry_duration=30, max_duration=31)


def test_options_can_be_copied_with_a_change() -> None:
    options = RunOptions(max_retry_duration=30, non_retryable=ValueError)
    changed = dataclasses.replace(options, max_attempts=3)
    assert changed.backoff == backoff(initial=0.05, longest=10, max_attempts=3, max_duration=30)
    assert changed.non_retryable == (ValueError,)


def test_a_policy_knows_only_what_to_do_when_it_is_spent_that_has_an_effect() -> None:
    with pytest.raises(ConfigurationError, match="on_exhausted must be 'fail' or 'pause', got 'retry'"):
        RetryPolicy(on_exhausted="retry")


# -- Celery's own options ----------------------------------------------------------------------------------------------

DEFAULT = RetryPolicy()


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({"max_retries": 3}, backoff(initial=0.5, max_attempts=4)),
        ({"max_retries": 0}, backoff(initial=0.5, max_attempts=1)),
        ({"max_retries": None}, backoff(initial=0.5)),
        ({"retry_backoff": True}, backoff(initial=1, longest=600, max_attempts=70, jitter=True)),
        ({"retry_backoff": 0.25}, backoff(initial=0.25, longest=600, max_attempts=70, jitter=True)),
        ({"retry_backoff": 5, "retry_jitter": False}, backoff(initial=5, longest=600, max_attempts=70)),
        (
            {"retry_backoff": True, "retry_backoff_max": 30, "retry_jitter": False},
            backoff(initial=1, longest=30, max_attempts=70),
        ),
        ({"default_retry_delay": 7}, backoff(initial=7, factor=1, longest=7, max_attempts=70)),
        ({"retry_kwargs": {"countdown": 7}}, backoff(initial=7, factor=1, longest=7, max_attempts=70)),
        (
            {"retry_kwargs": {"max_retries": 2, "countdown": 1.5}},
            backoff(initial=1.5, factor=1, longest=1.5, max_attempts=3),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_celerys_options_become_the_policy(given: dict[str, Any], policy: Backoff) -> None:
    assert rules_from_celery(given, DEFAULT).backoff == policy


@pytest.mark.parametrize(
    ("given", "resets"),
    [({"max_retries": 3}, False), ({"retry_kwargs": {"max_retries": 3}}, False), ({"retry_backoff": True}, True)],
    ids=str,
)
def test_celerys_max_retries_is_not_reset_by_progress(given: dict[str, Any], resets: bool) -> None:
    assert rules_from_celery(given, DEFAULT).resets_on_progress is resets


@pytest.mark.parametrize(
    ("given", "error", "again"),
    [
        ({"autoretry_for": (KeyError,)}, KeyError("x"), True),
        ({"autoretry_for": (LookupError,)}, KeyError("x"), True),
        ({"autoretry_for": KeyError}, KeyError("x"), True),
        ({"autoretry_for": (KeyError,)}, ValueError("x"), False),
        ({"autoretry_for": ()}, ValueError("x"), False),
        ({"dont_autoretry_for": (KeyError,)}, KeyError("x"), False),
        ({"dont_autoretry_for": (KeyError,)}, ValueError("x"), True),
        ({"autoretry_for": (LookupError,), "dont_autoretry_for": (KeyError,)}, KeyError("x"), False),
        ({"max_retries": 3}, ValueError("x"), True),
    ],
    ids=repr,
)
def test_celerys_classes_choose_what_is_retried(given: dict[str, Any], error: Exception, again: bool) -> None:
    assert (rules_from_celery(given, DEFAULT).next(1, 0.0, error) is not None) is again


@pytest.mark.parametrize(
    "given",
    [
        {"retry_kwargs": {"eta": 1}},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"retry_backoff": -1},
        {"retry_backoff": "1"},
        {"retry_backoff": True, "retry_backoff_max": 0},
        {"default_retry_delay": -1},
        {"autoretry_for": ("KeyError",)},
        {"dont_autoretry_for": (KeyError("an instance"),)},
    ],
    ids=str,
)
def test_wrong_values_of_celerys_options_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        rules_from_celery(given, DEFAULT)


def test_the_task_policy_honours_retry_after() -> None:
    rules = TaskRetryRules(DEFAULT.backoff)
    assert rules.next(1, 0.0, RetryableError("busy", retry_after=9)) == 9
    assert rules.next(1, 0.0, ValueError("x")) == 0.5
    assert rules.next(70, 0.0, RetryableError("busy", retry_after=9)) is None
