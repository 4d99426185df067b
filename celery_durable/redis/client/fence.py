"""A fence: the scripts check every write of an attempt against it.

They refuse what another attempt writes, and what a closed connection still delivers. The kernel goes on delivering what
a closed socket had taken. This may arrive long after it was sent again over another connection, and after what
followed. So each connection of an attempt has a number. The first command over a new connection raises the number in
the journal, and a write with an earlier number meets another fence.
"""

from __future__ import annotations

import os

from .protocol import pack_parts
from .scripts import call


class Fence:
    """The fence of one attempt. No other attempt has its token, and it writes over one connection at a time."""

    __slots__ = ("_own", "_packed", "_run", "_token", "number")

    def __init__(self, token: bytes, run: str) -> None:
        self._token = token
        self._run = run
        self._packed = self._own = b""
        """The token as commands are packed with it, and as this connection sends it. Only a later one needs them."""
        self.number = 1
        """The number of the connection."""

    def supersede(self) -> bytes:
        """Go on over another connection, and return the command that has to be the first there."""
        number = self.number + 1
        self._packed = pack_parts((self._token,))
        self._own = pack_parts((b"%s:%d" % (self._token, number),))
        # It is raised last: another thread may put the fence into a command meanwhile.
        self.number = number
        return call("supersede", (self._run,), self._token, number)

    def put_into(self, command: bytes) -> bytes:
        """Return a command as it is sent over this connection. It was packed with the token alone."""
        # The first match is the token: it is random, and the keys before it are older.
        return command.replace(self._packed, self._own, 1) if self.number > 1 else command


def new_fence() -> str:
    """A token that no other attempt has."""
    return os.urandom(6).hex()
