"""The types of the TypeScript client are those of the catalogue."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from realtime.protocol.json_schema import ACCEPTED, DELIVERED, schema
from realtime.protocol.payloads import Empty, Id, Payload
from realtime.protocol.replies import Joined, Resumed
from realtime.spec.typescript import events_typescript, type_of
from tests.e2e.harness import ROOT


def test_generated_types_are_those_of_the_catalogue():
    committed = (ROOT / "client" / "src" / "events.ts").read_text()
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
        (Joined, "{ room: string; offset: string; recovered?: boolean; missed?: number }"),
        (
            Resumed,
            "{ rooms: Record<string, { recovered: boolean; offset: string; missed: number } | { error: string }> }",
        ),
    ],
)
def test_types(kind: object, type_: str):
    assert type_of(schema(kind, DELIVERED)) == type_
