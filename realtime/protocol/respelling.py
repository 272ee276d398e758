"""Values as clients get them: an id that was sent as a whole number is delivered as a string, wherever it is.

Numbers of decimals become strings, too; names of groups are composed, and UUIDs get their hyphens. All other JSON stays
as it came, byte for byte.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from itertools import zip_longest
from operator import is_
from typing import Any
from uuid import UUID

import msgspec

from realtime.protocol.json_schema import (
    DECIMAL,
    DELIVERED,
    GROUP,
    ID,
    UUID_TEXT,
    Schema,
    Schemas,
)
from realtime.protocol.payloads import (
    TOO_DEEP,
    Empty,
    Id,
    InvalidPayload,
    Payload,
    PresenceGroup,
    Respelled,
    decode_payload,
    decoder,
)
from realtime.protocol.type_parts import alternatives

Respell = Callable[[msgspec.Raw], msgspec.Raw]
"""Valid JSON of a type -> that JSON as clients get it: the same object if nothing changes."""

_UUID_LENGTH = 38
"""Of the JSON of a UUID with hyphens."""
_ROOT = "#/definitions/"


def conform(kind: type[Payload], data: bytes) -> msgspec.Raw | dict[str, Any]:
    """`data` (a JSON object), which the process itself made, as clients get it. Raises `InvalidPayload`."""
    return merge(decode_payload(kind, data), data)


def merge(payload: Payload, data: bytes | msgspec.Raw) -> msgspec.Raw | dict[str, Any]:
    """`data` as it came, byte for byte, except for what is delivered in another spelling.

    Raises `InvalidPayload` when it is nested too deeply.
    """
    ids, others = _fields(type(payload))
    respelled = [pair for pair in ids if isinstance(getattr(payload, pair[0]), Respelled)]
    if not (respelled or others):
        return msgspec.Raw(data or b"{}")
    raw: dict[str, Any] = msgspec.json.decode(data or b"{}", type=dict[str, msgspec.Raw])
    changed = {key: getattr(payload, name) for name, key in respelled}
    if others:
        changed |= _changed_below(raw, others)
    return raw | changed if changed else msgspec.Raw(data or b"{}")


def _changed_below(raw: Mapping[str, msgspec.Raw], fields: Mapping[str, Respell]) -> dict[str, msgspec.Raw]:
    try:
        return _changed(raw, fields)
    except RecursionError as error:
        raise InvalidPayload(TOO_DEEP) from error
    except ValueError as error:
        raise InvalidPayload(str(error)) from error


def _changed(raw: Mapping[str, msgspec.Raw], fields: Mapping[str, Respell]) -> dict[str, msgspec.Raw]:
    found = {key: respell(raw[key]) for key, respell in fields.items() if key in raw}
    return {key: value for key, value in found.items() if value is not raw[key]}


@cache
def _fields(kind: type[Payload]) -> tuple[tuple[tuple[str, str], ...], Mapping[str, Respell]]:
    """The fields of a payload that are ids (name, key in JSON), and what respells others that hold such values."""
    parts = _Compiler(Schemas(DELIVERED, _ROOT)).properties(kind)
    ids = {field.name: field.encode_name for field in msgspec.structs.fields(kind) if _is_id_type(field.type)}
    return tuple(ids.items()), {key: parts[key] for key in parts.keys() - ids.values()}


def _is_id_type(kind: Any) -> bool:
    """Whether this is an id or None, so that the decoded value tells whether it is respelled."""
    found = alternatives(kind)
    return all(isinstance(each, type) and issubclass(each, Id | types.NoneType) for each in found)


@cache
def respeller(kind: Any) -> Respell | None:
    """What respells the JSON of a type; None if that is never necessary. Raises `NotJSON`."""
    return _Compiler(Schemas(DELIVERED, _ROOT)).of(kind)


@cache
def checked(kind: Any) -> Respell | None:
    """What checks that JSON is of a type and respells it; None if it may be any object. Raises `NotJSON`.

    The function raises `InvalidPayload`. Types that msgspec cannot tell apart (two `TypedDict`s) are only respelled.
    """
    respell = respeller(kind)
    if not _is_decodable(kind):
        return respell

    def check(raw: msgspec.Raw) -> msgspec.Raw:
        decode_payload(kind, raw)
        return raw if respell is None else respell(raw)

    return check


def _is_decodable(kind: Any) -> bool:
    if kind is Empty or kind == dict[str, Any]:
        return False
    try:
        decoder(kind)
    except TypeError:
        return False
    return True


# --- Single values -----------------------------------------------------------------------------------


def _first(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


def _id(raw: msgspec.Raw) -> msgspec.Raw:
    return raw if _first(raw) == b'"' else _text(Id.parse(msgspec.json.decode(raw)))


def _group(raw: msgspec.Raw) -> msgspec.Raw:
    value = msgspec.json.decode(raw)
    name = PresenceGroup.parse(value)
    return raw if name == value else _text(name)


def _decimal(raw: msgspec.Raw) -> msgspec.Raw:
    return raw if _first(raw) == b'"' else _text(str(Decimal(bytes(raw).decode())))


def _uuid(raw: msgspec.Raw) -> msgspec.Raw:
    return raw if len(bytes(raw)) == _UUID_LENGTH else _text(str(UUID(msgspec.json.decode(raw))))


def _text(value: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(str(value)))


_LEAVES: dict[Any, Respell] = {
    leaf["title"]: respell
    for leaf, respell in ((ID, _id), (GROUP, _group), (DECIMAL, _decimal), (UUID_TEXT, _uuid))
}


# --- Arrays and objects ------------------------------------------------------------------------------


class _Compiler:
    """Makes the functions that respell the JSON of one type, out of its schema."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._named: dict[str, Respell | None] = {}

    def of(self, kind: Any) -> Respell | None:
        found = self._schemas.of(kind)
        parts = (found, *self._schemas.definitions.values())
        return self._respell(found) if any(map(_has_leaf, parts)) else None

    def properties(self, kind: type[Payload]) -> dict[str, Respell]:
        """What respells the fields of a payload, by their keys in JSON."""
        found = self._resolved(self._schemas.of(kind))
        return self._each(found["properties"]) if _has_leaf([found, self._schemas.definitions]) else {}

    def _resolved(self, found: Schema) -> Schema:
        if "$ref" not in found:
            return found
        return self._schemas.definitions[found["$ref"].removeprefix(_ROOT)]

    def _each(self, properties: Mapping[str, Schema]) -> dict[str, Respell]:
        found = {key: self._respell(part) for key, part in properties.items()}
        return {key: respell for key, respell in found.items() if respell is not None}

    def _respell(self, found: Schema) -> Respell | None:
        respell: Respell | None = None
        match found:
            case {"$ref": str(name)}:
                respell = self._reference(name.removeprefix(_ROOT))
            case {"anyOf": parts}:
                respell = self._choice(parts)
            case {"type": "string", "title": str(title)}:
                respell = _LEAVES.get(title)
            case {"items": list(parts)}:
                respell = _tuple([self._respell(part) for part in parts])
            case {"items": part}:
                respell = _array(self._respell(part))
            case {"properties": properties}:
                respell = _object(self._each(properties))
            case {"additionalProperties": dict(part)}:
                names = {**found.get("propertyNames", {}), "type": "string"}
                respell = _mapping(self._respell(names), self._respell(part))
        return respell

    def _reference(self, name: str) -> Respell:
        """What respells a type that contains itself: found when it is first needed."""

        def respell(raw: msgspec.Raw) -> msgspec.Raw:
            if name not in self._named:
                self._named[name] = self._respell(self._schemas.definitions[name])
            found = self._named[name]
            return raw if found is None else found(raw)

        return respell

    def _choice(self, parts: Iterable[Schema]) -> Respell | None:
        """What respells a union: the part with the most keys that the JSON fits."""
        resolved = ((self._resolved(part), self._respell(part)) for part in parts)
        known = sorted(resolved, key=lambda pair: -len(pair[0].get("required", ())))
        if all(respell is None for _, respell in known):
            return None

        def respell(raw: msgspec.Raw) -> msgspec.Raw:
            found = next((respell for part, respell in known if _fits(part, raw)), None)
            return raw if found is None else found(raw)

        return respell


def _has_leaf(found: Any) -> bool:
    if isinstance(found, list):
        return any(map(_has_leaf, found))
    if not isinstance(found, dict):
        return False
    is_leaf = found.get("title") in _LEAVES if isinstance(found.get("title"), str) else False
    return is_leaf or any(map(_has_leaf, found.values()))


_BEGINNINGS = {"array": b"[", "object": b"{", "null": b"n", "boolean": b"tf", "string": b'"'}
_NUMBERS = b"-0123456789"


def _fits(part: Schema, raw: msgspec.Raw) -> bool:
    """Whether valid JSON of a union is of this part: by its first character, and an object by its keys and its tag."""
    first = _first(raw)
    if part.get("title") in _LEAVES and first in _NUMBERS:
        return True
    if first not in _BEGINNINGS.get(part.get("type", ""), _NUMBERS):
        return False
    if isinstance(part.get("items"), list):
        values = msgspec.json.decode(raw, type=list[msgspec.Raw])
        return all(map(_has_tag, part["items"], values))
    if "properties" not in part:
        return True
    members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return all(key in members and _has_tag(part["properties"][key], members[key]) for key in part["required"])


def _has_tag(part: Schema, raw: msgspec.Raw) -> bool:
    return "enum" not in part or msgspec.json.decode(raw) in part["enum"]


def _array(respell: Respell | None) -> Respell | None:
    if respell is None:
        return None

    def respell_all(raw: msgspec.Raw) -> msgspec.Raw:
        items = msgspec.json.decode(raw, type=list[msgspec.Raw])
        found = [respell(item) for item in items]
        return raw if all(map(is_, found, items)) else _made(found)

    return respell_all


def _tuple(positions: Sequence[Respell | None]) -> Respell | None:
    def respell_some(raw: msgspec.Raw) -> msgspec.Raw:
        items = msgspec.json.decode(raw, type=list[msgspec.Raw])
        pairs = zip_longest(positions[: len(items)], items)
        found = [item if respell is None else respell(item) for respell, item in pairs]
        return raw if all(map(is_, found, items)) else _made(found)

    return respell_some if any(positions) else None


def _object(fields: Mapping[str, Respell]) -> Respell | None:
    def respell_some(raw: msgspec.Raw) -> msgspec.Raw:
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        changed = _changed(members, fields)
        return _made(members | changed) if changed else raw

    return respell_some if fields else None


def _mapping(key: Respell | None, value: Respell | None) -> Respell | None:
    def respell_all(raw: msgspec.Raw) -> msgspec.Raw:
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        found = {_key(name, key): item if value is None else value(item) for name, item in members.items()}
        is_same = found.keys() == members.keys() and all(found[name] is members[name] for name in found)
        return raw if is_same else _made(found)

    return respell_all if key or value else None


def _key(name: str, respell: Respell | None) -> str:
    if respell is None:
        return name
    found: str = msgspec.json.decode(respell(_text(name)))
    return found


def _made(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
