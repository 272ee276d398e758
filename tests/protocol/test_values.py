from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
import types
import uuid
from collections import OrderedDict, defaultdict, namedtuple
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from django.contrib.auth.models import User
from django.db import models
from django.http import QueryDict
from django.utils.functional import SimpleLazyObject, lazystr
from django.utils.html import format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from realtime.protocol.payloads import Id
from realtime.protocol.values import DEPTH, NotJSON, encode, plain


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self


class Whole(int):
    pass


class Real(float):
    """As numpy's float64 is one."""


class Moment(dt.datetime):
    """As freezegun's or pendulum's."""


class Day(dt.date):
    pass


class Lasting(dt.timedelta):
    pass


class Sum(Decimal):
    pass


class Status(models.TextChoices):
    OPEN = "open", gettext_lazy("Open")


class Level(enum.IntEnum):
    HIGH = 3


class Pair(enum.Enum):
    BOTH = (1, enum.auto)
    ONE = (1, 2)


class Item(msgspec.Struct, rename="camel"):
    item_id: int
    made_by: Any = None


class Tagged(msgspec.Struct, tag="shop", omit_defaults=True):
    name: str = ""
    tags: list[str] = []
    gone: str | msgspec.UnsetType = msgspec.UNSET


class Row(msgspec.Struct, array_like=True):
    x: int
    y: Any


@dataclasses.dataclass
class Box:
    size: Decimal
    inside: Any = None


Point = namedtuple("Point", "x y")


def deep(levels: int) -> Any:
    value: Any = 1
    for number in range(levels):
        value = [value] if number % 2 else {"in": value}
    return value


def refused(value: Any) -> str:
    with pytest.raises(NotJSON) as caught:
        encode({"data": value})
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (format_html("<b>{}</b>", "&"), "<b>&amp;</b>"),
        (mark_safe("<i>"), "<i>"),
        (Id("42"), "42"),
        (Text("text"), "text"),
        (gettext_lazy("Open"), "Open"),
        (lazystr(7), "7"),
        (SimpleLazyObject(lambda: "late"), "late"),
        (Whole(7), 7),
        (Real(1.5), 1.5),
        (True, True),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.10"), "1.10"),
        (Sum("1.10"), "1.10"),
        (dt.datetime(2024, 2, 29, 1, 2, 3, tzinfo=dt.UTC), "2024-02-29T01:02:03Z"),
        (Moment(2024, 2, 29, 1, 2, 3, tzinfo=dt.UTC), "2024-02-29T01:02:03Z"),
        (Moment(2024, 2, 29), "2024-02-29T00:00:00"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (Day(2024, 2, 29), "2024-02-29"),
        (dt.time(1, 2), "01:02:00"),
        (dt.timedelta(seconds=90.5), "PT90.5S"),
        (Lasting(seconds=90.5), "PT90.5S"),
        (Status.OPEN, "open"),
        (Level.HIGH, 3),
        (Pair.ONE, [1, 2]),
        ({"a"}, ["a"]),
        (frozenset({1}), [1]),
        ((1, 2), [1, 2]),
        (Point(1, 2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (QueryDict("a=1&a=2"), {"a": "2"}),
        (Item(1, made_by=uuid.UUID(int=2)), {"itemId": 1, "madeBy": str(uuid.UUID(int=2))}),
        (Tagged(), {"type": "shop"}),
        (Tagged(name="x", tags=["a"], gone="b"), {"type": "shop", "name": "x", "tags": ["a"], "gone": "b"}),
        (Row(1, mark_safe("<i>")), [1, "<i>"]),
        (Box(Decimal(1), inside=[Box(Decimal(2))]), {"size": "1", "inside": [{"size": "2", "inside": None}]}),
        (msgspec.Raw(b'{"a":1}'), {"a": 1}),
        (10**300, 10**300),
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_is_converted_wherever_it_is(value: Any, expected: Any):
    assert json.loads(encode(value)) == expected
    assert json.loads(encode({"a": [value]})) == {"a": [expected]}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (mark_safe("a"), "a"),
        (gettext_lazy("Open"), "Open"),
        (7, "7"),
        (Level.HIGH, "3"),
        (Status.OPEN, "open"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (Decimal("1.5"), "1.5"),
    ],
    ids=repr,
)
def test_key_is_text_or_a_whole_number(key: Any, expected: str):
    assert json.loads(encode({key: 1})) == {expected: 1}


@pytest.mark.parametrize(
    "key",
    [None, True, 1.5, math.nan, (1, 2), b"a", frozenset(), Pair.ONE, object()],
    ids=lambda key: type(key).__name__,
)
def test_other_keys_are_refused(key: Any):
    assert refused({"by": {key: 1}}).startswith("data.by")


def test_keys_that_become_one_are_refused():
    assert refused({7: 1, "7": 2}) == "data['7']: two keys of this object become the same key in JSON"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (User.objects.all(), "django.db.models.query.QuerySet"),
        (User(), "django.contrib.auth.models.User"),
        (SimpleLazyObject(User), "SimpleLazyObject"),
        ((each for each in "ab"), "generator"),
        (print, "builtin_function_or_method"),
        (lambda: 1, "function"),
        (object(), "object"),
        (Box, "type"),
        (b"ab", "bytes"),
        (bytearray(b"ab"), "bytearray"),
        (memoryview(b"ab"), "memoryview"),
        ({}.items(), "dict_items"),
        (range(3), "range"),
        (1j, "complex"),
        (ValueError("x"), "ValueError"),
        (Pair.BOTH, "type"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_has_no_form_for_is_refused_with_its_path(value: Any, named: str):
    for holder in ({"owner": value}, Item(1, made_by=value), Box(Decimal(1), inside=value)):
        text = refused({"items": [1, {}, holder]})
        assert text.startswith(("data.items[2].owner", "data.items[2].madeBy", "data.items[2].inside"))
        assert named in text


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, Real("nan"), Decimal("NaN"), Decimal("-Infinity"), Sum("sNaN")],
    ids=repr,
)
def test_nan_and_infinity_are_refused(value: Any):
    assert refused({"items": [{"price": value}]}) == "data.items[0].price: JSON has neither NaN nor Infinity"


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 10**20_000, Whole(10**400)], ids=["+", "-", "huge", "own"]
)
def test_number_that_receivers_cannot_read_is_refused(value: int):
    assert refused([value]).startswith("data[0]: a whole number")
    assert refused({value: 1}).startswith("data[")


def test_path_spells_out_keys_that_are_no_words():
    assert refused({"a b": {7: {uuid.UUID(int=1): {"x": b""}}}}).startswith("data['a b'][7][UUID].x: ")


def test_path_is_bounded_and_no_value_is_quoted():
    text = refused({"k" * 5000: {"\n": ValueError("secret")}})
    assert "secret" not in text
    assert "\n" not in text
    assert len(text) < 300


def test_value_that_contains_itself_is_refused():
    data: dict[str, Any] = {"list": []}
    data["list"].append(data)
    assert "contains itself" in refused(data)
    box = Box(Decimal(1))
    box.inside = {"again": box}
    assert "contains itself" in refused(box)


def test_nesting_is_bounded():
    assert json.loads(encode(deep(DEPTH))) == deep(DEPTH)
    for levels in (DEPTH + 1, 1000, 100_000):
        with pytest.raises(NotJSON, match=f"more than {DEPTH} levels"):
            encode(deep(levels))


def test_value_used_twice_is_not_one_that_contains_itself():
    same = {"a": 1}
    assert json.loads(encode([same, same])) == [same, same]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ud83d", "\ufffd"),
        ("a\ude00b", "a\ufffdb"),
        ("\ud83dx\ud83d", "\ufffdx\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ude00", "\N{GRINNING FACE}"),
        ("\N{GRINNING FACE}\ud83d", "\N{GRINNING FACE}\ufffd"),
    ],
    ids=ascii,
)
def test_half_of_a_pair_of_surrogates_becomes_the_replacement_character(text: str, expected: str):
    assert json.loads(encode({"a": [text], text: 1})) == {"a": [expected], expected: 1}


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_json_has_stays_as_it_is(value: Any):
    assert plain(value) == value
    assert json.loads(encode(value)) == value
