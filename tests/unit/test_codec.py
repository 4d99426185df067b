"""A value comes back from the journal equal and of its type, or it is refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Generic, NamedTuple, Optional, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import core_schema
from typing_extensions import TypeAliasType, TypedDict

from celery_durable import ConfigurationError
from celery_durable.values.codec import Encoded, NotEncodable, decode, encode, same
from celery_durable.values.declared_types import declared_type
from celery_durable.values.registry import check_compression
from celery_durable.values.serializers import check_serializer
from celery_durable.values.tagged import is_model
from tests.unit.world import ask, unkind

# -- what goes round ---------------------------------------------------------------------------------------------------


T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = 2


class Level(IntEnum):
    LOW = 1


class Shade(Enum):
    DARK = (0, 0, 0)


class Address(pydantic.BaseModel):
    street: str
    verified: datetime | None = None


class Order(pydantic.BaseModel):
    number: UUID
    total: Decimal
    colour: Colour = Colour.RED
    addresses: list[Address] = []
    photo: bytes = b""
    tags: set[str] = set()
    weight: float = 0.0
    extra: Any = None


@dataclass
class Point:
    x: float
    seen: datetime | None = None
    raw: bytes = b""
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Slotted:
    shown: Any
    hidden: Any = field(default=None, compare=False)


class Row(TypedDict):
    id: int
    at: datetime


class Pair(NamedTuple):
    left: int
    right: str


texts = st.text(st.characters(codec=None, categories=None))  # lone surrogates too
# Fixed offsets: Python calls a time in the hour of a clock change unequal to the same time in any other zone.
offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
datetimes = st.datetimes(timezones=st.none() | offsets)
plain_scalars = (
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False) | texts | st.binary()
    | st.dates() | datetimes | st.timedeltas() | st.uuids() | st.decimals(allow_nan=False)
)  # fmt: skip
hashable = st.none() | st.integers() | texts | st.binary() | st.dates() | st.uuids()
tag_like = st.fixed_dictionaries(
    {"$type": st.sampled_from(["uuid", "dict", "bytes", "set", "nonsense"]) | st.integers()},
    optional={"$value": texts | st.lists(st.integers()), "more": st.none()},
)
plain_values = st.recursive(
    plain_scalars | st.sets(hashable) | st.frozensets(hashable) | tag_like,
    lambda inner: (
        st.lists(inner) | st.dictionaries(texts, inner) | st.dictionaries(st.sampled_from(["$type", "$value"]), inner)
    ),
    max_leaves=10,
)


def through_text(value: Any, hint: Any = None) -> Any:
    """What the first execution returns, after a check that every replay returns the same."""
    encoded = encode(value, hint)
    json.loads(encoded.text)
    replayed = decode(encoded.text.encode(), encoded.metadata, hint)
    assert repr(replayed) == repr(encoded.value)
    assert type(replayed) is type(encoded.value)
    return replayed


def types_in(value: Any) -> Any:
    """The types of a value and of all that is in it."""
    if isinstance(value, dict):
        return dict, {key: types_in(item) for key, item in value.items()}
    if isinstance(value, list):
        return list, [types_in(item) for item in value]
    return type(value)


@given(plain_values)
def test_plain_values_keep_equality_and_type(value: Any) -> None:
    assert through_text(value) == value
    assert types_in(through_text(value)) == types_in(value)


@given(plain_values)
def test_undeclared_values_inside_of_declared_ones_keep_equality_and_type(value: Any) -> None:
    order = Order(number=UUID(int=1), total=Decimal(1), extra=value)
    assert through_text(order, Order) == order
    assert types_in(through_text(order, Order).extra) == types_in(value)


@given(
    st.builds(
        Order,
        number=st.uuids(),
        total=st.decimals(allow_nan=False, allow_infinity=False),
        colour=st.sampled_from(Colour),
        addresses=st.lists(st.builds(Address, street=st.text(), verified=st.none() | datetimes)),
        photo=st.binary(),
        tags=st.sets(st.text()),
        weight=st.floats(allow_nan=False),
    )
)
def test_models_keep_equality_and_type(order: Order) -> None:
    assert through_text(order, Order) == order
    assert through_text([order], list[Order]) == [order]
    assert through_text(order, Order | None) == order


@given(st.builds(Point, x=st.floats(allow_nan=False), seen=st.none() | datetimes, raw=st.binary()))
def test_dataclasses_keep_equality_and_type(point: Point) -> None:
    assert through_text(point, Point) == point


@pytest.mark.parametrize(
    ("hint", "values"),
    [
        (int, st.integers()),
        (float, st.floats(allow_nan=False)),
        (str, texts),
        (bytes, st.binary()),
        (datetime, datetimes),
        (date, st.dates()),
        (time, st.times()),
        (timedelta, st.timedeltas()),
        (UUID, st.uuids()),
        (Decimal, st.decimals(allow_nan=False)),
        (Colour, st.sampled_from(Colour)),
        (Level, st.just(Level.LOW)),
        (set[int], st.sets(st.integers())),
        (set[tuple[int, int]], st.sets(st.tuples(st.integers(), st.integers()))),
        (tuple[int, ...], st.lists(st.integers()).map(tuple)),
        (tuple[str, bytes], st.tuples(st.text(), st.binary())),
        (Pair, st.builds(Pair)),
        (Row, st.fixed_dictionaries({"id": st.integers(), "at": datetimes})),
        (dict[int, date], st.dictionaries(st.integers(), st.dates())),
        (int | str, st.integers() | st.text()),
        (bytes | str, st.binary() | st.text()),
        (datetime | str | None, datetimes | st.text() | st.none()),
        (UUID | str, st.uuids() | st.uuids().map(str)),
        (Decimal | float, st.decimals(allow_nan=False, allow_infinity=False) | st.floats(allow_nan=False)),
        (Order | Address, st.builds(Address, street=st.text())),
        (Any, plain_values),
        (TypeVar("T"), st.integers() | datetimes),
        (Annotated[int, ["unhashable"]], st.integers()),
    ],
    ids=lambda value: None if isinstance(value, st.SearchStrategy) else str(value),
)
@given(data=st.data())
def test_declared_values_keep_equality_and_type(hint: Any, values: st.SearchStrategy[Any], data: st.DataObject) -> None:
    value = data.draw(values)
    assert through_text(value, hint) == value
    assert types_in(through_text(value, hint)) == types_in(value)


@pytest.mark.parametrize("hint", [None, float, float | None, Any], ids=str)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -0.0], ids=repr)
def test_special_floats_stay_what_they_are(number: float, hint: Any) -> None:
    assert repr(through_text(number, hint)) == repr(number)
    assert repr(through_text([number], None if hint is None else list[hint])) == repr([number])


@pytest.mark.parametrize("hint", [None, Decimal], ids=str)
@pytest.mark.parametrize("number", ["NaN", "sNaN", "Infinity", "-0", "1.10", "1E+5"])
def test_special_decimals_stay_what_they_are(number: str, hint: Any) -> None:
    assert repr(through_text(Decimal(number), hint)) == repr(Decimal(number))


def test_a_model_with_a_nan_in_it_keeps_it() -> None:
    point = Point(math.nan, raw=b"\xff")
    assert repr(through_text(point, Point)) == repr(point)


def test_a_missing_result_is_recorded_as_none() -> None:
    assert encode(None, type(None)) == Encoded("null", {}, None)
    assert encode(None) == Encoded("null", {}, None)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        ({"at": (date(2024, 1, 1),)}, {"at": [date(2024, 1, 1)]}),
        ({1: "a", 2.5: "b", None: "c"}, {"1": "a", "2.5": "b", "null": "c"}),
        ({True: "yes"}, {"true": "yes"}),
    ],
    ids=["tuple", "tuple in a dict", "number keys", "boolean key"],
)
def test_undeclared_tuples_become_lists_and_keys_strings_as_in_json(value: Any, kept: Any) -> None:
    assert through_text(value) == kept


def test_a_value_that_is_not_of_the_declared_type_is_kept_as_it_is() -> None:
    assert through_text("not a number", int) == "not a number"
    assert through_text(5, type(None)) == 5


def test_a_model_with_a_time_in_the_hour_of_a_clock_change_is_kept() -> None:
    address = Address(street="x", verified=datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")))
    kept = through_text(address, Address)
    assert type(kept) is Address
    assert kept.verified.timestamp() == address.verified.timestamp()


class Card(pydantic.BaseModel):
    amount: float


class Cash(pydantic.BaseModel):
    amount: float


class Cheque(pydantic.BaseModel):
    amount: float
    note: bytes = b""


@dataclass
class Paid:
    amount: float


@dataclass
class Owed:
    amount: float


class Box(pydantic.BaseModel, Generic[T]):
    kept: T


Payment = TypeAliasType("Payment", Card | Cash)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Card | Cash, Cash(amount=1)),
        (Card | Cash, Cash(amount=math.nan)),
        (Cheque | Cash, Cash(amount=1)),
        (Union[Card, Cash], Cash(amount=1)),  # noqa: UP007
        (Cash | Card, Card(amount=1)),
        (Card | Cash | None, Cash(amount=1)),
        (Optional[Card | Cash], Cash(amount=1)),  # noqa: UP045
        (Annotated[Card | Cash, "money"], Cash(amount=1)),
        (Annotated[Card | Cash, "money"] | None, Cash(amount=1)),
        (Payment, Cash(amount=1)),
        (Payment | None, Cash(amount=1)),
        (Paid | Owed, Owed(1.0)),
        (Cheque | Paid, Paid(1.0)),
        (Paid | Owed, Owed(math.nan)),
        (Card | Paid | Owed, Owed(1.0)),
        (list[Card] | list[Cash], [Cash(amount=1)]),
        (Box[Card] | Box[Cash], Box[Cash](kept=Cash(amount=1))),
        (Colour | str, Colour.RED),
        (str | Colour, Colour.RED),
        (int | Level, Level.LOW),
    ],
    ids=str,
)
def test_each_member_of_a_union_is_kept_though_its_data_fits_another(hint: Any, value: Any) -> None:
    kept = through_text(value, hint)
    assert same(value, kept)
    compressed = encode(value, hint, compression="zlib")
    assert same(value, decode(compressed.text, compressed.metadata, hint))


@pytest.mark.parametrize("other", [Card | Cash | None, Cash | Card, Union[Cash, int, str], Cash], ids=str)  # noqa: UP007
def test_a_member_of_a_union_is_read_as_long_as_it_is_declared(other: Any) -> None:
    encoded = encode(Cash(amount=1), Card | Cash)
    assert type(decode(encoded.text, encoded.metadata, other)) is Cash


@pytest.mark.parametrize("other", [Card | Paid, Card, list[Cash]], ids=str)
def test_a_member_that_is_no_longer_declared_is_not_guessed(other: Any) -> None:
    encoded = encode(Cash(amount=1), Card | Cash)
    with pytest.raises(NotEncodable, match=r"recorded as tests\.unit\.test_codec\.Cash, which is not in the declared"):
        decode(encoded.text, encoded.metadata, other)


def test_only_what_the_union_would_lose_names_its_member() -> None:
    assert encode(Card(amount=1), Card | Cash).metadata.keys() == {"encoding", "read"}
    assert encode(5, int | Card).metadata == {}


def test_an_enum_whose_values_are_tuples_is_kept() -> None:
    assert through_text(Shade.DARK, Shade) is Shade.DARK
    assert through_text({"shade": Shade.DARK}, dict[str, Shade]) == {"shade": Shade.DARK}


# -- what is not degraded ----------------------------------------------------------------------------------------------


class Camel(pydantic.BaseModel):
    order_id: int = pydantic.Field(alias="orderId")


class Area(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    side: int

    @pydantic.computed_field
    @property
    def size(self) -> int:
        return self.side**2


def test_a_model_whose_fields_have_aliases_is_kept() -> None:
    assert through_text(Camel(orderId=5), Camel) == Camel(orderId=5)


def test_a_model_with_a_computed_field_is_kept() -> None:
    assert through_text(Area(side=3), Area) == Area(side=3)


class Login(pydantic.BaseModel):
    password: pydantic.SecretStr


class Counter(pydantic.BaseModel):
    _count: int = pydantic.PrivateAttr(0)


class Hidden(pydantic.BaseModel):
    shown: int
    secret: str = pydantic.Field("", repr=False, exclude=True)


def counted() -> Counter:
    counter = Counter()
    counter._count = 5  # noqa: SLF001  what a model keeps to itself is lost as easily
    return counter


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Login(password=pydantic.SecretStr("hunter2")), Login),
        (pydantic.SecretStr("hunter2"), pydantic.SecretStr),
        (counted(), Counter),
        (Hidden(shown=1, secret="x"), Hidden),  # noqa: S106
        (((1,), 2), tuple),
        (True, int),
        (Decimal("1.0"), float),
        (Decimal("Infinity"), Decimal | float),
        (True, int | str),
    ],
    ids=[
        "secret in a model", "secret", "private attribute", "excluded field", "tuple in a tuple", "bool as int",
        "decimal as float", "decimal in a union", "bool in a union",
    ],
)  # fmt: skip
def test_what_the_declared_type_would_lose_is_kept_or_refused(value: Any, hint: Any) -> None:
    try:
        kept = through_text(value, hint)
    except NotEncodable:
        return
    assert kept == value
    assert type(kept) is type(value)


class Cat(pydantic.BaseModel):
    name: str


class Lion(Cat):
    mane: str


@dataclass
class Space(Point):
    z: float = 0.0


def test_an_int_may_be_declared_as_float() -> None:
    """As Python's type checkers have it; one that is no float is refused."""
    encoded = encode(Point(1), Point)

    assert encoded.value == decode(encoded.text, encoded.metadata, Point) == Point(1.0)
    with pytest.raises(NotEncodable):
        encode(Point(2**60 + 1), Point)


@pytest.mark.parametrize("value", [Level.LOW, [Level.LOW], {"status": Level.LOW}])
def test_an_enum_that_is_its_value_may_be_declared_as_that(value: Any) -> None:
    """``http.HTTPStatus`` as ``int``, say."""
    hint = {Level: int, list: list[int], dict: dict[str, int]}[type(value)]

    encoded = encode(value, hint)

    assert encoded.value == decode(encoded.text, encoded.metadata, hint) == value


@pytest.mark.parametrize(
    ("value", "hint", "said"),
    [
        (Address(street="x"), None, "annotate {action} with its return type or pass type_hint=Address"),
        (Point(1.0), None, "annotate {action} with its return type or pass type_hint=Point"),
        (Colour.RED, None, "annotate {action} with its return type or pass type_hint=Colour"),
        (Level.LOW, None, "annotate {action} with its return type or pass type_hint=Level"),
        ([{"a": Address(street="x")}], None, "the type of the whole result, such as type_hint=list[Address]"),
        (Colour.RED, str, "by the declared type, str, Pydantic does not give it back equal and of its type"),
        ([Colour.RED], list[str], "by the declared type, list[str], Pydantic does not give it back"),
        ({"e": Colour.RED}, Colour, "by the declared type, Colour, Pydantic does not give it back"),
        (Lion(name="Leo", mane="brown"), Cat, "declare the type that it has"),
        (Space(1.0, z=2.0), Point, "declare the type that it has"),
        ([Cash(amount=1)], list[Card | Cash], "declare the type that it has (a union with a discriminator, say)"),
        ({"order": [Address(street="x")]}, dict[str, Any], "a Address has no JSON form of its own, and by"),
        (object(), None, "object"),
        (Pair(1, "a"), None, "Pair"),
        (OrderedDict(a=1), None, "OrderedDict"),
        (bytearray(b"x"), None, "bytearray"),
        (1j, None, "complex"),
        ((n for n in "ab"), None, "generator"),
        ({(1, 2): 3}, None, "tuple"),
        ({1: "a", "1": "b"}, None, "two keys"),
        ({None: "a", "null": "b"}, None, "two keys"),
    ],
    ids=[
        "model", "dataclass", "enum", "int enum", "model deep inside", "enum declared as its value",
        "enums declared as their values", "enum in a dict declared as itself", "subclass of the declared model",
        "subclass of the declared dataclass", "member of a union inside", "model in a dict of anything", "object",
        "named tuple", "ordered dict", "bytearray", "complex", "generator", "tuple as key", "colliding keys",
        "colliding null",
    ],
)  # fmt: skip
def test_what_json_would_degrade_is_refused_with_advice(value: Any, hint: Any, said: str) -> None:
    with pytest.raises(NotEncodable) as refused:
        encode(value, hint)
    assert said in str(refused.value)


def test_what_is_annotated_is_not_to_be_annotated() -> None:
    with pytest.raises(NotEncodable) as refused:
        encode([Cash(amount=1)], list[Card | Cash])
    assert "annotate" not in str(refused.value)
    assert "return plain data from {action}, or pass serializer=" in str(refused.value)
    assert "type_hint" not in str(refused.value)


def test_tuples_in_a_set_stay_tuples() -> None:
    """A list cannot be in a set."""
    value = {(1, (2, 3)), frozenset({(4,)})}
    encoded = encode(value)
    assert encoded.value == decode(encoded.text, encoded.metadata) == value


def test_a_cycle_is_refused(time_limit: None) -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises((NotEncodable, ValueError, RecursionError)):
        encode(cycle)


@pytest.mark.parametrize("kept_in", [lambda number: number, lambda number: [number], lambda number: {"n": number}])
def test_a_number_that_python_would_not_read_again_is_refused(kept_in: Callable[[int], Any]) -> None:
    with pytest.raises((NotEncodable, ValueError)):
        encode(kept_in(10 ** (sys.get_int_max_str_digits() + 1)))


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": "é\ud800", "c": None, "d": True, "e": 1.5, "f": 10**30},
        {"$type": "uuid"},
        {"$type": "uuid", "$value": "no uuid"},
        {"n": float("nan")},
        {},
    ],
    ids=["flat", "looks like a tag", "looks like a tagged value", "nan", "empty"],
)
def test_what_a_step_returns_is_not_what_its_action_holds(value: dict[str, Any]) -> None:
    """A body that changes its result changes nothing that the action keeps, as on replay."""
    for hint in (None, dict[str, Any]):
        assert repr(through_text(value, hint)) == repr(value)
        assert encode(value, hint).value is not value


class Patch(pydantic.BaseModel):
    first: int = 1
    second: str | None = None


class Moment(pydantic.BaseModel):
    at: datetime


AUTUMN = datetime(2026, 10, 25, 2, 30, fold=1)  # noqa: DTZ001  the second of two
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ({1: {2: 3}}, dict[int, dict]),
        ({"a": {2: 3}}, dict[str, dict]),
        ([{(1, 2): {None: b"x"}}], list[dict]),
        ({1: 2.5}, dict[int, int]),
        ({True: 1, "$type": 2}, dict[Any, int]),
    ],
    ids=str,
)
def test_keys_below_a_declared_type_stay_what_they_are(value: Any, hint: Any) -> None:
    kept = through_text(value, hint)
    assert same(value, kept)
    assert kept == value


def test_what_a_model_was_given_is_told_from_its_defaults() -> None:
    kept = through_text([Patch(second="x"), Patch(first=1)], list[Patch])
    assert [patch.model_dump(exclude_unset=True) for patch in kept] == [{"second": "x"}, {"first": 1}]


def test_a_private_attribute_is_kept() -> None:
    assert through_text(counted(), Counter)._count == 5  # noqa: SLF001


@pytest.mark.parametrize("hint", [None, datetime], ids=str)
@pytest.mark.parametrize("moment", [AUTUMN, AUTUMN.replace(tzinfo=BERLIN), AUTUMN.replace(tzinfo=BERLIN, fold=0)])
def test_of_two_equal_times_it_is_the_same_and_its_zone(moment: datetime, hint: Any) -> None:
    assert repr(through_text(moment, hint)) == repr(moment)
    assert repr(through_text({"at": [(moment,)]})) == repr({"at": [[moment]]})
    assert repr(through_text(Moment(at=moment), Moment)) == repr(Moment(at=moment))


def test_a_zone_whose_clocks_are_set_otherwise_now_keeps_the_moment() -> None:
    encoded = encode(AUTUMN.replace(tzinfo=BERLIN))
    moved = encoded.metadata["rest"].replace("Europe/Berlin", "Asia/Tokyo")
    assert decode(encoded.text, {"rest": moved}) == encoded.value.astimezone(timezone.utc)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ([Level.LOW], list[Any]),
        (Pair(Level.LOW, "a"), Pair),
        (Slotted(Level.LOW), Slotted),
        (Lion(name="Leo", mane="brown"), Cat),
    ],
    ids=str,
)
def test_what_would_come_back_as_another_type_is_refused(value: Any, hint: Any) -> None:
    with pytest.raises(NotEncodable):
        encode(value, hint)


def test_what_a_dataclass_does_not_compare_is_kept_too() -> None:
    kept = through_text(Slotted(1, hidden=(1, b"abc")), Slotted)
    assert kept.hidden == (1, b"abc")


@pytest.mark.parametrize("hint", [pydantic.SecretStr, Login, list[Login]], ids=str)
def test_a_secret_is_never_recorded_as_stars(hint: Any) -> None:
    login = Login(password=pydantic.SecretStr("hunter2"))
    with pytest.raises(NotEncodable):
        encode({Login: login}.get(hint, [login] if hint == list[Login] else login.password), hint)


# -- what was valid when it was recorded -------------------------------------------------------------------------------


class Asked(pydantic.BaseModel):
    value: Annotated[int, pydantic.AfterValidator(ask)]
    before: Annotated[date | None, pydantic.BeforeValidator(ask)] = None

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _asked(cls, data: Any, handler: Any) -> Any:
        return handler(ask(data))


class AskedAtOnce(pydantic.BaseModel):
    value: int
    _made: int = pydantic.PrivateAttr(0)

    def __init__(self, **data: Any) -> None:
        super().__init__(**ask(data))

    def model_post_init(self, _context: Any) -> None:
        self._made = ask(self.value) + 1


@dataclass
class AskedData:
    value: int

    def __post_init__(self) -> None:
        ask(self)


class Number:
    """Of a library of its own, made of text by a validator."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and self.text == other.text

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(), serialization=core_schema.to_string_ser_schema()
        )

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


class Called(pydantic.BaseModel):
    number: Number
    value: Annotated[int, pydantic.AfterValidator(ask)]


ASKED = [
    (Asked(value=1, before=date(2026, 1, 31)), Asked),
    ([Asked(value=1)], list[Asked | None]),
    ({"a": Box[Asked](kept=Asked(value=2))}, dict[str, Box[Asked]]),
    (AskedAtOnce(value=1), AskedAtOnce),
    (AskedData(1), AskedData),
    (Called(number="5", value=1), Called),  # type: ignore[arg-type]
    ((Asked(value=1), math.nan), tuple[Asked, float]),
]


@pytest.mark.parametrize(("value", "hint"), ASKED, ids=str)
def test_no_validator_is_heeded_again(value: Any, hint: Any) -> None:
    encoded = encode(value, hint)
    with unkind():
        kept = decode(encoded.text, encoded.metadata, hint)
        assert same(value, kept)
        assert same(encoded.value, kept)


@pytest.mark.parametrize(("value", "hint"), [each for each in ASKED if each[1] is not AskedAtOnce], ids=str)
def test_nor_for_what_version_0_1_recorded(value: Any, hint: Any) -> None:
    encoded = encode(value, hint)
    with unkind():
        kept = decode(encoded.text, {"encoding": encoded.metadata["encoding"]}, hint)
        assert repr(kept) == repr(value)


def test_a_path_that_is_gone_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    encoded = [encode(path, hint) for hint in (pydantic.FilePath, pydantic.FilePath | None)]
    path.unlink()
    for each in encoded:
        assert decode(each.text, each.metadata, pydantic.FilePath) == path


class Before(pydantic.BaseModel):
    name: str
    age: int = 0


def test_a_model_that_has_changed_reads_the_old_one_by_its_own_rules() -> None:
    encoded = encode(Before(name="Ada"), Before)

    class After(pydantic.BaseModel):
        full_name: str = ""
        size: int = 3

        @pydantic.model_validator(mode="before")
        @classmethod
        def migrated(cls, data: Any) -> Any:
            return {"full_name": data["name"]} if "name" in data else data

    assert decode(encoded.text, encoded.metadata, After) == After(full_name="Ada", size=3)


def test_a_limit_that_was_set_since_does_not_refuse_what_was_recorded() -> None:
    encoded = encode(Before(name="Ada", age=5), Before)

    class Limited(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid", title="Before", str_max_length=1)
        name: str
        age: Annotated[int, pydantic.Field(gt=17)] = 18

    assert decode(encoded.text, encoded.metadata, Limited).model_dump() == {"name": "Ada", "age": 5}


def test_the_shape_of_a_type_is_the_same_in_each_process() -> None:
    code = "from tests.unit.test_codec import *; print(encode(Asked(value=1), Asked).metadata['read'])"
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )  # fmt: skip
    assert told.stdout.strip() == encode(Asked(value=1), Asked).metadata["read"]


RECORDED_BY_0_1: list[tuple[str, dict[str, str], Any, Any]] = [
    ('{"amount":1.0}', {"encoding": "typed"}, Card, Card(amount=1)),
    ('{"amount":1.0}', {"encoding": "typed", "member": f"{Cash.__module__}.Cash"}, Card | Cash, Cash(amount=1)),
    ('{"street":"x","verified":{"$type":"datetime","$value":"2026-01-31T00:00:00"}}', {"encoding": "python"}, Address,
     Address(street="x", verified=datetime(2026, 1, 31))),  # noqa: DTZ001
    ('{"1":{"2":3}}', {}, dict[int, dict], {"1": {"2": 3}}),
    ('{"$type":"dict","$value":[["$type",{"$type":"tuple","$value":[1]}]]}', {}, None, {"$type": (1,)}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "metadata", "hint", "value"), RECORDED_BY_0_1, ids=lambda each: str(each)[:40])
def test_what_version_0_1_recorded_means_the_same(text: str, metadata: dict[str, str], hint: Any, value: Any) -> None:
    assert decode(text, metadata, hint) == value
    assert repr(decode(text.encode(), metadata, hint)) == repr(value)


# -- declared types ----------------------------------------------------------------------------------------------------


class Client:
    def fetch(self) -> Order:
        raise NotImplementedError

    async def afetch(self) -> Order:
        raise NotImplementedError

    def __call__(self) -> Address:
        raise NotImplementedError


def untyped():  # noqa: ANN201
    raise NotImplementedError


def unknown() -> NotThere:  # noqa: F821
    raise NotImplementedError


def opaque() -> threading.Thread:  # noqa: F821
    raise NotImplementedError


def anything() -> Any:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("action", "hint"),
    [
        (Client().fetch, Order),
        (Client().afetch, Order),
        (Client(), Address),
        (partial(partial(Client().fetch)), Order),
        (untyped, None),
        (lambda: 1, None),
        (unknown, None),
        (opaque, None),
        (anything, None),
        (len, None),
    ],
    ids=[
        "method", "async method", "callable object", "partial of a partial", "no annotation", "lambda", "unknown name",
        "no schema", "Any", "builtin",
    ],
)  # fmt: skip
def test_the_return_annotation_of_an_action_is_its_type(action: Any, hint: Any) -> None:
    assert declared_type(action) is hint


# -- serializers and compression ---------------------------------------------------------------------------------------


class Reversed:
    def serialize(self, obj: Any) -> bytes:
        return repr(obj).encode()[::-1]

    def deserialize(self, data: bytes) -> Any:
        return json.loads(data[::-1])


class Careless:
    def serialize(self, obj: Any) -> Any:
        return "text"

    def deserialize(self, data: bytes) -> Any:
        return data


@pytest.mark.parametrize("compression", [None, "zlib", "gzip", "bzip2"])
@pytest.mark.parametrize(
    "serializer", [None, "json", "pickle", Reversed()], ids=["default", "json", "pickle", "custom"]
)
def test_serializers_and_compression_go_round_and_leave_their_marks(serializer: Any, compression: str | None) -> None:
    accept = frozenset({"json", "pickle"})
    encoded = encode([1, 2], serializer=serializer, compression=compression, accept=accept)
    assert encoded.value == [1, 2]
    assert decode(encoded.text, encoded.metadata, serializer=serializer, accept=accept) == [1, 2]
    assert ("serializer" in encoded.metadata) is (serializer not in (None, "json"))
    assert ("compression" in encoded.metadata) is (compression is not None)


def test_compression_makes_a_large_value_small() -> None:
    assert len(encode("x" * 100_000, str, compression="zlib").text) < 1_000


def test_pickle_needs_the_permission_of_the_app() -> None:
    with pytest.raises(ConfigurationError, match="accept_content"):
        encode(Pair(1, "a"), serializer="pickle")
    encoded = encode(Pair(1, "a"), serializer="pickle", accept=frozenset({"json", "pickle"}))
    assert encoded.value == Pair(1, "a")
    assert type(encoded.value) is Pair
    with pytest.raises(ConfigurationError, match="accept_content"):
        decode(encoded.text, encoded.metadata, serializer="pickle")


def test_a_serializer_has_to_return_bytes() -> None:
    with pytest.raises(NotEncodable, match=r"Careless\.serialize must return bytes, got str"):
        encode(1, serializer=Careless())


def test_a_value_whose_serializer_is_no_longer_passed_is_not_guessed() -> None:
    encoded = encode([1], serializer=Reversed())
    with pytest.raises(NotEncodable, match=r"Reversed, which this step no longer passes"):
        decode(encoded.text, encoded.metadata)


def test_an_unknown_serializer_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'nonsense' is not registered with kombu; known: .*'pickle'"):
        check_serializer("nonsense", frozenset())


def test_an_unknown_compression_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'nonsense' is not registered with kombu; known: .*'zlib'"):
        check_compression("nonsense")


def test_a_type_is_looked_at_while_another_thread_imports_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first typed steps of a process, in a pool of threads, say."""
    monkeypatch.setitem(sys.modules, "pydantic.main", ModuleType("pydantic.main"))

    def action() -> int:
        return 1

    assert declared_type(action) is int
    assert not is_model(int)
