"""``durable_redact`` in an attempt: a redactor that fails, or takes long, harms neither the step nor its task."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded

from celery_durable import DurableContext, RunOptions
from celery_durable.config.redaction import Redaction
from celery_durable.config.settings import AttemptSettings, Settings
from celery_durable.drivers.info import TaskInfo
from celery_durable.journal.memory import MemoryJournal
from celery_durable.journal.port import Delivery, Opened
from celery_durable.steps.attempt import Attempt
from tests.receivers import observed

LARGE = ["x" * 100] * 101


class Card(Enum):
    """A key that is no JSON."""

    VISA = 1


def previews(redact: Callable[[str, str, Any], Any], value: Any, options: RunOptions | None = None) -> list[str]:
    """What observers are shown of the step that returns *value*."""
    ctx = DurableContext(an_attempt(redact))
    with observed() as told:
        assert ctx.run("pay", lambda: value, options or RunOptions()) == value
    return [step.preview for _, _, step in told]


def an_attempt(redact: Callable[[str, str, Any], Any]) -> Attempt:
    journal = MemoryJournal()
    opened = journal.open(Delivery("task-1", "shop.checkout", "", "{}"))
    assert isinstance(opened, Opened)
    info = TaskInfo("task-1", "shop.checkout", Context(args=["o-1"], kwargs={}), limits=(SoftTimeLimitExceeded,))
    return Attempt(journal, opened, info, AttemptSettings.of(Settings(), build="", redact=redact))


def hide(_task: str, _where: str, _value: Any) -> str:
    return "***"


def refuse(_task: str, where: str, _value: Any) -> Any:
    raise AssertionError(where)


def strike(_task: str, _where: str, _value: Any) -> Any:
    raise SoftTimeLimitExceeded


@pytest.mark.parametrize("redacted", [{("a", "key"): 1}, {Card.VISA: 1}], ids=["tuple", "Enum"])
def test_what_is_redacted_may_have_no_json(redacted: Any) -> None:
    assert previews(lambda *_: redacted, 7) == ["<redacted: durable_redact has failed with TypeError>"]


def test_a_time_limit_that_hits_the_redactor_is_the_tasks() -> None:
    attempt = an_attempt(strike)

    with observed(), pytest.raises(SoftTimeLimitExceeded):
        DurableContext(attempt).run("pay", lambda: "paid")

    assert b'"paid"' in attempt.pulse.journal.fields[b"step:1"]  # type: ignore[attr-defined]


def test_but_not_when_its_attempt_is_over() -> None:
    attempt = an_attempt(strike)
    attempt.pulse.closed = True

    assert attempt.shown_run.args == "<redacted: durable_redact has failed with SoftTimeLimitExceeded>"


def test_of_a_large_value_only_the_size_is_shown() -> None:
    def hide_arguments(task: str, where: str, value: Any) -> Any:
        return refuse(task, where, value) if where.startswith("step") else "***"

    assert previews(hide_arguments, LARGE) == ["<10404 characters>"]


def test_of_a_compressed_value_only_the_size_is_shown() -> None:
    [preview] = previews(hide, LARGE, RunOptions(compression="gzip"))

    assert preview.startswith("<gzip, ")
    assert preview.endswith(" characters>")


def test_without_a_redactor_a_compressed_value_is_not_shown_as_base64_either() -> None:
    metadata = {"compression": "application/x-bz2"}
    assert Redaction(None, "shop.checkout").preview("pay", '"QlpoOTE="', metadata) == "<bz2, 10 characters>"
