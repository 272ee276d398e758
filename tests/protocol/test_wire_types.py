"""A type that JSON has no form for is refused when the catalogue is loaded, by event and field."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Awaitable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from unittest import mock

import msgspec
import pytest
from django.core.exceptions import ImproperlyConfigured

from realtime.protocol import catalogue as module
from realtime.protocol.catalogue import Registry, catalogue, client_event, server_event
from realtime.protocol.payloads import Empty, Id, Payload

if TYPE_CHECKING:
    from datetime import timezone


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    """Nothing is registered but what the test registers."""
    catalogue()  # a module that is imported later would register its events here
    with mock.patch.object(module, "registry", Registry()), mock.patch.object(module, "BUILT_IN", ()):
        catalogue.cache_clear()
        yield
    catalogue.cache_clear()


class Mixed(enum.Enum):
    WORD = "a"
    NUMBER = 1


class One(msgspec.Struct):
    photo: bytes


class Other(msgspec.Struct):
    other: int


def refused() -> str:
    with pytest.raises(ImproperlyConfigured) as caught:
        catalogue()
    return str(caught.value)


def payload(kind: Any) -> type[Payload]:
    return msgspec.defstruct("Opened", [("field", kind)], bases=(Payload,), frozen=True, kw_only=True)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (bytes, "field: JSON has no form for bytes"),
        (list[bytes], "field: JSON has no form for bytes"),
        (dict[str, One], "field.photo: JSON has no form for bytes"),
        (complex, "field: JSON has no form for complex"),
        (type, "field: JSON has no form for type"),
        (Iterator[int], "field: JSON has no form for collections.abc.Iterator"),
        (dict[float, int], "field: a key: expected a string or a whole number, got float"),
        (dict[bool, int], "field: a key: expected"),
        (dict[tuple[int, int], int], "field: a key: expected"),
        (Mixed, "field: Enums must contain either all str or all int values"),
        (One | Other, "field.photo: JSON has no form for bytes"),
        (Other | Empty, "field: If a type union contains multiple Struct types"),
        (Id | int, "field: Type unions containing a custom type"),
    ],
    ids=str,
)
def test_payload_with_a_type_that_has_no_form_is_refused(kind: Any, text: str):
    server_event("order:opened")(payload(kind))
    assert refused().startswith(f"event 'order:opened': {text}")


def test_payload_that_is_an_array_is_refused():
    class Listed(Payload, frozen=True, array_like=True):
        number: int

    server_event("order:opened")(Listed)
    assert "expected an object, got an array" in refused()


async def _bytes(connection: Any, payload: Empty) -> One: ...
async def _list(connection: Any, payload: Empty) -> list[int]: ...
async def _text(connection: Any, payload: Empty) -> str | None: ...


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (_bytes, "photo: JSON has no form for bytes"),
        (_list, "expected an object (a TypedDict, Struct, dataclass or dict), got list[int]"),
        (_text, "expected an object (a TypedDict, Struct, dataclass or dict), got <class 'str'>"),
    ],
    ids=["bytes", "list", "text"],
)
def test_acknowledgement_that_is_no_object_of_json_is_refused(handler: Any, text: str):
    client_event("order:open")(handler)
    assert refused() == f"event 'order:open': its acknowledgement: {text}"


class Ack(TypedDict):
    opened: bool


@dataclasses.dataclass
class Box:
    size: int


async def _nothing(connection: Any, payload: Empty) -> None: ...
async def _unsaid(connection, payload: Empty): ...
async def _typed(connection: timezone, payload: Empty) -> Ack: ...
async def _quoted(connection: Any, payload: "Empty") -> "Ack": ...  # noqa: UP037
async def _perhaps(connection: Any, payload: Empty) -> Ack | None: ...
async def _either(connection: Any, payload: Empty) -> Ack | Box: ...
async def _mapping(connection: Any, payload: Empty) -> Mapping[str, int]: ...
async def _anything(connection: Any, payload: Empty) -> Any: ...
def _awaitable(connection: Any, payload: Empty) -> Awaitable[Ack]: ...


@pytest.mark.parametrize(
    ("handler", "ack"),
    [
        (_nothing, Empty),
        (_unsaid, dict[str, Any]),
        (_typed, Ack),
        (_quoted, Ack),
        (_perhaps, Ack | Empty),
        (_either, Ack | Box),
        (_mapping, Mapping[str, int]),
        (_anything, dict[str, Any]),
        (_awaitable, Ack),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_acknowledgement_is_what_the_handler_returns(handler: Any, ack: Any):
    client_event("order:open")(handler)
    assert catalogue().client["order:open"].ack == ack


async def _unknown(connection: Any, payload: Empty) -> timezone: ...


LAZY = """
class Moved(Payload, frozen=True, kw_only=True):
    later: Later

class Later(msgspec.Struct):
    id: Id
    next: Later | None = None

@client_event("piece:move", namespaces={"hub"})
async def move(connection: Connection, payload: Moved) -> Later: ...
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="older Pythons evaluate annotations at once")
def test_annotations_are_evaluated_when_all_names_are_known():
    """`Connection` never is: its module is imported for type checkers only."""
    known: dict[str, Any] = {**globals(), "__name__": __name__}
    exec(compile(LAZY, "lazy.py", "exec", dont_inherit=True), known)
    found = catalogue().client["piece:move"]
    assert (found.payload, found.ack) == (known["Moved"], known["Later"])


def test_return_annotation_for_type_checkers_only_is_refused():
    with pytest.raises(
        ImproperlyConfigured, match=r"'order:open': _unknown: expected annotations .*'timezone'"
    ):
        client_event("order:open")(_unknown)


class Node(Payload, frozen=True):
    node_id: Id
    children: list[Node] = []


def test_decorated_payload_may_name_itself():
    server_event("order:nested")(Node)
    assert catalogue().server["order:nested"].payload is Node


def test_literals_numbers_and_none_are_accepted():
    server_event("order:opened")(payload(Literal[1, "one", None]))
    assert "order:opened" in catalogue().server
