"""The socket of a connection that redis-py makes, and its parser, as they are used for each command."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from .protocol import pack
from .redis_py import Parser, parser_of, place_of, socket_of
from .scripts import all_scripts
from .spin_wait import SpinWait

TIME = pack("TIME")
_MORE_FOLLOWS = getattr(socket, "MSG_MORE", 0)


class Transport:
    """One socket at a time: where it is lost, the next one takes its place."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        """The connection of redis-py."""
        self.sendall: Callable[[bytes, int], None] | None = None
        """That of the socket; None while there is none."""
        self.receive: Any = None
        """Reads a reply, as the parser does."""
        self.more_follows = 0
        """The flag of a sending that the kernel may put off until the next one."""
        self.clock = 0.0
        """Milliseconds that Redis' clock is ahead of this machine's monotonic one."""
        self._spin_wait: SpinWait | None = None

    def connect(self) -> None:
        """Make a new connection and load the scripts; it is used from :meth:`open` on."""
        raw, scripts = self.raw, all_scripts()
        raw.disconnect()
        raw.connect()
        for script in scripts:
            self.send_first(pack("SCRIPT", "LOAD", script.text))
        self.send_first(TIME)
        for _ in scripts:
            raw.read_response()
        seconds, microseconds = map(int, raw.read_response(disable_decoding=True))
        self.clock = seconds * 1000 + microseconds / 1000 - time.monotonic() * 1000

    def send_first(self, command: bytes) -> None:
        """Send a command over a connection that is not open yet."""
        self.raw.send_packed_command((command,))

    def open(self) -> None:
        """Use the connection that was made."""
        sock: Any = socket_of(self.raw)
        # The connection's own methods check at each call what is checked here once, and cost a tenth of a step.
        self.receive = self._parser.read_response
        self.more_follows = 0 if isinstance(sock, ssl.SSLSocket) else _MORE_FOLLOWS
        self._spin_wait = SpinWait.over(sock)
        self.sendall = sock.sendall

    @property
    def _parser(self) -> Parser:
        return parser_of(self.raw)

    def fileno(self) -> int:
        """The socket's file descriptor; -1 while there is none."""
        sendall: Any = self.sendall
        return -1 if sendall is None else int(sendall.__self__.fileno())

    def spin_wait(self) -> bool:
        """Give a reply that will be quick a moment to arrive; whether it has."""
        return self.sendall is not None and self._spin_wait is not None and self._spin_wait.spin()

    def has_reply(self, seconds: float) -> bool:
        """Whether there is a connection, and something arrives within so many seconds."""
        if self.sendall is None:
            return False
        try:
            return bool(self._parser.can_read(seconds))
        except (RedisError, OSError):
            self.lose()
            return False

    def parse_error(self, text: str) -> Exception:
        """The error that these words of the server stand for."""
        return self._parser.parse_error(text)

    def lose(self) -> None:
        """The connection is out of step; who waits for it on the event loop is woken up."""
        sock, self.sendall = socket_of(self.raw), None
        with suppress(OSError, AttributeError):
            sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]

    def close(self) -> None:
        """End the connection; the next use makes another."""
        self.sendall = None
        self.raw.disconnect()

    def __str__(self) -> str:
        # No more of the URL: it may have a password.
        place = place_of(self.raw)
        return f"Redis at {place}" if place else "Redis"
