"""A kept connection to Redis: commands are sent at once, replies are read when they are needed.

redis-py makes the connection and reads the protocol; what is ours is that a connection stays with its attempt (to
check one out and in costs as much as the write itself), and that commands whose replies were lost are sent again. That
is safe because every script of the journal may be applied twice, and because what the lost connection still delivers
after that is refused: see :mod:`fence`, and :class:`Dated`.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from redis.exceptions import RedisError, ResponseError

from .errors import PASSING, judged, refused, unavailable
from .fence import Fence
from .lookout import Lookout
from .protocol import pack
from .scripts import Dated, all_scripts

logger = logging.getLogger("celery_durable")


class Confirmation(NamedTuple):
    """A command that, sent with a write, waits until the write is where it is to be."""

    command: bytes
    check: Callable[[Any, list[Any]], None]
    """Is given its reply, and those before it; raises `Passing` if the write is not there."""


Vet = Callable[[Any], Confirmation | None]
"""Asks the server at the other end of a new connection how its writes are confirmed; None: by its reply alone."""


Owed = tuple[bytes | Dated, bool | Callable[[Any, list[Any]], None] | None]
"""A command, and what becomes of its reply: it is returned (True), given to a check, or dropped, because nobody ever
wanted it (False), or because who did is gone (None)."""

_LONGEST_PAUSE = 1.0
_HOLD = getattr(socket, "MSG_MORE", 0)
TIME = pack("TIME")


class Wire:
    """One connection, with the commands whose replies have not been read."""

    def __init__(self, connection: Any, patience: float) -> None:
        self._connection = connection
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
        except PASSING:
            self._lose()
            return None
        except ResponseError as error:
            self._drop()
            self._give_up()
            raise refused(self._server, error) from error

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
            except (*PASSING, ResponseError) as raised:
                error = self._judged(raised)
                self._drop()
                if not isinstance(error, PASSING):
                    self._give_up()
                    raise refused(self._server, error) from error
                if time.monotonic() + pause > deadline:
                    self._give_up()
                    raise unavailable(self._server, error, patience) from error
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
        except (*PASSING, ResponseError):
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
                if isinstance(error, PASSING):
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
        return judged(error, self._connection._parser.parse_error)  # noqa: SLF001

    def _resume(self) -> None:
        connection, scripts = self._connection, all_scripts()
        connection.disconnect()
        connection.connect()
        for script in scripts:
            connection.send_packed_command((pack("SCRIPT", "LOAD", script.text),))
        connection.send_packed_command((TIME,))
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
