"""The socket and the parser of a connection that redis-py makes. Each command uses them without redis-py's methods."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from .protocol import pack
from .redis_py import Parser, address_of, parser_of, socket_of
from .scripts import all_scripts
from .spin_wait import SpinWait

TIME = pack("TIME")
_MORE_FOLLOWS = getattr(socket, "MSG_MORE", 0)


class Transport:
    """One socket at a time. If it is lost, another one replaces it."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        """The connection of redis-py."""
        self.sendall: Callable[[bytes, int], None] | None = None
        """The method of the socket; None while there is no socket."""
        self.receive: Any = None
        """The method of the parser that reads a reply."""
        self.more_follows = 0
        """The flag of ``send``: the kernel may wait for the next command."""
        self.clock_ahead_ms = 0.0
        """Milliseconds that Redis' clock is ahead of this machine's monotonic one."""
        self._spin_wait: SpinWait | None = None

    def connect(self) -> None:
        """Make a new connection, load the scripts, and read Redis' clock. It is used after :meth:`open`."""
        raw, scripts = self.raw, all_scripts()
        raw.disconnect()
        raw.connect()
        for script in scripts:
            self.send_first(pack("SCRIPT", "LOAD", script.text))
        self.send_first(TIME)
        for _ in scripts:
            raw.read_response()
        seconds, microseconds = map(int, raw.read_response(disable_decoding=True))
        self.clock_ahead_ms = seconds * 1000 + microseconds / 1000 - time.monotonic() * 1000

    def send_first(self, command: bytes) -> None:
        """Send a command over a connection that is not open yet."""
        self.raw.send_packed_command((command,))

    def open(self) -> None:
        """Begin to use the connection that was made."""
        sock: Any = socket_of(self.raw)
        # redis-py's own methods check at each call what is checked here once. They cost a tenth of a step.
        self.receive = self._parser.read_response
        self.more_follows = 0 if isinstance(sock, ssl.SSLSocket) else _MORE_FOLLOWS
        self._spin_wait = SpinWait.over(sock)
        self.sendall = sock.sendall

    @property
    def _parser(self) -> Parser:
        return parser_of(self.raw)

    def fileno(self) -> int:
        """The file descriptor of the socket; -1 while there is no socket."""
        sendall: Any = self.sendall
        return -1 if sendall is None else int(sendall.__self__.fileno())

    def spin_wait(self) -> bool:
        """Wait for a moment, without sleeping, and return whether a reply has arrived."""
        return self.sendall is not None and self._spin_wait is not None and self._spin_wait.spin()

    def has_reply(self, seconds: float) -> bool:
        """Whether there is a connection and something arrives over it within so many seconds."""
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
        """Give up the socket, because it is out of step. This wakes up a task that waits for it on the event loop."""
        sock, self.sendall = socket_of(self.raw), None
        with suppress(OSError, AttributeError):
            sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]

    def close(self) -> None:
        """End the connection. The next use makes another one."""
        self.sendall = None
        self.raw.disconnect()

    def __str__(self) -> str:
        # No more of the URL: it may have a password.
        address = address_of(self.raw)
        return f"Redis at {address}" if address else "Redis"
