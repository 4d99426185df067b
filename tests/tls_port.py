"""A TLS port before a server that was built without TLS, as operators put stunnel before theirs.

python -m tests.tls_port PORT PORT_OF_THE_SERVER CERTIFICATE KEY
"""

import asyncio
import ssl
import sys
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from pathlib import Path

from tests.processes import Process


class TLSPort:
    """This module as a process. It stays while its server is stopped and started again."""

    def __init__(self, port: int, port_of_server: int, log: Path) -> None:
        self.port_of_server = port_of_server
        self._port = port
        self._log = log
        self._process: Process | None = None

    def start(self, certificate: Path, key: Path) -> None:
        """Start the process, if it does not run."""
        if self._process is None:
            ports = [str(self._port), str(self.port_of_server)]
            self._process = Process([sys.executable, "-m", __name__, *ports, certificate, key], self._log)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()


async def listen(port: int, port_of_server: int, certificate: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def relay(client: StreamReader, to_client: StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", port_of_server)
        except OSError:  # it is down
            to_client.close()
        else:
            await asyncio.gather(copy(client, to_server), copy(server, to_client))

    async with await asyncio.start_server(relay, "127.0.0.1", port, ssl=context) as listener:
        await listener.serve_forever()


async def copy(source: StreamReader, target: StreamWriter) -> None:
    """Pass everything on. When one side closes, the other one is closed, which ends the copy in the other direction."""
    with suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()


if __name__ == "__main__":
    asyncio.run(listen(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
