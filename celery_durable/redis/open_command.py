"""The command that opens a run: it asks for the lease, and its reply says whether an attempt begins."""

from __future__ import annotations

from typing import Any

from celery_durable.journal.layout import LAYOUT, Fields, Wait, new_seed
from celery_durable.journal.port import Busy, Delivery, Finished, IdConflict, Opened, OpenResult, Outdated

from .client.fence import new_fence
from .client.protocol import pack
from .client.scripts import Dated, dated_call
from .keys import Keys, check_layout, fields_of, ms
from .replies import OpenReply

_REASONS = {
    OpenReply.BUSY: "another attempt holds the lease",
    OpenReply.REPLACED: "the task that it replaces has not ended",
    OpenReply.EARLY: "it is not due yet",
}
_OUTDATED = {
    OpenReply.OUTDATED: "a newer message has other arguments",
    OpenReply.PURGED: "its run has ended, and its journal was purged",
}
_PAUSED = "it is paused until somebody retries or cancels it"


class OpenCommand:
    """One try to begin an attempt."""

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.fence = new_fence()
        """The token of the attempt, if it begins."""
        self.seed = delivery.seed or new_seed()
        self.is_expected = not delivery.fresh or delivery.reopen != ""
        """Whether a journal is expected to be there.

        A command of its own loads it, because Redis needs three times as long to load it in a script. If no journal is
        expected, that command is left out.
        """

    def commands(self, keys: Keys, owner: str, lease: float) -> tuple[bytes | Dated, ...]:
        """The commands to send: the script, and the one that loads the journal."""
        delivery = self.delivery
        begin = dated_call(
            "open", keys.all, keys.task_id, self.fence, ms(lease), LAYOUT,
            delivery.task, delivery.fingerprint, delivery.call, self.seed,
            delivery.nesting, int(delivery.fresh), int(delivery.changed), int(delivery.wake_up),
            owner, delivery.reopen, delivery.build, int(not self.is_expected),
            delivery.over, "\n".join(delivery.taken_back), delivery.actions, delivery.reserved,
        )  # fmt: skip
        return (begin, pack("HGETALL", keys.run)) if self.is_expected else (begin,)

    def read(self, replies: list[Any]) -> tuple[list[Any], Fields]:
        """Split the replies into that of the script, and the journal."""
        reply, *loaded = replies
        if not self.is_expected and isinstance(reply[-1], list):
            loaded = [reply.pop()]
        if loaded:
            return reply, fields_of(*loaded)
        return reply, {b"seed": self.seed.encode(), b"build": self.delivery.build.encode()}


def open_result(reply: list[Any], fields: Fields, keys: Keys) -> OpenResult:
    """The meaning of the script's reply.

    Raises:
        JournalUnreadableError: the journal is of another layout.
    """
    kind = reply[0].decode()
    if kind == OpenReply.OPEN:
        return Opened(reply[1], reply[2], reply[3], bool(reply[4]), fields)
    if kind == OpenReply.FINISHED:
        return Finished(fields)
    if kind == OpenReply.ID_CONFLICT:
        return IdConflict(reply[1].decode(), fields)
    if kind == OpenReply.UNREADABLE:
        check_layout(keys, {b"v": reply[1]})
    if kind in _OUTDATED:
        return Outdated(_OUTDATED[kind])
    waits = reply[2].decode() if kind == OpenReply.EARLY else ""
    return Busy(reply[1] / 1000, _PAUSED if waits == Wait.PAUSE else _REASONS[kind], waits)
