"""A server far away: a TCP proxy that holds every reply back for a while, so that waiting for one shows."""

import selectors
import socket
import threading
import time
from collections import deque
from contextlib import suppress


class Distance:
    """Forwards to a local port at once, and back after *delay* seconds; replies do not wait for one another."""

    def __init__(self, port: int, delay: float) -> None:
        self.delay = delay
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._forward, name="distance", daemon=True)

    def __enter__(self) -> "Distance":  # noqa: PYI034 - Self is in the standard library from Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _forward(self) -> None:
        far_of: dict[socket.socket, socket.socket] = {}
        near_of: dict[socket.socket, socket.socket] = {}
        on_the_way: deque[tuple[float, socket.socket, bytes]] = deque()
        with selectors.DefaultSelector() as selector, self._listener:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._over.is_set():
                wait = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else 0.1
                for key, _ in selector.select(min(wait, 0.1)):
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    if source is self._listener:
                        near, _address = source.accept()
                        far = socket.create_connection(("127.0.0.1", self._port))
                        far_of[near], near_of[far] = far, near
                        for end in (near, far):
                            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                            selector.register(end, selectors.EVENT_READ)
                        continue
                    with suppress(ConnectionError):
                        data = source.recv(1 << 20)
                        if not data:
                            selector.unregister(source)
                        elif source in far_of:
                            far_of[source].sendall(data)
                        else:
                            on_the_way.append((time.monotonic() + self.delay, near_of[source], data))
                while on_the_way and on_the_way[0][0] <= time.monotonic():
                    _, near, data = on_the_way.popleft()
                    with suppress(OSError):
                        near.sendall(data)
            for end in (*far_of, *near_of):
                end.close()
