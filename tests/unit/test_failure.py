"""An exception becomes facts in the journal and an exception again, of its own class where that is known."""

from __future__ import annotations

import asyncio
import json
import sys
from types import ModuleType
from typing import Any

import pytest

from celery_durable import RetriesExhausted, TerminalError
from celery_durable.values.failure import RecordedTraceback, describe, failure_of, portable, shown, traceback_of


class CardDeclined(TerminalError):
    pass


class WithOwnArguments(TerminalError):
    """Cannot be made of its ``args``."""

    def __init__(self, order: int, reason: str) -> None:
        super().__init__(f"order {order}: {reason}", 409)


class Outer:
    class Nested(TerminalError):
        """Known by a dotted name."""


def through_text(error: BaseException) -> BaseException:
    return failure_of(json.loads(json.dumps(describe(error))))


@pytest.mark.parametrize(
    "error",
    [
        TerminalError("no", 404, {"order": [1, 2]}),
        CardDeclined("declined", 402),
        Outer.Nested("deep"),
        RetriesExhausted("spent", 503, None, 3, 1.5, "OSError", "gone", "Traceback"),
        TerminalError(ValueError("x"), 400),
        TerminalError("lone surrogate \ud800"),
    ],
    ids=repr,
)
def test_a_terminal_failure_is_the_same_on_every_replay(error: TerminalError) -> None:
    replayed = through_text(error)
    assert type(replayed) is type(error)
    assert replayed.args == error.args
    assert str(replayed) == str(error)
    assert vars(replayed) == vars(error)


def test_where_a_replayed_failure_was_raised_is_told_as_its_cause() -> None:
    def decline() -> None:
        raise CardDeclined("declined", 402)

    with pytest.raises(CardDeclined) as raised:
        decline()
    replayed, where = through_text(raised.value), traceback_of(raised.value)

    assert isinstance(replayed.__cause__, RecordedTraceback)
    assert where in str(replayed.__cause__)
    assert "in decline\n" in where
    assert where in traceback_of(replayed)


def test_a_subclass_that_does_not_rebuild_is_a_terminal_error_that_names_it() -> None:
    replayed = through_text(WithOwnArguments(5, "sold out"))
    assert type(replayed) is TerminalError
    assert replayed.args == ("order 5: sold out", 409, None)
    assert replayed.error_type == "WithOwnArguments"


def test_a_local_class_is_a_terminal_error_that_names_it() -> None:
    class Local(TerminalError):
        pass

    replayed = through_text(Local("no", 418))
    assert type(replayed) is TerminalError
    assert replayed.status_code == 418
    assert replayed.error_type is not None
    assert replayed.error_type.endswith("Local")


def test_no_module_is_imported_for_a_name_in_the_journal() -> None:
    assert "wave" not in sys.modules
    facts = {**describe(TerminalError("no", 404)), "module": "wave", "type": "Error"}
    replayed = failure_of(facts)
    assert type(replayed) is TerminalError
    assert replayed.error_type == "Error"
    assert "wave" not in sys.modules


@pytest.mark.parametrize("name", ["system", "ModuleType", "no.such.thing", ""])
def test_a_name_in_the_journal_that_is_no_exception_is_not_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    module = ModuleType("shady")
    module.system = called.append
    module.ModuleType = ModuleType
    monkeypatch.setitem(sys.modules, "shady", module)
    facts = {**describe(TerminalError("no")), "module": "shady", "type": name}
    assert type(failure_of(facts)) is TerminalError
    assert called == []


def test_any_other_exception_keeps_its_class() -> None:
    replayed = through_text(KeyError("sku"))
    assert type(replayed) is KeyError
    assert replayed.args == ("sku",)


def test_an_exception_of_an_unknown_class_becomes_a_namesake() -> None:
    class Vanished(Exception):
        pass

    replayed = through_text(Vanished("gone"))
    assert type(replayed).__name__ == "Vanished"
    assert str(replayed) == "gone"


def fail() -> None:
    raise TerminalError("no")


def test_the_traceback_is_kept_as_text() -> None:
    with pytest.raises(TerminalError) as failure:
        fail()
    assert "in fail\n" in describe(failure.value)["traceback"]


def test_an_endless_traceback_is_cut() -> None:
    assert len(describe(ValueError("x" * 100_000))["traceback"]) <= 20_000


def test_an_error_for_another_process_is_one_that_it_can_rebuild() -> None:
    declined = CardDeclined("no", 402)
    assert portable(declined) is declined
    original = WithOwnArguments(5, "sold out")
    stand_in = portable(original)
    assert type(stand_in) is TerminalError
    assert stand_in.args == original.args
    assert stand_in.error_type == "WithOwnArguments"
    foreign = KeyError("sku")
    assert portable(foreign) is foreign


class Timeout(BaseException):
    """As gevent's."""


@pytest.mark.parametrize("error", [asyncio.CancelledError("late"), Timeout("late"), SystemExit("late")], ids=repr)
def test_what_is_no_exception_is_never_raised_again_as_such(error: BaseException) -> None:
    """Celery would end the worker with it, at every delivery."""
    for stand_in in (portable(error), through_text(error)):
        assert isinstance(stand_in, Exception)
        assert type(stand_in).__name__ == type(error).__name__
        assert str(stand_in) == "late"


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")

    __repr__ = __str__


class UnspeakableTerminal(Unspeakable, TerminalError):
    pass


def raise_of(kind: type[Exception]) -> None:
    raise kind("x")


@pytest.mark.parametrize("kind", [Unspeakable, UnspeakableTerminal], ids=lambda kind: kind.__name__)
def test_an_error_whose_message_cannot_be_read_is_described_all_the_same(kind: type[Exception]) -> None:
    unreadable = f"<a {kind.__name__} whose message cannot be read>"
    with pytest.raises(kind) as failure:
        raise_of(kind)
    facts = describe(failure.value)
    assert shown(failure.value) == f"{kind.__name__}: {unreadable}"
    assert facts["message"] == unreadable
    assert facts["type"] == kind.__name__
    assert "in raise_of\n" in facts["traceback"]


def test_an_endless_message_is_cut() -> None:
    assert len(describe(ValueError("x" * 100_000), with_args=False)["message"]) == 20_000


def test_a_module_that_imports_what_it_is_asked_for_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    module = ModuleType("lazy")
    module.__getattr__ = lambda name: asked.append(name) or ValueError
    monkeypatch.setitem(sys.modules, "lazy", module)
    facts = {**describe(TerminalError("no")), "module": "lazy", "type": "Anything"}
    assert type(failure_of(facts)) is TerminalError
    assert asked == []


class WithoutArgs(TerminalError):
    args = None  # type: ignore[assignment]


def test_a_class_that_hides_its_arguments_is_described_without() -> None:
    replayed = failure_of(describe(WithoutArgs("no", 404, {"a": 1})))
    assert type(replayed) is TerminalError
    assert (replayed.status_code, replayed.metadata) == (404, {"a": 1})
    assert str(failure_of(describe(type("Plain", (ValueError,), {"args": None})("no")))) == "no"
