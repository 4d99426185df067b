"""Statistics of repeated measurements: medians, and how sure they are."""

import random
from collections.abc import Sequence
from statistics import median

_RESAMPLES = 400


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of the median, by bootstrap; None for too few values to say."""
    if len(values) < 5:
        return None
    draw = random.Random(0)
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES)]


def ratios(values: Sequence[float], yardstick: Sequence[float]) -> list[float]:
    """Each value against the yardstick of its own round."""
    return [value / unit for value, unit in zip(values, yardstick, strict=True)]
