"""What Pydantic keeps to itself of a type: each part that is left out of it, or put in its place, fails here."""

from __future__ import annotations

import ipaddress
import pathlib
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from celery_durable.values.unvalidated import declared

LONG_AGO = "2000-01-01T00:00:00Z"


def text(**limits: Any) -> Any:
    return Annotated[str, pydantic.StringConstraints(**limits)]


class Texts(BaseModel):
    """A model whose config limits its texts."""

    model_config = ConfigDict(str_min_length=3, str_max_length=4)
    text: str


LIMITS = [
    (Annotated[int, Field(gt=3)], 3),
    (Annotated[int, Field(ge=3)], 2),
    (Annotated[int, Field(lt=3)], 3),
    (Annotated[int, Field(le=3)], 4),
    (Annotated[int, Field(multiple_of=3)], 4),
    (Annotated[Decimal, Field(max_digits=3)], "1234"),
    (Annotated[Decimal, Field(decimal_places=1)], "1.23"),
    (Annotated[list[int], Field(min_length=1)], []),
    (Annotated[list[int], Field(max_length=1)], [1, 2]),
    (text(pattern="^a"), "b"),
    (text(min_length=2), "b"),
    (pydantic.FutureDatetime, LONG_AGO),
    (pydantic.PastDate, (date.today() + timedelta(days=2)).isoformat()),  # noqa: DTZ011
    (pydantic.AwareDatetime, "2000-01-01T00:00:00"),
    (Texts, {"text": "a"}),
    (Texts, {"text": "a long one"}),
]


@pytest.mark.parametrize(("hint", "refused"), LIMITS, ids=lambda part: str(part)[:40])
def test_a_limit_is_left_out(hint: Any, refused: Any) -> None:
    with pytest.raises(ValidationError):
        declared(hint).adapter.validate_python(refused)

    assert declared(hint).bare is not None
    declared(hint).bare.validate_python(refused)  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["strip_whitespace", "to_lower", "to_upper"])
def test_a_text_is_left_as_it_is(how: str) -> None:
    hint = text(**{how: True})
    assert declared(hint).adapter.validate_python(" Ab ") != " Ab "

    assert declared(hint).bare.validate_python(" Ab ") == " Ab "  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["str_strip_whitespace", "str_to_lower", "str_to_upper"])
def test_the_texts_of_a_model_are_left_as_they_are(how: str) -> None:
    config: Any = {how: True}
    kind: Any = pydantic.create_model("Said", __config__=ConfigDict(**config), text=(str, ...))
    assert kind(text=" Ab ").text != " Ab "

    assert declared(kind).bare.validate_python({"text": " Ab "}).text == " Ab "  # type: ignore[union-attr]


def test_numbers_that_are_none_are_read() -> None:
    hint = Annotated[float, Field(allow_inf_nan=False)]

    assert declared(hint).bare.validate_python("inf") == float("inf")  # type: ignore[union-attr]
    assert declared(Decimal).bare.validate_python("Infinity") == Decimal("Infinity")  # type: ignore[union-attr]


class Part(BaseModel):
    """A model with code of the user's, which is in another one."""

    at: pydantic.FutureDatetime | None = None
    size: int = 0

    @pydantic.field_validator("size")
    @classmethod
    def _refuse(cls, size: int) -> int:
        if size > 3:
            raise ValueError
        return -size

    def model_post_init(self, _: Any, /) -> None:
        self.size += 100


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    part: Part


def test_no_code_of_the_users_runs_also_in_a_model_of_a_model() -> None:
    """Pydantic keeps what it has built of a model: that is not to be used."""
    recorded = {"part": {"at": LONG_AGO, "size": 5}}
    for hint in (Whole, list[Whole], dict[str, Whole]):
        with pytest.raises(ValidationError):
            declared(hint).adapter.validate_python(recorded)

    whole = declared(Whole).bare.validate_python(recorded)  # type: ignore[union-attr]
    [listed] = declared(list[Whole]).bare.validate_python([recorded])  # type: ignore[union-attr]

    assert whole == listed
    assert whole.part.size == 5
    assert whole.part.at == datetime(2000, 1, 1, tzinfo=timezone.utc)
    with pytest.raises(ValidationError):
        Whole.model_validate(recorded)  # as before


def test_what_a_model_forbids_is_left_out() -> None:
    recorded = {"part": {}, "more": 1}
    with pytest.raises(ValidationError):
        declared(Whole).adapter.validate_python(recorded)

    assert declared(Whole).bare.validate_python(recorded).part.at is None  # type: ignore[union-attr]


def test_a_constructor_of_the_users_is_not_called() -> None:
    class Own(BaseModel):
        size: int

        def __init__(self, **given: Any) -> None:
            super().__init__(size=given["size"] + 1)

    @pydantic.dataclasses.dataclass
    class Data:
        size: int

        def __post_init__(self) -> None:
            self.size += 1

    for kind in (Own, Data):
        assert declared(kind).adapter.validate_python({"size": 1}).size == 2
        assert declared(kind).bare.validate_python({"size": 1}).size == 1  # type: ignore[union-attr]


def test_what_pydantic_itself_makes_of_a_text_is_made() -> None:
    assert declared(pathlib.Path).bare.validate_python("/a") == pathlib.Path("/a")  # type: ignore[union-attr]
    address = declared(ipaddress.IPv4Address).bare.validate_python("127.0.0.1")  # type: ignore[union-attr]
    assert address == ipaddress.IPv4Address("127.0.0.1")


def test_nobody_looks_whether_a_file_is_there(tmp_path: pathlib.Path) -> None:
    gone = str(tmp_path / "gone")
    for hint in (pydantic.FilePath, pydantic.DirectoryPath):
        with pytest.raises(ValidationError):
            declared(hint).adapter.validate_python(gone)

        assert declared(hint).bare.validate_python(gone) == pathlib.Path(gone)  # type: ignore[union-attr]


def test_what_a_validator_refuses_is_not_heeded_and_what_it_makes_is() -> None:
    lenient = declared(Part).lenient
    assert lenient is not None

    assert lenient.validate_python({"size": 2}).size == 98
    assert lenient.validate_python({"size": 5, "at": LONG_AGO}).size == 105
    assert declared(Part).adapter.validate_python({"size": 2}).size == 98


def test_a_layout_is_told_apart_from_another_and_not_by_its_limits() -> None:
    assert declared(LIMITS[0][0]).shape == declared(int).shape
    assert declared(Part).shape != declared(Whole).shape
