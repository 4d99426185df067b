"""A kept connection to Redis: commands are sent at once, replies are read when they are needed.

redis-py makes the connection and reads the protocol; what is ours is that a connection stays with its attempt (to
check one out and in costs as much as the write itself), and that commands whose replies were lost are sent again. That
is safe because every script of the journal may be applied twice. With :mod:`redis_journal`, alone in knowing Redis.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import Any, cast

from redis.connection import AbstractConnection, ConnectionPool
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from .exceptions import JournalUnavailableError

# What a server says while it restarts, fails over or is full: worth asking again.
_PASSING = (
    RedisConnectionError, RedisTimeoutError, OSError, BusyLoadingError, ReadOnlyError, OutOfMemoryError, NoScriptError,
)  # fmt: skip
_LONGEST_PAUSE = 1.0


class Script:
    """One of the Lua files beside this module, called by its digest."""

    __slots__ = ("sha", "text")

    def __init__(self, name: str) -> None:
        self.text = (Path(__file__).parent / "lua" / f"{name}.lua").read_text("utf-8")
        self.sha = sha1(self.text.encode()).hexdigest()  # noqa: S324  the name that Redis gives it


@cache
def script(name: str) -> Script:
    return Script(name)


@cache
def _scripts() -> tuple[Script, ...]:
    names = sorted(path.stem for path in (Path(__file__).parent / "lua").glob("*.lua"))
    return tuple(script(name) for name in names)


class Wire:
    """One connection, with the commands whose replies have not been read."""

    def __init__(self, connection: AbstractConnection, patience: float) -> None:
        self._connection: Any = connection  # redis-py annotates few of its methods
        self._patience = patience
        self._ready = False
        self._unread: list[tuple[bytes, bool, float]] = []
        self.last_proof = 0.0
        """Monotonic time at which the newest acknowledged command was sent."""

    @property
    def owed(self) -> int:
        return len(self._unread)

    def fileno(self) -> int:
        """The socket's file descriptor; -1 when there is no connection."""
        sock: Any = self._connection._sock if self._ready else None  # noqa: SLF001  to wait for it on the event loop
        return -1 if sock is None else int(sock.fileno())

    def send(self, command: bytes, *, wanted: bool = True) -> None:
        """Send a packed command now; its reply is read by :meth:`replies`, or dropped there if not *wanted*."""
        self._unread.append((command, wanted, time.monotonic()))
        if self._ready:
            try:
                self._connection.send_packed_command((command,), check_health=False)
            except (RedisConnectionError, RedisTimeoutError, OSError):
                self._ready = False
            except BaseException:
                self._ready = False
                raise

    def replies(self) -> list[Any]:
        """Read what is owed, oldest first; reconnect and send again what was lost, within the wire's patience.

        Raises:
            JournalUnavailableError: Redis did not answer in that time, or refused the command for good.
        """
        deadline = time.monotonic() + self._patience
        pause = 0.02
        while True:
            try:
                if not self._ready:
                    self._resume()
                return self._read()
            except _PASSING as error:
                self._drop()
                if time.monotonic() + pause > deadline:
                    raise self._unavailable(error) from error
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except ResponseError as error:
                self._drop()
                raise self._unavailable(error) from error
            except BaseException:
                # A time limit's signal, say: the protocol is out of step, what was sent will be sent again.
                self._drop()
                raise

    def _read(self) -> list[Any]:
        # Nothing is forgotten before all is read: a connection lost half-way sends everything again.
        unread, read = self._unread, self._connection.read_response
        answers = [(read(disable_decoding=True), wanted) for _, wanted, _ in unread]
        if unread:
            self.last_proof = unread[-1][2]
            self._unread = []
        return [reply for reply, wanted in answers if wanted]

    def _resume(self) -> None:
        self._connection.disconnect()
        self._connection.connect()
        scripts = _scripts()
        for script in scripts:
            self._connection.send_packed_command((pack("SCRIPT", "LOAD", script.text),), check_health=False)
        for _ in scripts:
            self._connection.read_response()
        for command, _, _ in self._unread:
            self._connection.send_packed_command((command,), check_health=False)
        self._ready = True

    def _drop(self) -> None:
        self._ready = False
        self._connection.disconnect()

    def _unavailable(self, error: BaseException) -> JournalUnavailableError:
        self._unread.clear()
        kind = "authentication failed" if isinstance(error, AuthenticationError) else type(error).__name__
        return JournalUnavailableError(f"Redis did not take the journal within {self._patience:g} s: {kind}: {error}")

    def disown(self) -> None:
        """What is still owed is to be read, and dropped."""
        self._unread = [(command, False, sent) for command, _, sent in self._unread]


class Wires:
    """The connections of this process to one Redis; an attempt has one of its own while it lasts."""

    def __init__(self, make_pool: Callable[[], ConnectionPool], patience: float) -> None:
        self._make_pool = make_pool
        self._patience = patience
        self._pool: ConnectionPool | None = None
        self._idle: list[Wire] = []
        _everywhere.append(self)

    def take(self) -> Wire:
        """A connection that nobody else uses."""
        try:
            return self._idle.pop()
        except IndexError:
            if self._pool is None:
                self._pool = self._make_pool()
            return Wire(cast("AbstractConnection", self._pool.make_connection()), self._patience)

    def give_back(self, wire: Wire) -> None:
        """Keep a connection for the next attempt, which is not to see replies of this one."""
        wire.disown()
        self._idle.append(wire)

    def forget(self) -> None:
        """In a forked child: the parent's sockets are not ours."""
        self._idle = []
        self._pool = None


_everywhere: list[Wires] = []


def _forget_all() -> None:
    for wires in _everywhere:
        wires.forget()


os.register_at_fork(after_in_child=_forget_all)


def pack(*parts: Any) -> bytes:
    """A command in Redis' protocol."""
    return b"*%d\r\n" % len(parts) + pack_parts(parts)


def pack_parts(parts: Iterable[Any]) -> bytes:
    """Some arguments of a command; those that stay the same are packed once."""
    packed = []
    for part in parts:
        raw = part if type(part) is bytes else str(part).encode()
        packed.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(packed)


def call(script_name: str, keys: tuple[str, ...], *args: Any) -> bytes:
    """The command that runs a script."""
    return pack("EVALSHA", script(script_name).sha, len(keys), *keys, *args)
