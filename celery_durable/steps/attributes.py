"""The attributes that a body gives its run (``ctx.set_attributes``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery_durable.drivers.pulse import Pulse
from celery_durable.exceptions import JournalUnreadableError
from celery_durable.journal.attributes import FIELD, LONGEST, MOST, attributes_text, read_attributes
from celery_durable.journal.layout import Fields

from .determinism import check_usable
from .outbox import Outbox


class Attributes:
    """The attributes of a run, as one attempt knows and changes them."""

    def __init__(self, pulse: Pulse, fields: Fields, outbox: Outbox) -> None:
        self._pulse = pulse
        self._outbox = outbox
        try:
            self._recorded = read_attributes(fields)
        except JournalUnreadableError as error:
            raise pulse.unreadable(error) from None
        self._present = self._recorded

    def set(self, given: Mapping[str, Any]) -> None:
        """Add these to the others, or replace others of the same names. They are written with what comes next."""
        check_usable(self._pulse, draws=True)
        present = {**self._present, **given}
        objection = _objection(given, len(present))
        if objection is not None:
            raise self._pulse.invalid(f'{objection}: write ctx.set_attributes(order="o1")')
        staged = self._outbox.staged
        if FIELD not in staged:
            self._recorded = self._present  # if they were staged before, they are sent
        self._present = present
        # A replay sets all of them again. What the journal says already costs no write.
        if present == self._recorded:
            staged.pop(FIELD, None)
        else:
            staged[FIELD] = attributes_text(present)


def _objection(given: Mapping[str, Any], number: int) -> str | None:
    for name, value in given.items():
        for what, text in (("name", name), ("value", value)):
            if not (isinstance(text, str) and len(text) <= LONGEST and _is_in_utf8(text)):
                shown = repr(text)[:80]
                return f"the {what} of an attribute is a text of up to {LONGEST} characters, got {name[:80]!r}: {shown}"
    return f"a run has up to {MOST} attributes, and these would be {number}" if number > MOST else None


def _is_in_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
