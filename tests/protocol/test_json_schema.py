"""Types as JSON Schema."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from jsonschema import Draft7Validator
from msgspec import Meta

from realtime.protocol.ids import ID_PATTERN
from realtime.protocol.json_schema import ACCEPTED, DELIVERED, Form, schema
from realtime.protocol.payloads import Id, Payload


class Part(Payload, frozen=True, kw_only=True):
    group: Id = Id("attendants")


class Everything(Payload, frozen=True):
    some_id: Id
    renamed: str = msgspec.field(name="from")
    kind: Literal["a", "b"] = "a"
    ids: Annotated[list[Id], Meta(max_length=2)] = []
    by_name: dict[str, float] = {}
    short: Annotated[str, Meta(max_length=3)] | None = None
    anything: msgspec.Raw = msgspec.Raw(b"{}")
    part: Part = Part()


ID = {"title": "id", "type": "string", "pattern": ID_PATTERN}


def test_payload_is_an_object():
    assert schema(Everything, DELIVERED) == {
        "type": "object",
        "properties": {
            "some_id": ID,
            "from": {"type": "string"},
            "kind": {"enum": ["a", "b"], "default": "a"},
            "ids": {"type": "array", "maxItems": 2, "items": ID},
            "by_name": {"type": "object", "additionalProperties": {"type": "number"}},
            "short": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
            "anything": {},
            "part": {
                "type": "object",
                "properties": {"group": {**ID, "default": "attendants"}},
                "required": [],
                "default": {"group": "attendants"},
            },
        },
        "required": ["some_id", "from"],
    }


@pytest.mark.parametrize(("form", "may_be_a_number"), [(ACCEPTED, True), (DELIVERED, False)])
def test_id_may_be_a_number_on_the_way_in_only(form: Form, may_be_a_number: bool):
    validator = Draft7Validator(schema(Id, form))
    assert validator.is_valid("a-1")
    assert not validator.is_valid("a b")
    assert validator.is_valid(7) is may_be_a_number


def test_object_that_refuses_unknown_fields_has_no_others():
    class Closed(msgspec.Struct, forbid_unknown_fields=True):
        size: int

    assert schema(Closed, DELIVERED)["additionalProperties"] is False
