"""What the scripts reply. Each name is defined here once; a test holds the Lua files to it."""

from __future__ import annotations

from enum import Enum


class OpenReply:
    """The first word that ``open`` replies."""

    OPEN = "open"
    FINISHED = "finished"
    ID_CONFLICT = "id_conflict"
    UNREADABLE = "unreadable"
    REPLACED = "replaced"
    BUSY = "busy"
    EARLY = "early"
    OUTDATED = "outdated"
    PURGED = "purged"
    FAILED = "failed"
    """The run has failed. The receiver of the message decides whether it reopens the run."""


class WriteReply:
    """What a script replies that writes for an attempt, or renews its lease."""

    DONE = 1
    TO_BE_CANCELLED = 2
    """It is done, and somebody has asked to cancel the run."""
    FENCED = 0
    NO_JOURNAL = -1


class ReleaseResult(Enum):
    """What has become of a run whose process was lost."""

    NO_RUN = 0
    JOURNALED = 1
    """The run goes on, or this process has ended it by a failure, which was delivered."""
    ENDED = 2
    """Another process has ended it, and it is no success."""
    SUCCEEDED = 3
    """The run has succeeded, and its outcome was delivered."""
