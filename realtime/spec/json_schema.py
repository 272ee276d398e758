"""Payloads and acknowledgements as JSON Schema (draft 7): the only walk through their types.

The AsyncAPI document holds these schemas as they are; the TypeScript types and the Markdown page are made of them.
"""

from __future__ import annotations

import types
import typing
from functools import partial
from typing import Annotated, Any

import msgspec

from realtime.protocol.ids import ID_PATTERN, MAX_LENGTH
from realtime.protocol.payloads import Id, PresenceGroup

Schema = dict[str, Any]

DELIVERED_ID: Schema = {"title": "id", "type": "string", "pattern": ID_PATTERN}
"""An id as clients get it."""
ACCEPTED_ID: Schema = {"anyOf": [DELIVERED_ID, {"type": "integer"}]}
"""An id as clients and backbones may send it."""
GROUP: Schema = {"title": "group", "type": "string", "minLength": 1, "maxLength": MAX_LENGTH}
NULL: Schema = {"type": "null"}


def schema(kind: Any, id: Schema) -> Schema:
    """The schema of a type, without references; `id` is the schema of an `Id`.

    msgspec describes plain values and their bounds. Objects, arrays and unions are taken apart here, because msgspec
    refuses types that it could not decode (a union of two typed dictionaries) and defaults of its own types (an `Id`).
    Raises `TypeError` for a type that has no form in JSON.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    found: Schema
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = msgspec.structs.fields(kind)
        found = {
            "type": "object",
            "properties": {field.encode_name: _property(field, id) for field in fields},
            "required": [field.encode_name for field in fields if field.required],
        }
    elif typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        found = {
            "type": "object",
            "properties": {name: schema(hint, id) for name, hint in hints.items()},
            "required": sorted(kind.__required_keys__),
        }
    elif origin in {types.UnionType, typing.Union}:
        found = {"anyOf": [schema(part, id) for part in arguments]}
    elif origin is Annotated and typing.get_origin(arguments[0]) in {list, dict}:
        bounds = msgspec.json.schema(Annotated[typing.get_origin(arguments[0]), *arguments[1:]])
        found = {**bounds, **schema(arguments[0], id)}
    elif origin is typing.Required or origin is typing.NotRequired:
        found = schema(arguments[0], id)
    elif origin is list:
        found = {"type": "array", "items": schema(arguments[0], id)}
    elif origin is dict:
        found = {"type": "object", "additionalProperties": schema(arguments[1], id)}
    else:
        found = msgspec.json.schema(kind, schema_hook=partial(_of_id, id))
    return found


def _of_id(id: Schema, kind: type) -> Schema:
    if kind is PresenceGroup:
        return {"anyOf": [GROUP, *id["anyOf"][1:]]} if "anyOf" in id else GROUP
    if kind is Id:
        return id
    raise NotImplementedError(f"no schema for {kind}")


def _property(field: msgspec.structs.FieldInfo, id: Schema) -> Schema:
    found = schema(field.type, id)
    if field.default is msgspec.NODEFAULT or field.default is None or isinstance(field.default, msgspec.Raw):
        return found
    return {**found, "default": msgspec.to_builtins(field.default, enc_hook=str)}
