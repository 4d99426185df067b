"""The commands of a connection that wait for their replies. If it is lost, they are sent again over the next one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .fence import Fence
from .scripts import Dated

PendingCommand = tuple[bytes | Dated, bool | Callable[[Any, list[Any]], None] | None]
"""A command, and the use of its reply: it is returned (True), or given to a function that checks it, or dropped. It is
dropped because nobody has ever wanted it (False), or because nobody wants it any more (None)."""


class Confirmation(NamedTuple):
    """A command that is sent together with a write, and waits until the write is where it must be."""

    command: bytes
    check: Callable[[Any, list[Any]], None]
    """A function of its reply and of those before it. It raises `TransientError` if the write is not there."""


class Pending:
    """The pending commands of one connection, the oldest first."""

    def __init__(self) -> None:
        self.commands: list[PendingCommand] = []
        self.fence: Fence | None = None
        """The fence of the attempt that uses the connection."""
        self._superseding = b""

    def __len__(self) -> int:
        return len(self.commands)

    def packed(self, command: bytes | Dated, clock: float) -> bytes:
        """A command as it is sent now, to a server whose clock is *clock* milliseconds ahead."""
        if isinstance(command, Dated):
            return command.packed(time.monotonic() * 1000 + clock)
        return self._fenced(command)

    def _fenced(self, command: bytes) -> bytes:
        return command if self.fence is None or command is self._superseding else self.fence.put_into(command)

    def carry_over(self) -> None:
        """Prepare the commands for another connection."""
        self.commands = [
            (command, wanted)
            for command, wanted in self.commands
            if command is not self._superseding and not (wanted is None and isinstance(command, Dated))
        ]
        if self.fence is not None:
            self._superseding = self.fence.supersede()
            # If it is refused, what follows meets the number of an earlier connection. Those replies are not read.
            self.commands.insert(0, (self._superseding, _carried_out))

    def put_before_each(self, first: bytes) -> None:
        """Send this command before each of the others. Nobody wants its reply."""
        plain = [one for one in self.commands if one[0] != first]
        self.commands = [one for command in plain for one in ((first, None), command)]

    def forget(self) -> None:
        """Forget the commands that somebody waits for: they were given up."""
        # A command whose reply was never wanted says that an outcome was delivered. If we forgot it, the outcome would
        # be delivered again. Such commands do not pile up: an attempt that sends one has read all replies before.
        self.commands = [one for one in self.commands if one[1] is False]

    def discard_replies(self) -> None:
        """Nobody waits for the replies any more: the attempt is over, and the next one has another fence."""
        self.commands = [
            (command if isinstance(command, Dated) else self._fenced(command), None if wanted else wanted)
            for command, wanted in self.commands
        ]


def _carried_out(_reply: Any, _before: list[Any]) -> None:
    """Do nothing: the replies to the commands that follow say whether the attempt is stale."""
