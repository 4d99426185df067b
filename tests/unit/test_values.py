"""The rule of values, for any type: given back equal, with equal types down to the leaves, or refused by name.

Whatever the validators of the type say when it is given back.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import NotRequired, TypedDict

from celery_durable.journal.entries import done_entry, read_entry
from celery_durable.values.codec import NotEncodable, decode, encode
from tests.unit.world import ask, unkind

# -- an account of a value that owes nothing to the code under test ----------------------------------------------------


def account(value: Any) -> Any:  # noqa: PLR0911
    """All that can be said of a value, as something to compare."""
    kind = type(value)
    if isinstance(value, pydantic.BaseModel):
        parts = [value.__dict__, value.__pydantic_extra__, value.__pydantic_private__]
        return kind, sorted(value.model_fields_set), *map(account, parts)
    if dataclasses.is_dataclass(value):
        return kind, [account(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        pairs = sorted(((account(key), account(item)) for key, item in value.items()), key=repr)
        return kind, pairs, getattr(value, "default_factory", None)
    if isinstance(value, (list, tuple, deque)):
        return kind, [*map(account, value)], getattr(value, "maxlen", None)
    if isinstance(value, (set, frozenset)):
        return kind, sorted(map(account, value), key=repr)
    if isinstance(value, (datetime, time)):
        zone = value.tzinfo.key if isinstance(value.tzinfo, ZoneInfo) else value.utcoffset()
        fold = value.fold if value.tzinfo is None or isinstance(value.tzinfo, ZoneInfo) else None
        return kind, value.replace(tzinfo=None, fold=0).isoformat(), fold, str(zone)
    return kind, repr(value)


CHECKS = [
    pydantic.AfterValidator(ask),
    pydantic.BeforeValidator(ask),
    pydantic.WrapValidator(lambda value, handler: handler(ask(value))),
]


# -- types and their values --------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BLUE = 2


class Level(IntEnum):
    LOW = 1


class Word(str, Enum):
    YES = "yes"


class Text(str):
    __slots__ = ()


class Names(list[Any]):
    pass


class Seen(NamedTuple):
    what: Any
    count: int = 0


class Row(TypedDict):
    id: int
    note: NotRequired[Any]


@dataclasses.dataclass(slots=True)
class Slotted:
    shown: Any
    hidden: Any = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(kw_only=True)
class Base:
    at: datetime | None = None


@dataclasses.dataclass(kw_only=True)
class Derived(Base):
    raw: bytes = b""
    made: Any = dataclasses.field(init=False, default=0)
    parts: list[Any] = dataclasses.field(default_factory=list)


class Loose(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    number: int = 1
    _own: Any = pydantic.PrivateAttr(None)


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)
    name: str = pydantic.Field(alias="theName")
    payload: Any = None

    @pydantic.model_validator(mode="after")
    def ask(self) -> Strict:
        return ask(self)

    @pydantic.computed_field
    @property
    def length(self) -> int:
        return len(self.name)


class Tree(pydantic.BaseModel):
    value: Any
    at: pydantic.FutureDatetime | None = None
    children: list[Tree] = []


class Roots(pydantic.RootModel[list[Any]]):
    pass


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    lives: int = 1


T = TypeVar("T")


class Box(pydantic.BaseModel, Generic[T]):
    kept: T
    spare: T | None = None


Pair = tuple[Any, Any]
"""A declared type, and a value."""

zones = st.none() | st.just(timezone.utc) | st.sampled_from([ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")])
moments = st.builds(
    lambda moment, fold: moment.replace(fold=fold), st.datetimes(timezones=zones), st.integers(0, 1)
) | st.sampled_from([datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zone) for zone in (None, ZoneInfo("Europe/Berlin"))])
leaves: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(10**30), 10**30),
    str: st.text(max_size=5),
    float: st.floats(),
    bytes: st.binary(max_size=5),
    bool: st.booleans(),
    complex: st.complex_numbers(),
    datetime: moments,
    date: st.dates(),
    time: st.builds(lambda moment, fold: moment.replace(fold=fold), st.times(), st.integers(0, 1)),
    timedelta: st.timedeltas(),
    Decimal: st.decimals(),
    UUID: st.uuids(),
    Path: st.text("ab/.", min_size=1, max_size=5).map(Path),
    IPv4Address: st.integers(0, 2**32 - 1).map(IPv4Address),
    Colour: st.sampled_from(Colour),
    Level: st.sampled_from(Level),
    Word: st.sampled_from(Word),
    pydantic.SecretStr: st.text(max_size=5).map(pydantic.SecretStr),
}
odd = st.sampled_from([Word.YES, Level.LOW, Text("x"), Names([1]), bytearray(b"x"), range(3), 1j, object, ..., len])
anything = st.recursive(
    st.none() | st.one_of(*leaves.values()) | odd,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2) | st.integers(0, 3) | st.tuples(st.integers(0, 3)), inner, max_size=3)
        | st.builds(Seen, inner)
        | st.builds(deque, st.lists(inner, max_size=2))
        | st.builds(Slotted, inner, inner)
    ),
    max_leaves=4,
)
hashable = st.sampled_from([int, str, bytes, date, UUID, Level, Word, Colour, IPv4Address])


@st.composite
def pairs(draw: st.DrawFn, depth: int = 2) -> Pair:
    """A type and a value of it; of what it declares as ``Any``, anything."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from([leaf_pair, leaf_pair, class_pair]))(draw)
    hint, value = draw(pairs(depth - 1))
    return draw(st.sampled_from(AROUND))(draw, hint, value)


def leaf_pair(draw: st.DrawFn) -> Pair:
    hint: Any = draw(st.sampled_from([*leaves, Any]))
    return hint, draw(leaves.get(hint, anything))


def class_pair(draw: st.DrawFn) -> Pair:
    some = draw(anything)
    private = Loose(extra=some)
    private._own = draw(st.none() | st.integers())  # noqa: SLF001
    derived = Derived(raw=b"\xff", parts=[some])
    derived.made = draw(st.integers())
    bare_tree = Tree(value=some)
    bare_tree.children.append(Tree(value=1))
    return draw(
        st.sampled_from(
            [
                (Seen, Seen(some)),
                (Row, {"id": 1, "note": some}),
                (Row, {"id": 1}),
                (Slotted, Slotted(1, some)),
                (Slotted, Slotted(some)),
                (Derived, derived),
                (Base, derived),
                (Loose, private),
                (Loose, Loose(number=2)),
                (Strict, Strict(theName="x", payload=some)),
                (Strict, Strict(theName="x")),
                (Tree, Tree(value=some, children=[Tree(value=1), Tree(value=2, children=[])])),
                (Tree, bare_tree),
                (Roots, Roots([some])),
                (Cat | Dog, Dog(lives=2)),
                (Annotated[Cat | Dog, pydantic.Field(discriminator="kind")], Dog()),
                (Box[Cat], Box[Cat](kept=Cat(lives=3))),
                (Box[Any], Box[Any](kept=some)),
                (Tree, Tree.model_construct(value=some, children=(1, 2))),
            ]
        )
    )


def as_key(draw: st.DrawFn, hint: Any, value: Any) -> Pair:
    key = draw(hashable)
    return dict[key, hint], dict.fromkeys(draw(st.sets(leaves[key], max_size=2)), value)  # type: ignore[valid-type]


def as_set(draw: st.DrawFn, *_: Any) -> Pair:
    kind = draw(hashable)
    return set[kind], draw(st.sets(leaves[kind], max_size=3))  # type: ignore[valid-type]


AROUND: list[Any] = [
    as_key,
    as_set,
    lambda draw, hint, value: (list[hint], [value, value]),
    lambda draw, hint, value: (tuple[hint, ...], (value,)),
    lambda draw, hint, value: (tuple[int, hint], (1, value)),
    lambda draw, hint, value: (Sequence[hint], draw(st.sampled_from([[value], (value,)]))),
    lambda draw, hint, value: (deque[hint], deque([value], draw(st.sampled_from([None, 3])))),
    lambda draw, hint, value: (dict[str, hint], {"a": value}),
    lambda draw, hint, value: (dict, {"a": {1: value}}),
    lambda draw, hint, value: (dict[str, dict], {"a": {1: value}}),
    lambda draw, hint, value: (Mapping[str, hint], {"a": value}),
    lambda draw, hint, value: (OrderedDict[str, hint], OrderedDict(a=value, b=value)),
    lambda draw, hint, value: (defaultdict[str, list[hint]], defaultdict(list, a=[value])),
    lambda draw, hint, value: (Counter[str], Counter("ab")),
    lambda draw, hint, value: (Union[hint, None], draw(st.sampled_from([value, None]))),  # noqa: UP007
    lambda draw, hint, value: (Union[hint, int, Cat], draw(st.sampled_from([value, 5, Cat()]))),  # noqa: UP007
    lambda draw, hint, value: (Annotated[hint, draw(st.sampled_from(CHECKS))], value),
    lambda draw, hint, value: (Box[hint], Box[hint].model_construct(kept=value)),
    lambda draw, hint, value: (dict[str, bytes], {"a": value}),  # which it is not, most often
]


def hardly(hint: Any) -> bool:
    """Declares nothing: tuples become lists, and keys strings, as documented."""
    return hint in (None, Any, dict)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(pairs())
def test_a_value_comes_back_as_it_was_or_is_refused(pair: Pair) -> None:
    hint, value = pair
    before = account(value)
    try:
        encoded = encode(value, None if hardly(hint) else hint)
    except NotEncodable:
        return
    entry = read_entry("step:1", done_entry("s", 1, 2, 3, encoded.metadata, encoded.text).encode())
    with unkind():
        replayed = decode(entry.value, entry.metadata, None if hardly(hint) else hint)

    assert account(replayed) == account(encoded.value)
    assert account(value) == before, "what the action keeps is left alone"
    if not hardly(hint):
        assert account(replayed) == before
