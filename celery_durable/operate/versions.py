"""Which builds of the code have live runs: an old build may go when it has none."""

from __future__ import annotations

from typing import Any, NamedTuple

from celery_durable.app.store import store_of
from celery_durable.journal.headings import LIVE_HEADINGS
from celery_durable.redis.survey import Build, Survey

_MOST = 100_000
"""So many runs are counted."""


class Versions(NamedTuple):
    """All live runs by task and build."""

    found: tuple[Build, ...]
    """By task; of each task, the build with the oldest run comes first."""
    is_cut: bool
    """Whether there are more live runs than were counted. A build that is not found may have some of these."""


def versions(app: Any) -> Versions:
    """Count the live runs of an app by task and build. It counts 100,000 runs, or a few more.

    Raises:
        JournalUnavailableError: Redis does not answer.
        JournalUnreadableError: a key of the index holds something else.
    """
    builds, is_cut = Survey(store_of(app).shards).builds(LIVE_HEADINGS, _MOST)
    return Versions(tuple(sorted(builds, key=lambda build: (build.task, build.oldest))), is_cut)
