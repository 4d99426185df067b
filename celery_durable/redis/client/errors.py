"""What an error of Redis means: it passes and the command is sent again, or it is told."""

from __future__ import annotations

import re
from collections.abc import Callable

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celery_durable.exceptions import DurableError, JournalUnavailableError, JournalUnreadableError

# What a server says while it restarts, fails over or is full, or what answers in its place: worth asking again.
TRANSIENT = (
    RedisConnectionError, RedisTimeoutError, OSError, BusyLoadingError, ReadOnlyError, OutOfMemoryError, NoScriptError,
    ClusterDownError, TryAgainError, InvalidResponse,
)  # fmt: skip
# The same, for which redis-py has no class; LATE is our own.
_NOT_NOW = ("BUSY", "MISCONF", "NOREPLICAS", "LATE")
# What Redis 6.2 puts before an error that a script has met.
_MET_IN_SCRIPT = r"Error running script \(call to \w+\): .*@user_script: ?\d+: -?"


class TransientError(RedisConnectionError):
    """A refusal that passes."""


class Refused(JournalUnavailableError):
    """The server has refused a command, and would again."""


def judged(error: Exception, parse: Callable[[str], Exception]) -> Exception:
    """An error that the server replied, as `TransientError` if it passes; *parse* makes an error of its text."""
    if isinstance(error, ResponseError) and (met := re.match(_MET_IN_SCRIPT, str(error))):
        error = parse(str(error)[met.end() :])
    return TransientError(str(error)) if str(error).startswith(_NOT_NOW) else error


def unavailable(server: str, error: BaseException, timeout: float) -> JournalUnavailableError:
    """What to raise where an error did not pass in time."""
    match error:
        case TransientError():
            why = str(error)
        case AuthenticationError():
            why = f"authentication failed: {error}"
        case InvalidResponse():
            why = f"what answers there is no Redis: {error}"
        case _:
            why = f"{type(error).__name__}: {error}"
    return JournalUnavailableError(f"{server} did not take the journal within {timeout:.3g} s: {why}")


def refused(server: str, error: Exception) -> DurableError:
    """What to raise where an error does not pass."""
    if "WRONGTYPE" in str(error):
        return JournalUnreadableError(f"a key of the journal holds something else: {error}")
    if isinstance(error, AskError):
        hint = "this is a node of a Redis Cluster: begin its URL with redis+cluster://"
        return Refused(f"{server} refused the journal: {error} ({hint})")
    return Refused(f"{server} refused the journal: {error}")
