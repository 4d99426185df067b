"""A kept connection to Redis: commands are sent at once, and replies are read when they are needed.

redis-py makes the connection and reads the protocol. Two things are ours. A connection stays with its attempt, because
to take one out of a pool and to put it back costs as much as the write itself. And a command whose reply was lost is
sent again. This is safe, because every script may be applied twice, and because the scripts refuse what the lost
connection delivers after that: see :mod:`.fence` and :class:`~.scripts.Dated`.
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
"""It asks the server at the other end of a new connection how writes are confirmed; None: by the reply alone."""

_LONGEST_PAUSE = 1.0


class JournalConnection:
    """One connection, with the commands that are pending on it. Its transport has the connection of redis-py."""

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
        """Ask *probe* how writes are confirmed, each time that the connection is made, until it is given back."""
        self._probe = probe
        if self._probed_by is not probe:
            self.transport.close()

    def guard(self, fence: Fence, *, goes_on: bool = False) -> None:
        """Send in the name of the attempt that has this fence, until the connection is given back.

        *goes_on*: the attempt has written over another connection before.
        """
        self.pending.fence = fence
        if goes_on:
            self.transport.close()

    def send(
        self, *commands: bytes | Dated, wanted: bool = True, with_next: bool = False, confirmed: bool = False
    ) -> None:
        """Send packed commands; their replies are read by :meth:`replies`, or dropped there if not *wanted*.

        A command whose reply is not wanted stays pending until the server has answered it, even if everybody gives up.

        *with_next*: the kernel gets the command now. It sends it together with the next one, or after 0.2 s, or when
        this process dies, whichever comes first.
        *confirmed*: the command counts as answered when it is confirmed, too (see :meth:`set_confirmation`).
        """
        transport, pending = self.transport, self.pending
        with self._lock:
            # A socket that is closed with unread replies is reset, and what the kernel still holds is lost.
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
                        commands = tuple([pending.packed(command, transport.clock_ahead_ms) for command in commands])
                    # All are bytes by now: an attempt sends none that are dated.
                    packed: Any = commands[0] if len(commands) == 1 else b"".join(commands)  # type: ignore[arg-type]
                    sendall(packed, flags)
                except OSError:
                    transport.lose()
                except BaseException:
                    transport.lose()
                    raise

    def replies_if_connected(self) -> list[Any] | None:
        """Like :meth:`replies`, but without a wait for a connection: None if it is lost."""
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
        """Read the replies to what is pending, the oldest first. Within the *timeout*, reconnect and send again.

        Raises:
            JournalUnavailableError: Redis did not answer in that time, or refused the command for good.
        """
        timeout = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        pause = 0.02
        while True:
            try:
                if self.transport.sendall is None:
                    self._reconnect()
                return self._read()
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
                # The signal of a time limit, for example. The protocol is out of step, so all is sent again later.
                self.transport.close()
                raise

    def try_again(self) -> None:
        """Read the replies to what is pending, or send it again, once. If that fails, nothing is forgotten."""
        if not self.transport.has_reply(0):
            self.transport.close()  # the reply should be here by now
        try:
            if self.transport.sendall is None:
                self._reconnect()
            self._read()
        except (*TRANSIENT, ResponseError):
            self.transport.close()  # the next user of the connection is told why there is none

    def abandon(self) -> None:
        """Forget what was sent, and the connection with it."""
        self.transport.close()
        self._forget()

    def discard_replies(self) -> None:
        """Drop the replies to what is still pending, when they come: the connection is given back."""
        if self.pending.commands:
            self.pending.discard_replies()
        self.pending.fence = self._probe = None

    def _read(self) -> list[Any]:
        # Nothing is forgotten before all is read: if the connection is lost half-way, everything is sent again. What a
        # sibling sends meanwhile stays pending.
        pending, receive = self.pending, self.transport.receive
        unread, answers = pending.commands[:], []
        again: list[PendingCommand] = []
        for command, wanted in unread:
            reply = receive(disable_decoding=True)
            if isinstance(reply, RedisError):
                error = self._judged(reply)
                if wanted:
                    raise error
                # Nobody waits for this reply, so it does not hold up the others.
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
        """An error that the server has replied: see :func:`~.errors.judged`."""
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
                transport.send_first(self.pending.packed(command, transport.clock_ahead_ms))
            transport.open()

    def _carry_over(self) -> None:
        self.pending.carry_over()

    def _forget(self) -> None:
        with self._lock:
            self.pending.forget()
