"""What the journal says of a run beside its entries, and the counts that go from attempt to attempt."""

from __future__ import annotations

import json
from typing import Any

from celery_durable.journal.layout import LAYOUT, Status
from celery_durable.journal.past_attempt import PastAttempt, past_attempt
from celery_durable.journal.port import Opened


class RunState:
    """The state of a run when this attempt was opened."""

    def __init__(self, opened: Opened, *, progress_forgives: bool) -> None:
        fields = opened.fields
        self._fields = fields
        self._forgives = progress_forgives
        self.number = opened.number
        """The number of this attempt."""
        self.opened_at = opened.now
        self.recoveries = opened.recoveries
        self.reopened = opened.reopened
        self.seed = fields.get(b"seed", b"").decode()
        stalled = fields.get(b"stalled")
        self.stalled: dict[str, Any] = json.loads(stalled) if stalled else {}
        """What kept the attempt before this one from going on."""
        self.progressed = False
        """This attempt has recorded a step."""
        self.executed = 0
        """So many steps this attempt has executed."""

    @property
    def layout(self) -> str:
        return self._fields.get(b"v", b"").decode() or LAYOUT

    @property
    def created(self) -> int:
        """When the first attempt began."""
        return int(self._fields.get(b"created", self.opened_at))

    @property
    def build(self) -> str:
        """The build of the entries that name none; empty if it is not known."""
        return self._fields.get(b"build", b"").decode()

    @property
    def resume(self) -> bytes | None:
        """What a message says that resumes the run."""
        return self._fields.get(b"resume")

    @property
    def replays(self) -> bool:
        """Whether there may be entries of an earlier attempt, or of the run that this one restarts."""
        return self.number > 1 or b"restarted_from" in self._fields

    @property
    def call(self) -> bytes:
        """How the task was called, as its first attempt has recorded it; empty: this is the first attempt."""
        return self._fields.get(b"call", b"")

    @property
    def before(self) -> PastAttempt | None:
        """The attempt before this one; None: there is none, or nothing is kept of it."""
        return past_attempt(self._fields, self.number - 1)

    @property
    def follows_a_lost_one(self) -> bool:
        """Whether the process of the attempt before this one was lost."""
        return self.before is not None and self.before.how == Status.RUNNING

    @property
    def has_begun(self) -> bool:
        """Whether the body of an earlier attempt has left something in the journal."""
        return any(b":" in name for name in self._fields)

    # -- failed attempts

    @property
    def failures(self) -> int:
        """Failed attempts since the run last recorded a step."""
        return int(self._fields.get(b"failures", 0))

    def failures_now(self) -> int:
        """The count with the failure that is handled now."""
        return 1 + (0 if self.progressed and self._forgives else self.failures)

    def failing_since(self, failures: int) -> int:
        """When the first of these failed attempts began."""
        return self.opened_at if failures == 1 else int(self._fields.get(b"failing_since", self.opened_at))

    def progress(self) -> dict[str, str]:
        """The fields that go with the first entry that this attempt records."""
        counts = {"progress": str(self.number)}
        if self.failures and self._forgives:
            counts["failures"] = "0"
        return counts

    def progress_after_all(self) -> dict[str, str]:
        """The same fields, for an entry that is recorded after the attempt may have failed."""
        counts = {"progress": str(self.number)}
        if self._forgives:
            counts["failures"] = "0"
        return counts

    def fails_without(self) -> None:
        """The run goes on without the code of this attempt. What that still records is progress after the failure."""
        self.progressed = False
        self._fields[b"failures"] = b"1"

    # -- its arguments

    @property
    def changes(self) -> int:
        """How often ``self.retry(args=...)`` has changed the arguments."""
        return int(self._fields.get(b"changed", 0))

    @property
    def arguments_field(self) -> str:
        """The field that holds the models among the arguments, as an earlier attempt accepted them."""
        return f"arguments:{self.changes}"

    @property
    def arguments(self) -> bytes | None:
        """These models, as JSON."""
        return self._fields.get(self.arguments_field.encode())
