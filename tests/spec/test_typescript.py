"""The types of the TypeScript client are those of the catalogue."""

from __future__ import annotations

import dataclasses
import re
import sys
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal, NotRequired, TypedDict
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta

from realtime.protocol.catalogue import catalogue, registry
from realtime.protocol.json_schema import ACCEPTED, DELIVERED, RETURNED, schema
from realtime.protocol.payloads import Empty, Id, Payload
from realtime.protocol.replies import Joined, Resumed
from realtime.spec.schemas import DocumentSchemas
from realtime.spec.typescript import RESERVED, events_typescript, own_events_typescript, type_of
from tests.e2e.harness import ROOT

CLIENT = ROOT / "client" / "src"


def test_generated_types_are_those_of_the_catalogue():
    committed = (CLIENT / "events.ts").read_text()
    assert committed == events_typescript(), "run `make docs`"


class Everything(Payload, frozen=True):
    some_id: Id
    renamed: str = msgspec.field(name="from")
    kind: Literal["a", "b"] = "a"
    ids: Annotated[list[Id], Meta(max_length=2)] = []
    by_name: dict[str, float] = {}
    short: Annotated[str, Meta(max_length=3)] | None = None
    anything: msgspec.Raw = msgspec.Raw(b"{}")


def test_payload_is_an_object_type():
    assert type_of({**schema(Everything, DELIVERED), "additionalProperties": True}) == (
        '{ some_id: string; from: string; kind?: "a" | "b"; ids?: (string)[]; by_name?: Record<string, number>; '
        "short?: string | null; anything?: unknown; [field: string]: unknown }"
    )


class Pair(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    first: int
    second: str = ""


class Renamed(TypedDict("Renamed", {"from-to": str, "if": int})):  # type: ignore[misc]
    """Keys that are no identifiers of TypeScript, and one that is."""


class Perhaps(TypedDict):
    """As Python 3.11 has it with `from __future__ import annotations`: every key counts as required."""

    there: int
    perhaps: NotRequired[int]


class Node(Payload, frozen=True):
    node_id: Id
    children: list[Node] = []


def test_type_that_contains_itself_has_a_name():
    assert type_of(schema(list[Node], DELIVERED)) == "(Node)[]"
    (name, found), *_ = schema(Node, ACCEPTED)["definitions"].items()
    assert f"{name} = {type_of(found)}" == (
        "NodeAccepted = { node_id: string | number; children?: (NodeAccepted)[] }"
    )


class Record(msgspec.Struct):
    parts: dict[str, Record]


class NodeAccepted(msgspec.Struct):
    parts: list[NodeAccepted]


class enum_größe(msgspec.Struct):  # noqa: N801
    parts: list[enum_größe]


def test_names_of_types_are_no_keywords_and_mean_nothing_else():
    schemas = DocumentSchemas(reserved=RESERVED)
    schemas.accepted(Node)
    for kind in (Record, NodeAccepted, enum_größe):
        schemas.delivered(kind)
    assert set(schemas.definitions) == {"Record2", "NodeAccepted", "NodeAccepted2", "Enum_gr__e"}


def test_names_of_the_client_are_reserved():
    sources = (CLIENT / "index.ts").read_text() + events_typescript()
    exported = {
        name.strip().removeprefix("type ")
        for names in re.findall(r"export (?:type )?{([^}]*)}", sources)
        for name in names.split(",")
    }
    exported |= set(re.findall(r"export (?:interface|type) (\w+)", sources))
    assert exported - {"consequence"} | {"Partial", "Record"} == RESERVED


@dataclasses.dataclass
class Answer:
    text: str = ""
    more: str | None = None


def test_handler_that_returns_an_object_sends_all_its_fields():
    assert type_of(schema(Answer, RETURNED)) == "{ text: string; more: string | null }"
    assert type_of(schema(Answer, DELIVERED)) == "{ text?: string; more?: string | null }"


def test_own_events_are_declared_for_the_client_and_the_others_are_not(settings):
    settings.REALTIME = {**settings.REALTIME, "EVENTS": ["tests.wire.events"]}
    try:
        text = own_events_typescript()
    finally:
        for table in (registry.server, registry.client):
            for name in [name for name in table if name.startswith("order:")]:
                del table[name]
        sys.modules.pop("tests.wire.events")
        catalogue.cache_clear()
    assert 'declare module "realtime-sockets" {' in text
    assert '"order:see": { viewer_ids: (string)[]; total: string; until: string; level: 1 | 3;' in text
    assert "/** A colleague looks at an order. *\\/ */" in text
    assert "export type Tree = { node_id: string; children?: (Tree)[]; parent?: Tree | null };" in text
    assert "join:thread" not in text


def test_client_may_send_an_id_as_a_number():
    assert type_of(schema(Everything, ACCEPTED)).startswith("{ some_id: string | number; ")


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        (Empty, "Record<string, never>"),
        (bool, "boolean"),
        (msgspec.Raw, "unknown"),
        (dict, "Record<string, unknown>"),
        (list, "(unknown)[]"),
        (list[int | str], "(number | string)[]"),
        (dict[str, Id], "Record<string, string>"),
        (Id | None, "string | null"),
        (Literal[1, "one", None], 'null | 1 | "one"'),
        (tuple[int, str], "[number, string]"),
        (tuple[int, ...], "(number)[]"),
        (Pair, "[number, (string)?]"),
        (dict[Literal["a", "b"], int], 'Partial<Record<"a" | "b", number>>'),
        (dict[int, Decimal], "Record<string, string>"),
        (Renamed, '{ "from-to": string; if: number }'),
        (Perhaps, "{ there: number; perhaps?: number }"),
        (datetime | UUID | None, "string | null"),
        (Joined, "{ room: string; offset: string; recovered?: boolean; missed?: number }"),
        (
            Resumed,
            "{ rooms: Record<string, { recovered: boolean; offset: string; missed: number } | { error: string }> }",
        ),
    ],
)
def test_types(kind: object, type_: str):
    assert type_of(schema(kind, DELIVERED)) == type_
