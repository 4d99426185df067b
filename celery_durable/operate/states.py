"""The states of runs, and what each of them allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from celery import states

from celery_durable.delivery.backend import PAUSED, STALLED, SUSPENDED, state_of
from celery_durable.journal.headings import ENDED_HEADINGS, HEADINGS, LIVE_HEADINGS


def _states_of(headings: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(state_of, headings)))


STATES = _states_of(HEADINGS)
"""The states of runs, the live ones first."""
LIVE = _states_of(LIVE_HEADINGS)
ENDED = _states_of(ENDED_HEADINGS)

# (A retry of a SUCCESS that was not delivered delivers it. A worker does that by itself, so nobody is offered it.)
_ALLOWING = {
    "retry": (states.FAILURE, PAUSED),
    "wake": (states.RETRY, SUSPENDED, STALLED),
    "restart": ENDED,
    "cancel": LIVE,
    "purge": ENDED,
}


def allowing(verb: str) -> tuple[str, ...]:
    """The states of runs with which people can do this."""
    return _ALLOWING[verb]


def verbs_of(state: str) -> tuple[str, ...]:
    """What people can do with a run in this state; nothing if only a newer version of the library knows it."""
    return tuple(verb for verb, allowed in _ALLOWING.items() if state in allowed)


def by_state(counts: Mapping[tuple[str, str], int]) -> Counter[tuple[str, str]]:
    """Numbers of runs by heading and task → by state and task."""
    numbers: Counter[tuple[str, str]] = Counter()
    for (heading, task), number in counts.items():
        numbers[state_of(heading), task] += number
    return numbers
