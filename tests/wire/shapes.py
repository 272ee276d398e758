"""Types that a product may use in a payload, chosen at random, each with its Python values."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import Callable
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import msgspec
from hypothesis import strategies as st
from msgspec import Meta

from realtime.protocol.payloads import Id, Payload, PresenceGroup

Values = st.SearchStrategy[Any]


class Shape(NamedTuple):
    """A type and the values that Python code gives for it."""

    kind: Any
    values: Values
    is_key: bool = False
    """Whether it may be the key of an object, and an item of a set."""


class Status(enum.StrEnum):
    OPEN = "open"
    CLOSED = "closed"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 3


class Colour(enum.Enum):
    RED = "#f00"
    BLUE = "#00f"


class Tree(msgspec.Struct, omit_defaults=True):
    node_id: Id
    children: list[Tree] = []
    parent: Tree | None = None


class Record(msgspec.Struct):
    """Its name means something else in TypeScript."""

    record_id: Id
    parts: dict[Level, Record] = {}


T = TypeVar("T")


@dataclasses.dataclass
class Page(Generic[T]):
    items: list[T]
    next_: T | None = None


class Cat(msgspec.Struct, tag="cat"):
    cat_id: Id
    lives: int = 9


class Dog(msgspec.Struct, tag="dog", rename="camel"):
    owner_ids: list[Id]


class Card(msgspec.Struct, tag_field="kind", tag=True, array_like=True):
    card_id: Id
    value: int = 1


NUMBERS = st.integers(-(2**53), 2**53)
WORDS = st.from_regex(r"[A-Za-z0-9_.@|+~-]{1,20}", fullmatch=True)
IDS = NUMBERS | WORDS | WORDS.map(Id)
GROUPS = st.integers(0, 99) | st.sampled_from(["sales", "E\u0301quipe", "Équipe", "两 个"])
MOMENTS = st.datetimes(timezones=st.none() | st.just(dt.UTC) | st.just(dt.timezone(dt.timedelta(hours=-5))))
TEXT = st.text(max_size=8)
PLAIN = st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2)
)
TREES = st.recursive(
    st.builds(Tree, IDS),
    lambda inner: st.builds(Tree, IDS, st.lists(inner, max_size=2), st.none() | inner),
    max_leaves=4,
)

LEAVES = [
    Shape(str, TEXT, is_key=True),
    Shape(
        Annotated[str, Meta(min_length=1, max_length=3, pattern="^[a-c]*$")],
        st.text("abc", min_size=1, max_size=3),
        True,
    ),
    Shape(int, NUMBERS, is_key=True),
    Shape(Annotated[int, Meta(ge=0, lt=10, description="a digit")], st.integers(0, 9), is_key=True),
    Shape(float, st.floats(allow_nan=False, allow_infinity=False) | NUMBERS),
    Shape(bool, st.booleans()),
    Shape(None, st.none()),
    Shape(Any, JSON),
    Shape(dt.datetime, MOMENTS, is_key=True),
    Shape(Annotated[dt.datetime, Meta(tz=True)], st.datetimes(timezones=st.just(dt.UTC)), is_key=True),
    Shape(dt.date, st.dates(), is_key=True),
    Shape(dt.time, st.times(), is_key=True),
    Shape(dt.timedelta, st.timedeltas(dt.timedelta(days=-999), dt.timedelta(days=999)), is_key=True),
    Shape(UUID, st.uuids(), is_key=True),
    Shape(Decimal, st.decimals(allow_nan=False, allow_infinity=False), is_key=True),
    Shape(Decimal, NUMBERS | st.floats(-1e9, 1e9)),
    Shape(Literal["a", "b"], st.sampled_from(["a", "b"]), is_key=True),
    Shape(Literal[1, "one", None], st.sampled_from([1, "one", None])),
    Shape(Literal[1, 2, -3], st.sampled_from([1, 2, -3]), is_key=True),
    Shape(Status, st.sampled_from(Status), is_key=True),
    Shape(Level, st.sampled_from(Level), is_key=True),
    Shape(Colour, st.sampled_from(Colour), is_key=True),
    Shape(Id, IDS, is_key=True),
    Shape(Annotated[Id, Meta(description="an order")], IDS, is_key=True),
    Shape(PresenceGroup, GROUPS, is_key=True),
    Shape(Id | None, IDS | st.none()),
    Shape(int | str | None, NUMBERS | TEXT | st.none()),
    Shape(bool | list[Id] | dict[str, Id], st.booleans() | st.lists(IDS) | st.dictionaries(WORDS, IDS)),
    Shape(Tree, TREES),
    Shape(Tree | None, TREES | st.none()),
    Shape(Record, st.builds(Record, IDS, st.dictionaries(st.sampled_from(Level), st.builds(Record, IDS)))),
    Shape(Page[Id], st.builds(Page, st.lists(IDS, max_size=2), IDS | st.none())),
    Shape(Cat | Dog | None, st.builds(Cat, IDS) | st.builds(Dog, st.lists(IDS, max_size=3)) | st.none()),
    Shape(Cat, st.builds(Cat, IDS)),
    Shape(Card, st.builds(Card, IDS)),
]
NAMES = st.lists(st.sampled_from(["id", "from", "two_words", "x1", "kind_"]), unique=True, max_size=4)


@st.composite
def shapes(draw: Callable[..., Any], depth: int = 2) -> Shape:
    """A type, nested at most that deep."""
    if not depth or draw(st.booleans()):
        return draw(st.sampled_from(LEAVES))
    return draw(st.sampled_from(CONTAINERS))(draw, depth - 1)


def keys(values: Values) -> Values:
    """Keys of which no two become the same text."""
    return st.lists(values, max_size=3, unique_by=lambda key: str(getattr(key, "value", key)))


def _list(draw: Callable[..., Any], depth: int) -> Shape:
    inner = draw(shapes(depth))
    kind = draw(
        st.sampled_from(
            [list[inner.kind], tuple[inner.kind, ...], Annotated[list[inner.kind], Meta(max_length=3)]]
        )
    )
    return Shape(kind, st.lists(inner.values, max_size=3))


def _set(draw: Callable[..., Any], depth: int) -> Shape:
    inner = draw(st.sampled_from([leaf for leaf in LEAVES if leaf.is_key]))
    kind = draw(st.sampled_from([set, frozenset]))
    return Shape(kind[inner.kind], st.lists(inner.values, max_size=3).map(kind))


def _tuple(draw: Callable[..., Any], depth: int) -> Shape:
    parts = draw(st.lists(shapes(depth), min_size=1, max_size=3))
    return Shape(tuple[tuple(part.kind for part in parts)], st.tuples(*(part.values for part in parts)))


def _dict(draw: Callable[..., Any], depth: int) -> Shape:
    key, value = draw(st.sampled_from([leaf for leaf in LEAVES if leaf.is_key])), draw(shapes(depth))
    pairs = keys(key.values).flatmap(lambda found: st.fixed_dictionaries(dict.fromkeys(found, value.values)))
    return Shape(dict[key.kind, value.kind], pairs)


def _optional(draw: Callable[..., Any], depth: int) -> Shape:
    inner = draw(st.sampled_from(LEAVES))
    return Shape(Optional[inner.kind], inner.values | st.none())  # noqa: UP045  (None | None is no type)


def _members(draw: Callable[..., Any], depth: int) -> dict[str, Shape]:
    return {name: draw(shapes(depth)) for name in draw(NAMES)}


def _struct(draw: Callable[..., Any], depth: int) -> Shape:
    members = {f"field_{name}": shape for name, shape in _members(draw, depth).items()}
    options = {
        "rename": draw(st.sampled_from([None, "camel", "kebab"])),
        "omit_defaults": draw(st.booleans()),
    }
    fields = [(name, *_field(draw, shape)) for name, shape in members.items()]
    kind = msgspec.defstruct("Part", fields, kw_only=True, **options)
    return Shape(kind, made(kind, members, {name for name, _, *default in fields if default}))


def _field(draw: Callable[..., Any], shape: Shape) -> tuple[Any, ...]:
    """The annotation of a struct's field, and perhaps a default."""
    way = draw(st.sampled_from(["required", "null", "unset"]))
    if way == "null":
        return Optional[shape.kind], None  # noqa: UP045
    return (Union[shape.kind, msgspec.UnsetType], msgspec.UNSET) if way == "unset" else (shape.kind,)  # noqa: UP007


def made(kind: Any, members: dict[str, Shape], optional: set[str] = frozenset()) -> Values:
    """Calls of a class with values of its members, of which some may be left out."""
    values = {name: shape.values for name, shape in members.items()}
    required = {name: each for name, each in values.items() if name not in optional}
    others = {name: each for name, each in values.items() if name in optional}
    return st.fixed_dictionaries(required, optional=others).map(lambda given: kind(**given))


def _dataclass(draw: Callable[..., Any], depth: int) -> Shape:
    members = {f"field_{name}": shape for name, shape in _members(draw, depth).items()}
    more = ("note", str | None, dataclasses.field(default=None))
    kind = dataclasses.make_dataclass("Box", [*((name, shape.kind) for name, shape in members.items()), more])
    return Shape(kind, made(kind, members))


def _typed_dict(draw: Callable[..., Any], depth: int) -> Shape:
    members = _members(draw, depth)
    optional = {name for name in members if draw(st.booleans())}
    hints = {
        name: NotRequired[shape.kind] if name in optional else shape.kind for name, shape in members.items()
    }
    return Shape(TypedDict("Row", hints), made(dict, members, optional))


def _named_tuple(draw: Callable[..., Any], depth: int) -> Shape:
    members = {f"field_{name}": shape for name, shape in _members(draw, depth).items()}
    kind = NamedTuple("Pair", [(name, shape.kind) for name, shape in members.items()])
    return Shape(kind, made(kind, members))


CONTAINERS = [_list, _set, _tuple, _dict, _optional, _struct, _dataclass, _typed_dict, _named_tuple]


@st.composite
def payloads(draw: Callable[..., Any]) -> tuple[type[Payload], dict[str, Any]]:
    """A payload class, and data that a backbone publishes for it."""
    members = _members(draw, 2) | {"cat": Shape(Cat, st.builds(lambda id: {"cat_id": id}, IDS))}
    fields = [(name, *_field(draw, shape)) for name, shape in members.items()]
    kind = msgspec.defstruct("Random", fields, bases=(Payload,), frozen=True, kw_only=True)
    optional = {name for name, _, *default in fields if default}
    return kind, draw(made(dict, members, optional))


@st.composite
def acks(draw: Callable[..., Any]) -> tuple[Any, Any]:
    """The type of an acknowledgement, and what a handler returns for it."""
    shape = draw(st.sampled_from([_struct, _dataclass, _typed_dict]))(draw, 2)
    return shape.kind, draw(shape.values)
