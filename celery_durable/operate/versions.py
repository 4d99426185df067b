"""Which builds of the code have live runs: an old build may go when it has none."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

from celery_durable.app.store import store_of
from celery_durable.redis.index import LIVE_HEADINGS
from celery_durable.redis.survey import Survey

_MOST = 100_000
"""So many runs are counted."""


@dataclass(frozen=True)
class Version:
    """The live runs of a task that one build began.

    Attributes:
        task: the name of the task.
        build: the build of its code; empty if it is not known.
        runs: how many runs have not ended.
        stalled: how many of these wait for code that fits.
        oldest: when the oldest of them was created (aware datetime, UTC).
    """

    task: str
    build: str
    runs: int
    stalled: int
    oldest: datetime


class Versions(NamedTuple):
    """All live runs by task and build."""

    found: tuple[Version, ...]
    """By task; of each task, the build with the oldest run comes first."""
    is_cut: bool
    """Whether there are more live runs than were counted. Of each task, the oldest are counted first."""


def versions(app: Any) -> Versions:
    """Count the live runs of an app by task and build. It counts 100,000 runs, or a few more.

    Raises:
        JournalUnavailableError: Redis does not answer.
        JournalUnreadableError: a key of the index holds something else.
    """
    builds, is_cut = Survey(store_of(app).shards).builds(LIVE_HEADINGS, _MOST)
    builds.sort(key=lambda build: (build.task, build.created))
    found = tuple(
        Version(one.task, one.build, one.runs, one.stalled, datetime.fromtimestamp(one.created / 1000, timezone.utc))
        for one in builds
    )
    return Versions(found, is_cut)
