"""The types of the TypeScript client are those of the catalogue."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from realtime.protocol.payloads import Empty, Id, Payload
from realtime.protocol.replies import Joined
from realtime.spec.typescript import _object, _type, events_typescript
from tests.e2e.harness import ROOT


def test_generated_types_are_those_of_the_catalogue():
    committed = (ROOT / "client" / "src" / "events.ts").read_text()
    assert committed == events_typescript(), "run `make docs`"


class Everything(Payload, frozen=True):
    some_id: Id
    renamed: str = msgspec.field(name="from")
    kind: Literal["a", "b"] = "a"
    ids: list[Id] = []
    by_name: dict[str, float] = {}
    short: Annotated[str, Meta(max_length=3)] | None = None
    anything: msgspec.Raw = msgspec.Raw(b"{}")


def test_payload_is_an_object_type():
    assert _object(Everything, "string", open_=True) == (
        '{ some_id: string; from: string; kind?: "a" | "b"; ids?: (string)[]; by_name?: Record<string, number>; '
        "short?: string; anything?: unknown; [field: string]: unknown }"
    )


def test_client_may_send_an_id_as_a_number():
    assert _object(Everything, "string | number", open_=False).startswith("{ some_id: string | number; ")


def test_no_payload_is_an_empty_object():
    assert _object(Empty, "string", open_=False) == "Record<string, never>"


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        (None, "Record<string, never>"),
        (bool, "boolean"),
        (complex, "unknown"),
        (dict[str, Id], "Record<string, string>"),
    ],
)
def test_types(kind: object, type_: str):
    assert _type(kind, "string") == type_


def test_key_that_need_not_be_there_may_be_left_out():
    assert _type(Joined, "string") == "{ room: string; offset: string; recovered?: boolean; missed?: number }"
