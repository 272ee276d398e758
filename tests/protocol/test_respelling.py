"""Ids are delivered as strings wherever they are; all other JSON stays as it came, byte for byte."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest

from realtime.protocol.nesting import LEVELS
from realtime.protocol.payloads import Id, InvalidPayload, Payload, PresenceGroup, parse_payload
from realtime.protocol.respelling import conform, merge, respeller


class Part(msgspec.Struct, rename="camel"):
    part_id: Id
    maker_id: Id | None = None


class Cat(msgspec.Struct, tag=True):
    cat_id: Id


class Dog(msgspec.Struct, tag=True):
    dog_ids: list[Id]


class Row(msgspec.Struct, array_like=True):
    count: int
    row_id: Id


class Pair(NamedTuple):
    first: Id
    second: int = 0


@dataclasses.dataclass
class Box:
    box_id: Id


class Tree(msgspec.Struct):
    tree_id: Id
    children: list[Tree] = []


class Found(TypedDict):
    found_id: Id


class Missing(TypedDict):
    missing_id: Id
    why: str


T = TypeVar("T")


@dataclasses.dataclass
class Page(Generic[T]):
    items: list[T]
    next: T | None = None


@dataclasses.dataclass
class NumberedPage(Page[Id], Generic[T]):
    number: T | None = None


class Cells(TypedDict, Generic[T]):
    cells: dict[str, T]


class Shelf(Cells[Id]):
    room: int


class Entry(NamedTuple, Generic[T]):
    key: T
    count: int


@pytest.mark.parametrize(
    ("kind", "came", "delivered"),
    [
        (list[Id], "[7, 8]", '["7","8"]'),
        (list[list[Id]], "[[7], []]", '[["7"],[]]'),
        (tuple[Id, int], "[7, 7]", '["7",7]'),
        (tuple[Id, ...], '[7,"a"]', '["7","a"]'),
        (set[Id], "[7, 7]", '["7","7"]'),
        (dict[str, Id], '{"7": 7}', '{"7":"7"}'),
        (dict[Id, int], '{"7": 7}', '{"7": 7}'),
        (dict[PresenceGroup, int], '{"E\u0301": 1}', '{"É":1}'),
        (dict[str, list[Id]], '{"a": [7]}', '{"a":["7"]}'),
        (Id | None, "7", '"7"'),
        (Id | None, "null", "null"),
        (list[Id | None], "[7, null]", '["7",null]'),
        (Part, '{"partId": 7, "makerId": null, "more": 1.10}', '{"partId":"7","makerId":null,"more":1.10}'),
        (Row, "[7, 7, 7]", '[7,"7",7]'),
        (Pair, "[7]", '["7"]'),
        (Box, '{"box_id": 7}', '{"box_id":"7"}'),
        (
            Tree,
            '{"tree_id": 1, "children": [{"tree_id": 2}]}',
            '{"tree_id":"1","children":[{"tree_id":"2"}]}',
        ),
        (
            Cat | Dog,
            '{"type": "Dog", "dog_ids": [7], "cat_id": 7}',
            '{"type":"Dog","dog_ids":["7"],"cat_id":7}',
        ),
        (Cat | Dog | None, '{"cat_id": 7, "type": "Cat"}', '{"cat_id":"7","type":"Cat"}'),
        (int | list[Id] | dict[str, Id], "7", "7"),
        (int | list[Id] | dict[str, Id], '{"a": 7}', '{"a":"7"}'),
        (Found | Missing, '{"missing_id": 7, "why": "gone"}', '{"missing_id":"7","why":"gone"}'),
        (Decimal, "1.10", '"1.10"'),
        (list[Decimal], '[1.10, "2.0", 1e400]', '["1.10","2.0","1E+400"]'),
        (Page[Id], '{"items": [7], "next": 8}', '{"items":["7"],"next":"8"}'),
        (Page[Page[Id]], '{"items": [{"items": [7]}]}', '{"items":[{"items":["7"]}]}'),
        (NumberedPage[int], '{"items": [7], "number": 7}', '{"items":["7"],"number":7}'),
        (Cells[list[Id]], '{"cells": {"a": [7]}}', '{"cells":{"a":["7"]}}'),
        (Shelf, '{"cells": {"a": 7}, "room": 7}', '{"cells":{"a":"7"},"room":7}'),
        (Entry[Id], "[7,7]", '["7",7]'),
        (UUID, f'"{UUID(int=7).hex}"', f'"{UUID(int=7)}"'),
        (PresenceGroup, '"E\u0301"', '"É"'),
    ],
    ids=str,
)
def test_values_are_respelled_wherever_they_are(kind: Any, came: str, delivered: str):
    respell = respeller(kind)
    assert respell is not None
    assert bytes(respell(msgspec.Raw(came.encode()))).decode() == delivered
    again = msgspec.Raw(delivered.encode())
    assert respell(again) is again


@pytest.mark.parametrize(
    "kind", [int, list[str], dict[str, Any], tuple[int, ...], str | None, Any, msgspec.Raw], ids=str
)
def test_types_without_such_values_are_left_alone(kind: Any):
    assert respeller(kind) is None


class Everything(Payload, frozen=True, kw_only=True, rename="camel"):
    thing_id: Id
    owner_id: Id | None = None
    part: Part | None = None
    ids: list[Id] = []
    price: Decimal | None = None
    note: str = ""


def delivered(data: str) -> str:
    raw = data.encode()
    return msgspec.json.encode(merge(parse_payload(Everything, raw), raw), enc_hook=str).decode()


def test_ids_of_renamed_fields_are_respelled_under_their_names_in_json():
    assert delivered('{"thingId": 7, "ownerId": 8}') == '{"thingId":"7","ownerId":"8"}'


def test_nested_ids_are_respelled_and_the_rest_is_not_touched():
    came = '{"thingId": "7", "part": {"partId": 8, "n": 1.10}, "ids": [9], "price": 1.10, "z": {"b": 1,  "a": 7}}'
    assert delivered(came) == (
        '{"thingId":"7","part":{"partId":"8","n":1.10},"ids":["9"],"price":"1.10","z":{"b": 1,  "a": 7}}'
    )


def test_data_that_needs_no_respelling_is_the_same_text():
    came = '{"thingId": "7",  "part": {"partId": "8"}, "ids": [ ], "price": null, "z": 1.10}'
    assert delivered(came) == came


def test_handlers_data_is_checked_before_it_is_sent():
    assert conform(Everything, b'{"thingId": 7}') == {"thingId": "7"}
    with pytest.raises(InvalidPayload, match="note: expected str, got int"):
        conform(Everything, b'{"thingId": 7, "note": 7}')


class Branch(Payload, frozen=True):
    branch_id: Id
    branches: list[Branch] = []


def test_payload_may_contain_itself():
    data = b'{"branch_id": 1, "branches": [{"branch_id": 2, "branches": []}, {"branch_id": "3"}]}'
    assert msgspec.json.encode(conform(Branch, data), enc_hook=str) == (
        b'{"branch_id":"1","branches":[{"branch_id":"2","branches":[]},{"branch_id": "3"}]}'
    )


class Deep(Payload, frozen=True):
    tree: Tree


def test_ids_are_respelled_as_deeply_as_a_message_may_be_nested():
    levels = (LEVELS - 3) // 2
    nested = '{"tree_id":1,"children":[' * levels + '{"tree_id":1}' + "]}" * levels
    data = f'{{"tree": {nested}}}'.encode()
    made = msgspec.json.encode(merge(parse_payload(Deep, data), data))
    assert made.count(b'"tree_id":"1"') == levels + 1


def test_value_that_is_nested_too_deeply_is_refused():
    levels = 900
    nested = '{"tree_id":1,"children":[' * levels + '{"tree_id":1}' + "]}" * levels
    data = f'{{"tree": {nested}}}'.encode()
    with pytest.raises(InvalidPayload, match=r"nested|recursion"):
        merge(parse_payload(Deep, data), data)
