"""What an attempt holds of its run: the fence that its writes are checked against, and the lease."""

from __future__ import annotations

import time

from .client.fence import Fence
from .client.scripts import call
from .keys import Keys, ms
from .replies import WriteReply


class Ownership:
    """What one attempt holds. Its lease is renewed over other connections, too."""

    def __init__(self, keys: Keys, lease: float) -> None:
        self._keys = keys
        self._lease = lease
        self.token = b""
        """The token with which this process writes: of its own attempt, or of the one that has ended the run."""
        self.fence: Fence | None = None
        self.renewed_at = 0.0
        """When the newest acknowledged renewal was sent, by the monotonic clock."""
        self.cancel_requested = False
        """Whether somebody has asked to cancel the run, as far as is known."""

    def take(self, token: bytes, *, cancel_requested: bool) -> Fence:
        """The attempt has begun: it has this token."""
        self.token, self.fence = token, Fence(token, self._keys.run)
        self.cancel_requested = cancel_requested
        return self.fence

    @property
    def silent_for(self) -> float:
        """Seconds since the lease was proved."""
        return time.monotonic() - self.renewed_at

    @property
    def in_doubt(self) -> bool:
        """Whether the lease may have lapsed unnoticed: it was not renewed for as long as it lasts."""
        return time.monotonic() - self.renewed_at > self._lease

    def renewal(self) -> bytes:
        """The command that renews the lease."""
        return call("renew", self._keys.all, self.token, self._keys.task_id, ms(self._lease))

    def handover(self, *, orderly: bool) -> bytes:
        """The command that gives the lease back."""
        return call("release", self._keys.all, self._keys.task_id, "fence", self.token, int(orderly))

    def renewed(self, reply: int, sent: float) -> None:
        """Note the reply to a renewal that was sent at monotonic time *sent*."""
        if reply > 0:
            self.renewed_at = sent
        if reply == WriteReply.TO_BE_CANCELLED:
            self.cancel_requested = True
