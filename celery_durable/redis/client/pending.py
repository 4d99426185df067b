"""The commands of a connection whose replies have not been read: they are sent again where it is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .fence import Fence
from .scripts import Dated

PendingCommand = tuple[bytes | Dated, bool | Callable[[Any, list[Any]], None] | None]
"""A command, and what becomes of its reply: it is returned (True), given to a check, or dropped, because nobody ever
wanted it (False), or because who did is gone (None)."""


class Confirmation(NamedTuple):
    """A command that, sent with a write, waits until the write is where it is to be."""

    command: bytes
    check: Callable[[Any, list[Any]], None]
    """Is given its reply, and those before it; raises `TransientError` if the write is not there."""


class Pending:
    """Those of one connection, oldest first."""

    def __init__(self) -> None:
        self.commands: list[PendingCommand] = []
        self.fence: Fence | None = None
        """That of the attempt which uses the connection."""
        self._superseding = b""

    def __len__(self) -> int:
        return len(self.commands)

    def packed(self, command: bytes | Dated, clock: float) -> bytes:
        """A command as it is sent over the connection that there is now, with a server whose *clock* is so far on."""
        if isinstance(command, Dated):
            return command.packed(time.monotonic() * 1000 + clock)
        return self._fenced(command)

    def _fenced(self, command: bytes) -> bytes:
        return command if self.fence is None or command is self._superseding else self.fence.put_into(command)

    def carry_over(self) -> None:
        """Make what is pending fit for another connection."""
        self.commands = [
            (command, wanted)
            for command, wanted in self.commands
            if command is not self._superseding and not (wanted is None and isinstance(command, Dated))
        ]
        if self.fence is not None:
            self._superseding = self.fence.supersede()
            # Where it is refused, what follows meets the number of an earlier connection: its replies are not read.
            self.commands.insert(0, (self._superseding, _carried_out))

    def put_before_each(self, first: bytes) -> None:
        """Let this command be sent before each of the others; nobody wants its reply."""
        plain = [one for one in self.commands if one[0] != first]
        self.commands = [one for command in plain for one in ((first, None), command)]

    def forget(self) -> None:
        """Who waits for replies gives up."""
        # What was never wanted says that an outcome was delivered: were it forgotten, what hangs on that would be sent
        # once more. It does not pile up: who comes to say so has read all that was pending before.
        self.commands = [one for one in self.commands if one[1] is False]

    def discard_replies(self) -> None:
        """The attempt is over: nobody waits for the replies any more, and its fence is not that of the next one."""
        self.commands = [
            (command if isinstance(command, Dated) else self._fenced(command), None if wanted else wanted)
            for command, wanted in self.commands
        ]
        self.fence = None


def _carried_out(_reply: Any, _before: list[Any]) -> None:
    """What is sent with it says whether the attempt is stale."""
