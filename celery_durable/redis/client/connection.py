"""A kept connection to Redis: commands are sent at once, replies are read when they are needed.

redis-py makes the connection and reads the protocol; what is ours is that a connection stays with its attempt (to
check one out and in costs as much as the write itself), and that commands whose replies were lost are sent again. That
is safe because every script of the journal may be applied twice, and because what the lost connection still delivers
after that is refused: see :mod:`fence`, and :class:`Dated`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError, ResponseError

from .errors import TRANSIENT, judged, refused, unavailable
from .fence import Fence
from .pending import Confirmation, Pending, PendingCommand
from .scripts import Dated
from .transport import Transport

logger = logging.getLogger("celery_durable")

ConfirmationProbe = Callable[[Any], Confirmation | None]
"""Asks the server at the other end of a new connection how its writes are confirmed; None: by its reply alone."""

_LONGEST_PAUSE = 1.0


class JournalConnection:
    """One connection, with the commands that are pending on it. It is not redis-py's, which it has in its transport."""

    def __init__(self, raw: Any, timeout: float) -> None:
        self.transport = Transport(raw)
        self.pending = Pending()
        self.idle_since = 0.0
        self._timeout = timeout
        self._lock = threading.Lock()
        self._confirmation: Confirmation | None = None
        self._probe: ConfirmationProbe | None = None
        self._probed_by: ConfirmationProbe | None = None

    def set_confirmation(self, probe: ConfirmationProbe) -> None:
        """Until the connection is given back, *probe* is asked each time it is made how writes are confirmed."""
        self._probe = probe
        if self._probed_by is not probe:
            self.transport.close()

    def guard(self, fence: Fence, *, goes_on: bool = False) -> None:
        """Until the connection is given back, what is sent belongs to the attempt that this is the fence of.

        *goes_on*: the attempt has written over another connection before.
        """
        self.pending.fence = fence
        if goes_on:
            self.transport.close()

    def send(
        self, *commands: bytes | Dated, wanted: bool = True, with_next: bool = False, confirmed: bool = False
    ) -> None:
        """Send packed commands; their replies are read by :meth:`replies`, or dropped there if not *wanted*.

        Nobody learns of the loss of one that is not wanted: it stays pending until the server has answered it, whoever
        gives up before.

        One that is to go *with the next* is handed to the kernel, which sends it together with the next command, or
        after 0.2 s, or when this process dies, whichever comes first. What is to be *confirmed* counts as answered
        when that has happened, too (see :meth:`set_confirmation`).
        """
        transport, pending = self.transport, self.pending
        with self._lock:
            # A socket closed with unread replies is reset, and what the kernel still holds would be lost with it.
            flags = transport.more_follows if with_next and not pending.commands else 0
            for command in commands:
                pending.commands.append((command, wanted))
            if confirmed and self._confirmation is not None:
                commands += (self._confirmation.command,)
                pending.commands.append(self._confirmation)
            sendall = transport.sendall
            if sendall is not None:
                try:
                    if pending.fence is None or pending.fence.number > 1:
                        commands = tuple([pending.packed(command, transport.clock) for command in commands])
                    # All are bytes by now: an attempt sends none that are dated.
                    packed: Any = commands[0] if len(commands) == 1 else b"".join(commands)  # type: ignore[arg-type]
                    sendall(packed, flags)
                except OSError:
                    transport.lose()
                except BaseException:
                    transport.lose()
                    raise

    def replies_if_connected(self) -> list[Any] | None:
        """As :meth:`replies`, without ever waiting for a connection: None if it is lost."""
        if self.transport.sendall is None:
            return None
        try:
            return self._read()
        except TRANSIENT:
            self.transport.lose()
            return None
        except ResponseError as error:
            self.transport.close()
            self._forget()
            raise refused(str(self.transport), error) from error

    def replies(self, timeout: float | None = None) -> list[Any]:
        """Read what is pending, oldest first; reconnect and send again what was lost, within the *timeout*.

        Raises:
            JournalUnavailableError: Redis did not answer in that time, or refused the command for good.
        """
        timeout = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        pause = 0.02
        while True:
            try:
                return self._read_or_reconnect()
            except (*TRANSIENT, ResponseError) as raised:
                error = self._judged(raised)
                self.transport.close()
                if not isinstance(error, TRANSIENT):
                    self._forget()
                    raise refused(str(self.transport), error) from error
                if time.monotonic() + pause > deadline:
                    self._forget()
                    raise unavailable(str(self.transport), error, timeout) from error
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except BaseException:
                # A time limit's signal, say: the protocol is out of step, what was sent will be sent again.
                self.transport.close()
                raise

    def try_again(self) -> None:
        """Read what is pending, or send it again, once; nothing is forgotten where that fails."""
        if not self.transport.has_reply(0):
            self.transport.close()  # the reply should be here by now
        try:
            self._read_or_reconnect()
        except (*TRANSIENT, ResponseError):
            self.transport.close()  # who needs this connection is told why there is none

    def abandon(self) -> None:
        """Forget what was sent, and the connection with it."""
        self.transport.close()
        self._forget()

    def discard_replies(self) -> None:
        """What is still pending is to be read, and dropped: the connection is given back."""
        self.pending.discard_replies()
        self._probe = None

    def _read_or_reconnect(self) -> list[Any]:
        if self.transport.sendall is None:
            self._reconnect()
        return self._read()

    def _read(self) -> list[Any]:
        # Nothing is forgotten before all is read: a connection lost half-way sends everything again. What a sibling
        # sends meanwhile stays pending.
        pending, receive = self.pending, self.transport.receive
        unread, answers = pending.commands[:], []
        again: list[PendingCommand] = []
        for command, wanted in unread:
            reply = receive(disable_decoding=True)
            if isinstance(reply, RedisError):
                error = self._judged(reply)
                if wanted:
                    raise error
                # Whoever reads has not sent this, or does not wait for it: the others' replies are not held up.
                if isinstance(error, TRANSIENT):
                    again.append((command, wanted))
                else:
                    logger.warning("Redis refused a command that nobody waits for: %s", error)
            elif wanted is True:
                answers.append(reply)
            elif wanted:
                wanted(reply, answers)
        pending.commands[: len(unread)] = again
        if again:
            self.transport.close()  # the next connection sends it again
        return answers

    def _judged(self, error: Exception) -> Exception:
        """An error that the server replied, as one that passes if it does."""
        return judged(error, self.transport.parse_error)

    def _reconnect(self) -> None:
        transport = self.transport
        transport.connect()
        self._probed_by = self._probe
        if self._probe is not None:
            self._confirmation = self._probe(transport.raw)
        with self._lock:
            self._carry_over()
            for command, _ in self.pending.commands:
                transport.send_first(self.pending.packed(command, transport.clock))
            transport.open()

    def _carry_over(self) -> None:
        self.pending.carry_over()

    def _forget(self) -> None:
        with self._lock:
            self.pending.forget()
