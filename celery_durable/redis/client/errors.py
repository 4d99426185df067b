"""What an error of Redis means: the command is sent again, or its sender gets an error."""

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

# A server raises these while it restarts, fails over or is full. They pass, so the command is sent again.
TRANSIENT = (
    RedisConnectionError, RedisTimeoutError, OSError, BusyLoadingError, ReadOnlyError, OutOfMemoryError, NoScriptError,
    ClusterDownError, TryAgainError, InvalidResponse,
)  # fmt: skip
# redis-py has no class for these. LATE is our own.
_NOT_NOW = ("BUSY", "MISCONF", "NOREPLICAS", "LATE")
# Redis 6.2 puts this before an error that a script has met.
_MET_IN_SCRIPT = r"(?:Error running script \(call to \w+\): .*)?@user_script: ?\d+: -?"


class TransientError(RedisConnectionError):
    """The server refuses a command now, and may take it later."""


class Refused(JournalUnavailableError):
    """The server has refused a command, and would refuse it again."""


def judged(error: Exception, parse: Callable[[str], Exception]) -> Exception:
    """The meaning of an error that the server has replied: a `TransientError` if it passes. *parse* reads a text."""
    if isinstance(error, ResponseError) and (met := re.match(_MET_IN_SCRIPT, str(error))):
        error = parse(str(error)[met.end() :])
    return TransientError(str(error)) if str(error).startswith(_NOT_NOW) else error


def unavailable(server: str, error: BaseException, timeout: float) -> JournalUnavailableError:
    """The error to raise if the server has not done what it was asked in time."""
    match error:
        case TransientError():
            why = str(error)
        case AuthenticationError():
            why = f"authentication failed: {error}"
        case InvalidResponse():
            why = f"what answers there is no Redis: {error}"
        case _:
            why = f"{type(error).__name__}: {error}"
    return JournalUnavailableError(f"{server} cannot be used (tried for {timeout:.3g} s): {why}")


def refused(server: str, error: Exception) -> DurableError:
    """The error to raise if the server does not take the command at all."""
    if "WRONGTYPE" in str(error):
        return JournalUnreadableError(f"a key of the journal holds something else: {error}")
    if isinstance(error, AskError):
        advice = "this is a node of a Redis Cluster: begin its URL with redis+cluster://"
        return Refused(f"{server} refused the journal: {error} ({advice})")
    return Refused(f"{server} refused the journal: {error}")
