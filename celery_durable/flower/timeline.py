"""When attempts ran and steps were executed, as bars. Where nothing ran, the time is folded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from celery_durable.records import AttemptRecord, Run, StepRecord

from . import shown

_MOMENT = timedelta(milliseconds=1)
_SHORTEST_ATTEMPT = 0.04
"""Part of the time of all attempts: so much room a short one has at least."""
_FOLDED = 0.4
"""Part of the time of all attempts: so much room all waits between them have together, at most."""
_THINNEST = 0.4
"""Percent: a bar that can be seen."""


class Bar(NamedTuple):
    """A bar, in percent of the whole."""

    left: float
    width: float
    kind: str
    """The class of its style."""
    title: str


class Span(NamedTuple):
    """A part of the time of a run."""

    begin: datetime
    end: datetime
    is_wait: bool

    @property
    def length(self) -> timedelta:
        return max(self.end - self.begin, _MOMENT)


class Timeline:
    """The time of a run, from its creation until now, or until it goes on.

    Args:
        run: with its attempts and steps.
        now: what is under way goes on until then.
    """

    def __init__(self, run: Run, now: datetime) -> None:
        self._run = run
        self._now = now
        self._signs = sorted(when for step in run.steps for when in (step.first, step.at) if when is not None)
        self._spans = list(self._spans_of(run)) or [Span(run.created, run.created, is_wait=True)]
        self._last = self._end_of(run.attempts[-1], None) if run.attempts else now
        self._ends = [span.end for span in self._spans]
        self._places = _places(self._spans)
        self.begin, self.end = self._spans[0].begin, self._spans[-1].end

    def _spans_of(self, run: Run) -> Iterable[Span]:
        at = run.created
        for attempt, following in pairwise([*run.attempts, None]):
            assert attempt is not None  # noqa: S101
            if attempt.began > at:
                yield Span(at, attempt.began, is_wait=True)
            end = self._end_of(attempt, following)
            yield Span(max(at, attempt.began), max(at, end), is_wait=False)
            at = max(at, end)
        # A restart waits for its first attempt.
        until = run.until if run.attempts else max(self._now, run.until or at)
        if until is not None and until > at:
            yield Span(at, until, is_wait=True)

    def _end_of(self, attempt: AttemptRecord, following: AttemptRecord | None) -> datetime:
        if attempt.ended is not None:
            return attempt.ended
        if following is None:
            return max(self._now, attempt.began)
        # It died, and nobody knows when: after the last thing that it has recorded.
        last = bisect_left(self._signs, following.began) - 1
        return max(attempt.began, self._signs[last]) if last >= 0 else attempt.began

    def attempt(self, attempt: AttemptRecord) -> list[Bar]:
        number = self._run.attempts.index(attempt)
        following = self._run.attempts[number + 1] if number + 1 < len(self._run.attempts) else None
        end = self._end_of(attempt, following)
        return [self._bar(attempt.began, end, f"attempt {attempt.how.lower()}", shown.took(attempt, self._now))]

    def waits(self) -> list[Bar]:
        """Where nothing ran."""
        return [
            self._bar(begin, end, "wait", f"waited {shown.span(end - begin)}")
            for begin, end, is_wait in self._spans
            if is_wait
        ]

    def steps(self, steps: Sequence[StepRecord], before: datetime) -> list[list[Bar]]:
        """The bars of some steps in program order; what came *before* them ended then."""
        rows = []
        for step in steps:
            rows.append(list(self._step(step, before)))
            if step.at is not None and step.at <= self._now:
                before = step.at
        return rows

    def _step(self, step: StepRecord, before: datetime) -> Iterable[Bar]:
        title = shown.title(step)
        if step.kind != "step":
            if step.at is not None:
                yield self._bar(min(before, step.at), step.at, step.kind, title)
            return
        if step.at is None:
            kind = step.state if step.state == "started" else "tried"
            yield self._bar(step.first or self._last, self._last, kind, title)
            return
        begin = step.at - timedelta(milliseconds=step.ms or 0)
        if step.first is not None and step.first < begin:
            yield self._bar(step.first, begin, "tried", title)
        yield self._bar(begin, step.at, step.state, title)

    def _bar(self, begin: datetime, end: datetime, kind: str, title: str) -> Bar:
        left = min(self._place(begin), 100 - _THINNEST)
        return Bar(round(left, 2), round(max(self._place(end) - left, _THINNEST), 2), kind, title)

    def _place(self, when: datetime) -> float:
        """Where a time is, in percent."""
        number = bisect_left(self._ends, when)
        if number == len(self._spans):
            return 100.0
        span, (left, right) = self._spans[number], self._places[number : number + 2]
        part = max(when - span.begin, timedelta(0)) / span.length
        return left + (right - left) * min(part, 1)


def _places(spans: Sequence[Span]) -> list[float]:
    """Where the spans begin and end, in percent."""
    busy = sum((span.length for span in spans if not span.is_wait), _MOMENT)
    waits = sum(span.is_wait for span in spans)
    longest_wait = busy * _FOLDED / max(waits, 1)
    widths = [
        min(span.length, longest_wait) if span.is_wait else max(span.length, busy * _SHORTEST_ATTEMPT) for span in spans
    ]
    whole, at, places = sum(widths, timedelta(0)), timedelta(0), [0.0]
    for width in widths:
        at += width
        places.append(100 * (at / whole))
    return places
