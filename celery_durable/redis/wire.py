"""A kept connection to Redis: commands are sent at once, replies are read when they are needed.

redis-py makes the connection and reads the protocol; what is ours is that a connection stays with its attempt (to
check one out and in costs as much as the write itself), and that commands whose replies were lost are sent again. That
is safe because every script of the journal may be applied twice, and because what the lost connection still delivers
after that is refused: see :mod:`fence`, and :class:`Dated`. With :mod:`redis_journal`, :mod:`runs`,
:mod:`address`, :mod:`cluster`, :mod:`confirmation` and :mod:`server`, alone in knowing Redis.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from hashlib import sha1
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakSet

from redis.connection import AbstractConnection, ConnectionPool
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from celery_durable.exceptions import DurableError, JournalUnavailableError, JournalUnreadableError
from celery_durable.journal.port import LONGEST_READ

from .lookout import Lookout

if TYPE_CHECKING:
    from .fence import Fence

logger = logging.getLogger("celery_durable")

# What a server says while it restarts, fails over or is full, or what answers in its place: worth asking again.
_PASSING = (
    RedisConnectionError, RedisTimeoutError, OSError, BusyLoadingError, ReadOnlyError, OutOfMemoryError, NoScriptError,
    ClusterDownError, TryAgainError, InvalidResponse,
)  # fmt: skip
# The same, for which redis-py has no class; LATE is our own.
_NOT_NOW = ("BUSY", "MISCONF", "NOREPLICAS", "LATE")
# What Redis 6.2 puts before an error that a script has met.
_MET_IN_SCRIPT = re.compile(r"Error running script \(call to \w+\): .*@user_script: ?\d+: -?")


class Passing(RedisConnectionError):
    """A refusal that passes."""


class Refused(JournalUnavailableError):
    """The server has refused a command, and would again."""


class Confirmation(NamedTuple):
    """A command that, sent with a write, waits until the write is where it is to be."""

    command: bytes
    check: Callable[[Any, list[Any]], None]
    """Is given its reply, and those before it; raises `Passing` if the write is not there."""


Vet = Callable[[Any], Confirmation | None]
"""Asks the server at the other end of a new connection how its writes are confirmed; None: by its reply alone."""


class Dated(NamedTuple):
    """A command that no fence guards: Redis carries it out only while somebody may wait for its reply.

    A packet of it that comes later does nothing: see ``lua/parts/in_time.lua``.
    """

    command: bytes
    """Without its last argument, which says until when."""

    def packed(self, now: float) -> bytes:
        """As it is sent when it is *now*, in milliseconds of Redis' clock."""
        return self.command + pack_parts((int(now + _LONGEST_REPLY * 1000),))


Owed = tuple[bytes | Dated, bool | Callable[[Any, list[Any]], None] | None]
"""A command, and what becomes of its reply: it is returned (True), given to a check, or dropped, because nobody ever
wanted it (False), or because who did is gone (None)."""

_LONGEST_REPLY = LONGEST_READ + 1
"""Seconds after which nobody waits for a reply: the connection was given up."""
_LONGEST_PAUSE = 1.0
_LONG_IDLE = 1.0
_LONGEST_IDLE = 60.0
"""Seconds after which a connection is closed that nobody has needed."""
_HOLD = getattr(socket, "MSG_MORE", 0)


_INCLUDE = re.compile(r"^ *--include (\w+)\n", re.MULTILINE)


def _lua(name: str) -> str:
    return (Path(__file__).parent / "lua" / f"{name}.lua").read_text("utf-8")


class Script:
    """One of the Lua files beside this module, called by its digest."""

    __slots__ = ("call", "text")

    def __init__(self, name: str) -> None:
        self.text = _INCLUDE.sub(lambda line: _lua(f"parts/{line[1]}"), _lua(name))
        sha = sha1(self.text.encode()).hexdigest()  # noqa: S324  the name that Redis gives it
        self.call = pack_parts(("EVALSHA", sha))


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
        self._lock = threading.Lock()
        self._hold = 0
        self._sendall: Any = None
        self._receive: Any = None
        self._lookout: Lookout | None = None
        self._unread: list[Owed] = []
        self._confirmation: Confirmation | None = None
        self._vet: Vet | None = None
        self._vetted_by: Vet | None = None
        self._fence: Fence | None = None
        self._superseding = b""
        self._clock = 0.0
        self.idle_since = 0.0

    @property
    def owed(self) -> int:
        return len(self._unread)

    def fileno(self) -> int:
        """The socket's file descriptor; -1 when there is no connection."""
        return -1 if self._sendall is None else int(self._sendall.__self__.fileno())

    def confirm_by(self, vet: Vet) -> None:
        """Until the wire is given back, *vet* is asked at each connection how writes are confirmed."""
        self._vet = vet
        if self._vetted_by is not vet:
            self._drop()

    def guard(self, fence: Fence, *, goes_on: bool = False) -> None:
        """Until the wire is given back, what is sent belongs to the attempt that this is the fence of.

        *goes_on*: the attempt has written over another wire before.
        """
        self._fence = fence
        if goes_on:
            self._drop()

    def send(
        self, *commands: bytes | Dated, wanted: bool = True, with_next: bool = False, confirmed: bool = False
    ) -> None:
        """Send packed commands; their replies are read by :meth:`replies`, or dropped there if not *wanted*.

        Nobody learns of the loss of one that is not wanted: it stays owed until the server has answered it, whoever
        gives up before.

        One that is to go *with the next* is handed to the kernel, which sends it together with the next command, or
        after 0.2 s, or when this process dies, whichever comes first. What is to be *confirmed* counts as answered
        when that has happened, too (see :meth:`confirm_by`).
        """
        with self._lock:
            # A socket closed with unread replies is reset, and what the kernel still holds would be lost with it.
            flags = self._hold if with_next and not self._unread else 0
            for command in commands:
                self._unread.append((command, wanted))
            if confirmed and self._confirmation is not None:
                commands += (self._confirmation.command,)
                self._unread.append(self._confirmation)
            if self._sendall is not None:
                try:
                    if self._fence is None or self._fence.number > 1:
                        commands = tuple(map(self._packed, commands))
                    # All are bytes by now: an attempt sends none that are dated.
                    packed: Any = commands[0] if len(commands) == 1 else b"".join(commands)  # type: ignore[arg-type]
                    self._sendall(packed, flags)
                except OSError:
                    self._lose()
                except BaseException:
                    self._lose()
                    raise

    def _packed(self, command: bytes | Dated) -> bytes:
        """A command as it is sent over the connection that there is now."""
        if isinstance(command, Dated):
            return command.packed(time.monotonic() * 1000 + self._clock)
        return command if self._fence is None or command is self._superseding else self._fence.put_into(command)

    def look_out(self) -> bool:
        """Give a reply that will be quick a moment to arrive; whether it has."""
        return self._sendall is not None and self._lookout is not None and self._lookout.look()

    def answers(self, seconds: float) -> bool:
        """Whether there is a connection, and something arrives within so many seconds."""
        if self._sendall is None:
            return False
        try:
            return bool(self._connection._parser.can_read(seconds))  # noqa: SLF001
        except (RedisError, OSError):
            self._lose()
            return False

    def replies_if_connected(self) -> list[Any] | None:
        """As :meth:`replies`, without ever waiting for a connection: None if it is lost."""
        if self._sendall is None:
            return None
        try:
            return self._read()
        except _PASSING:
            self._lose()
            return None
        except ResponseError as error:
            self._drop()
            raise self._refused(error) from error

    def replies(self, patience: float | None = None) -> list[Any]:
        """Read what is owed, oldest first; reconnect and send again what was lost, within *patience* (the wire's).

        Raises:
            JournalUnavailableError: Redis did not answer in that time, or refused the command for good.
        """
        patience = self._patience if patience is None else patience
        deadline = time.monotonic() + patience
        pause = 0.02
        while True:
            try:
                if self._sendall is None:
                    self._resume()
                return self._read()
            except (*_PASSING, ResponseError) as raised:
                error = self._judged(raised)
                self._drop()
                if not isinstance(error, _PASSING):
                    raise self._refused(error) from error
                if time.monotonic() + pause > deadline:
                    raise self._unavailable(error, patience) from error
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except BaseException:
                # A time limit's signal, say: the protocol is out of step, what was sent will be sent again.
                self._drop()
                raise

    def try_again(self) -> None:
        """Read what is owed, or send it again, once; nothing is forgotten where that fails."""
        if not self.answers(0):
            self._drop()  # the reply should be here by now
        try:
            if self._sendall is None:
                self._resume()
            self._read()
        except (*_PASSING, ResponseError):
            self._drop()  # who needs this connection is told why there is none

    def _read(self) -> list[Any]:
        # Nothing is forgotten before all is read: a connection lost half-way sends everything again. What a sibling
        # sends meanwhile stays owed.
        unread, answers = self._unread[:], []
        again: list[Owed] = []
        for command, wanted in unread:
            reply = self._receive(disable_decoding=True)
            if isinstance(reply, RedisError):
                error = self._judged(reply)
                if wanted:
                    raise error
                # Whoever reads has not sent this, or does not wait for it: the others' replies are not held up.
                if isinstance(error, _PASSING):
                    again.append((command, wanted))
                else:
                    logger.warning("Redis refused a command that nobody waits for: %s", error)
            elif wanted is True:
                answers.append(reply)
            elif wanted:
                wanted(reply, answers)
        self._unread[: len(unread)] = again
        if again:
            self._drop()  # the next connection sends it again
        return answers

    def _judged(self, error: Exception) -> Exception:
        """An error that the server replied, as one that passes if it does."""
        if isinstance(error, ResponseError) and (met := _MET_IN_SCRIPT.match(str(error))):
            error = self._connection._parser.parse_error(str(error)[met.end() :])  # noqa: SLF001
        return Passing(str(error)) if str(error).startswith(_NOT_NOW) else error

    def _resume(self) -> None:
        connection, scripts = self._connection, _scripts()
        connection.disconnect()
        connection.connect()
        for script in scripts:
            connection.send_packed_command((pack("SCRIPT", "LOAD", script.text),))
        connection.send_packed_command((_TIME,))
        for _ in scripts:
            connection.read_response()
        seconds, microseconds = map(int, connection.read_response(disable_decoding=True))
        self._clock = seconds * 1000 + microseconds / 1000 - time.monotonic() * 1000
        self._vetted_by = self._vet
        if self._vet is not None:
            self._confirmation = self._vet(connection)
        with self._lock:
            self._prepare()
            for command, _ in self._unread:
                connection.send_packed_command((self._packed(command),))
            # The connection's own methods check at each call what is checked here once, and cost a tenth of a step.
            self._sendall = connection._sock.sendall  # noqa: SLF001
            self._hold = 0 if isinstance(connection._sock, ssl.SSLSocket) else _HOLD  # noqa: SLF001
            self._receive = connection._parser.read_response  # noqa: SLF001
            self._lookout = Lookout.over(connection._sock)  # noqa: SLF001

    def _prepare(self) -> None:
        """Make what is owed fit for another connection."""
        self._unread = [
            (command, wanted)
            for command, wanted in self._unread
            if command is not self._superseding and not (wanted is None and isinstance(command, Dated))
        ]
        if self._fence is not None:
            self._superseding = self._fence.supersede()
            # Where it is refused, what follows meets the number of an earlier connection: its replies are not read.
            self._unread.insert(0, (self._superseding, _carried_out))

    def _lose(self) -> None:
        """The connection is out of step; who waits for it on the event loop is woken up."""
        sock, self._sendall = self._connection._sock, None  # noqa: SLF001
        with suppress(OSError, AttributeError):
            sock.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        self._sendall = None
        self._connection.disconnect()

    def close(self) -> None:
        """End the connection; the next use makes another."""
        self._drop()

    def abandon(self) -> None:
        """Forget what was sent, and the connection with it."""
        self._drop()
        self._give_up()

    def _give_up(self) -> None:
        # What was never wanted says that an outcome was delivered: were it forgotten, what hangs on that would be sent
        # once more. It does not pile up: who comes to say so has read all that the wire owed before.
        with self._lock:
            self._unread = [one for one in self._unread if one[1] is False]

    def _unavailable(self, error: BaseException, patience: float) -> JournalUnavailableError:
        self._give_up()
        match error:
            case Passing():
                why = str(error)
            case AuthenticationError():
                why = f"authentication failed: {error}"
            case InvalidResponse():
                why = f"what answers there is no Redis: {error}"
            case _:
                why = f"{type(error).__name__}: {error}"
        return JournalUnavailableError(f"{self._server} did not take the journal within {patience:.3g} s: {why}")

    def _refused(self, error: Exception) -> DurableError:
        self._give_up()
        if "WRONGTYPE" in str(error):
            return JournalUnreadableError(f"a key of the journal holds something else: {error}")
        if isinstance(error, AskError):
            hint = "this is a node of a Redis Cluster: begin its URL with redis+cluster://"
            return Refused(f"{self._server} refused the journal: {error} ({hint})")
        return Refused(f"{self._server} refused the journal: {error}")

    @property
    def _server(self) -> str:
        """Which one it is, for messages: no more of the URL, which may have a password."""
        connection = self._connection
        if path := getattr(connection, "path", None):
            return f"Redis at {path}"
        return f"Redis at {connection.host}:{connection.port}" if connection.host else "Redis"

    def disown(self) -> None:
        """What is still owed is to be read, and dropped."""
        self._unread = [
            (command if isinstance(command, Dated) else self._packed(command), None if wanted else wanted)
            for command, wanted in self._unread
        ]
        self._vet = self._fence = None


def _carried_out(_reply: Any, _before: list[Any]) -> None:
    """What is sent with it says whether the attempt is stale."""


class Wires:
    """The connections of this process to one Redis; an attempt has one of its own while it lasts."""

    def __init__(self, make_pool: Callable[[], ConnectionPool], patience: float) -> None:
        self._make_pool = make_pool
        self._patience = patience
        self._pool: ConnectionPool | None = None
        self._idle: list[Wire] = []
        self.writes_results = True
        """Whether the server writes a result of Celery's together with a journal, as far as is known."""
        self.ahead: float | None = None
        """Seconds that its clock is ahead of this machine's monotonic one; None as long as it has not told its time."""
        _everywhere.add(self)

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
        wire.idle_since = time.monotonic()
        self._idle.append(wire)
        close_unneeded(self._idle)

    def ask(self, *commands: bytes | Dated, patience: float | None = None) -> list[Any]:
        """The replies to these commands, over a connection of their own; raises what :meth:`Wire.replies` does."""
        wire = self.take()
        try:
            wire.send(*commands)
            return wire.replies(patience)
        finally:
            self.give_back(wire)

    @property
    def has_idle(self) -> bool:
        """Whether there is a connection that nobody uses."""
        return bool(self._idle)

    def answer(self, seconds: float) -> bool:
        """Whether there is a connection to this Redis over which it answers within so many seconds."""
        wire = self.take()
        idle_since = wire.idle_since
        try:
            if wire.fileno() < 0:
                return False
            wire.send(_TIME)
            return wire.answers(seconds) and wire.replies_if_connected() is not None
        finally:
            self.give_back(wire)
            wire.idle_since = idle_since  # this was no use of it

    def settle_idle(self) -> None:
        """Read what connections are owed that nobody uses: what was lost on its way is sent again.

        Those that nobody needs any more are closed, and those that the server has closed.
        """
        settle(self._idle)

    def forget(self) -> None:
        """In a forked child: the parent's sockets are not ours."""
        self._idle = []
        self._pool = None


def settle(idle: list[Any]) -> None:
    """Read what these connections are owed, if nobody has used them for a while; close those that are not needed."""
    for wire in list(idle):
        if time.monotonic() - wire.idle_since > _LONG_IDLE:
            with suppress(ValueError):  # taken just now
                idle.remove(wire)
                try:
                    if wire.owed:
                        wire.try_again()
                    else:
                        wire.answers(0)  # notices that the server has closed it
                finally:
                    if wire.owed or wire.fileno() >= 0:
                        idle.insert(0, wire)
                    else:
                        wire.close()
    while close_unneeded(idle):
        pass


def close_unneeded(idle: list[Any]) -> bool:
    """Close a connection that was not used for long, if another one is left; whether there was one."""
    oldest = idle[0] if len(idle) > 1 else None  # what is taken is the last
    if oldest is None or oldest.owed or time.monotonic() - oldest.idle_since < _LONGEST_IDLE:
        return False
    with suppress(ValueError):  # taken just now
        idle.remove(oldest)
        oldest.close()
    return True


_everywhere: WeakSet[Wires] = WeakSet()


def _forget_all() -> None:
    for wires in _everywhere:
        wires.forget()


os.register_at_fork(after_in_child=_forget_all)


# To format a number costs more than all else that there is to packing a part.
_SIZES = [b"$%d\r\n" % size for size in range(512)]


def pack(*parts: Any) -> bytes:
    """A command in Redis' protocol."""
    return b"*%d\r\n" % len(parts) + pack_parts(parts)


def pack_parts(parts: Iterable[Any]) -> bytes:
    """Some arguments of a command; those that stay the same are packed once."""
    packed: list[bytes] = []
    for part in parts:
        raw = part if type(part) is bytes else str(part).encode()
        size = len(raw)
        packed += (_SIZES[size] if size < len(_SIZES) else b"$%d\r\n" % size, raw, b"\r\n")
    return b"".join(packed)


def pack_pairs(fields: Mapping[str, str]) -> bytes:
    """The names and values of a hash: as :func:`pack_parts`, but quicker, since every step does it."""
    text = "".join([f"${len(name)}\r\n{name}\r\n${len(value)}\r\n{value}\r\n" for name, value in fields.items()])
    # Elsewhere characters and bytes are not the same number.
    return text.encode() if text.isascii() else pack_parts(chain.from_iterable(fields.items()))


_TIME = pack("TIME")


def call(script_name: str, keys: tuple[str | bytes, ...], *args: Any) -> bytes:
    """The command that runs a script."""
    return _call(script_name, keys, args, 0)


def dated_call(script_name: str, keys: tuple[str | bytes, ...], *args: Any) -> Dated:
    """The same for a script that includes ``in_time``."""
    return Dated(_call(script_name, keys, args, 1))


def _call(script_name: str, keys: tuple[str | bytes, ...], args: tuple[Any, ...], to_come: int) -> bytes:
    parts = (len(keys), *keys, *args)
    return b"*%d\r\n" % (2 + len(parts) + to_come) + script(script_name).call + pack_parts(parts)
