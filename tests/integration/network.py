"""What lies between a client and its server: counted waits, and a proxy that loses replies, falls silent, or delivers
what closed connections have sent when their clients have long sent it again.
"""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Any

import pytest
import redis.connection
from typing_extensions import Self

from celery_durable.drivers import pulse
from tests.servers import RedisServer
from tests.waiting import eventually


class Waits:
    """How often this process has waited for a reply of Redis: it had sent something, and then it read."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def counted(self, expected: int) -> Iterator[None]:
        """Fail unless what is done here waits exactly so often."""
        before = self.count
        yield
        count = self.count - before
        assert count == expected, f"it has waited {count} times, not {expected} times"

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Self:
        """Watch all connections that are made from now on.

        A machine that stands still for a second adds no wait: attempts do not ask then whether they may go on.
        """
        monkeypatch.setattr(pulse, "ASK_AFTER", inf)
        connect = redis.connection.Connection._connect  # noqa: SLF001  where the socket is made
        monkeypatch.setattr(
            redis.connection.Connection, "_connect", lambda connection: _WatchedSocket(connect(connection), self)
        )
        return self


class _WatchedSocket:
    """A socket that reports each reading that follows a sending."""

    def __init__(self, watched: socket.socket, waits: Waits) -> None:
        self._socket = watched
        self._waits = waits
        self._asked = False

    def sendall(self, *args: Any) -> None:
        self._asked = True
        self._socket.sendall(*args)

    def recv(self, *args: Any) -> bytes:
        self._wait()
        return self._socket.recv(*args)

    def recv_into(self, *args: Any) -> int:
        self._wait()
        return self._socket.recv_into(*args)

    def _wait(self) -> None:
        self._waits.count += self._asked
        self._asked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class Proxy:
    """A TCP proxy before a server: it passes everything on, until it is told otherwise."""

    def __init__(self, server: RedisServer) -> None:
        self._server = ("127.0.0.1", server.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._to_lose = 0
        self._losing = threading.Lock()
        self.lost = 0
        """Replies that were lost so far, each with its connection."""
        self._to_hold: list[bytes] = []
        self._late: list[tuple[socket.socket, bytes]] = []
        self._open: set[socket.socket] = set()
        self._silent: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def lose_replies(self, count: int = 1) -> None:
        """Cut the connection instead of passing the next reply on: what it answers has been applied."""
        self._to_lose += count

    def fall_silent(self) -> None:
        """Forget the connections that there are, without a word to either side; new ones are served."""
        self._silent |= self._open

    def hold_back(self, mark: bytes = b"", count: int = 1) -> None:
        """Cut the connections of the next requests that have this mark in them; what they have sent is on its way."""
        self._to_hold += [mark] * count

    @property
    def late(self) -> int:
        """How many requests are held back."""
        return len(self._late)

    def deliver_late(self) -> bytes:
        """Hold no more back, let what was held arrive, and return what the server replies, which reaches nobody."""
        replies = b""
        self._to_hold.clear()
        late, self._late = self._late, []
        for server, sent in late:
            with server, suppress(OSError):  # it has died meanwhile, say
                server.sendall(sent)
                # It closes its side when it has dealt with all of it.
                server.shutdown(socket.SHUT_WR)
                while reply := server.recv(65536):
                    replies += reply
        return replies

    def _start(self, work: Any, *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._start(self._relay, client)

    def _relay(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._server) as server:
            self._open |= {client, server}
            other_side = {client: server, server: client}
            with selectors.DefaultSelector() as ready:
                for side in other_side:
                    ready.register(side, selectors.EVENT_READ)
                while True:
                    for key, _ in ready.select():
                        side: Any = key.fileobj
                        data = side.recv(65536)
                        if not data or (side is server and self._loses()):
                            return
                        if side in self._silent:
                            continue
                        if side is client and self._holds(data):
                            self._late.append((socket.socket(fileno=server.detach()), data))
                            return
                        other_side[side].sendall(data)

    def _holds(self, data: bytes) -> bool:
        with self._losing:
            mark = next((mark for mark in self._to_hold if mark in data), None)
            if mark is not None:
                self._to_hold.remove(mark)
            return mark is not None

    def _loses(self) -> bool:
        with self._losing:
            if not self._to_lose:
                return False
            self._to_lose -= 1
            self.lost += 1
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for server, _ in self._late:
            server.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        eventually(lambda: not any(thread.is_alive() for thread in self._threads), what="the end of the proxy")
