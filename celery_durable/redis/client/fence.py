"""What the writes of an attempt are checked against, so that none of another attempt counts, or of a closed connection.

What was sent over a connection that was lost may arrive long after it was sent again over another one, and after what
followed: the kernel goes on delivering what a closed socket had taken. So each connection of an attempt has a number.
The first act over a new one raises the number in the journal; writes with an earlier one meet another fence.
"""

from __future__ import annotations

import os

from .protocol import pack_parts
from .scripts import call


class Fence:
    """That of one attempt, which is the only one to have its token, while it writes over one connection at a time."""

    __slots__ = ("_own", "_packed", "_run", "_token", "number")

    def __init__(self, token: bytes, run: str) -> None:
        self._token = token
        self._run = run
        self._packed = self._own = pack_parts((token,))
        self.number = 1
        """Of the connection."""

    def supersede(self) -> bytes:
        """Go on over another connection; the command that is to travel first."""
        self.number += 1
        self._own = pack_parts((b"%s:%d" % (self._token, self.number),))
        return call("supersede", (self._run,), self._token, self.number)

    def put_into(self, command: bytes) -> bytes:
        """The command, which was packed with the token alone, as it is sent over this connection."""
        # The first place: the token is random, and the keys before it were there before it was drawn.
        return command.replace(self._packed, self._own, 1) if self.number > 1 else command


def new_fence() -> str:
    """A token that no other attempt has."""
    return os.urandom(6).hex()
