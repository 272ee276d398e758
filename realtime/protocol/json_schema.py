"""The types of payloads and acknowledgements as JSON Schema (draft 7): the only walk through these types.

The AsyncAPI document holds these schemas as they are; the TypeScript types, the Markdown page and the conversion of
numbers (`realtime.protocol.respelling`) are made of them.
"""

from __future__ import annotations

import re
import types
import typing
from collections import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from realtime.protocol.ids import ID_PATTERN, MAX_LENGTH
from realtime.protocol.payloads import Id, PresenceGroup
from realtime.protocol.type_parts import (
    UNIONS,
    Member,
    alternatives,
    is_array,
    is_class,
    is_closed,
    is_struct,
    members_of,
    tag_of,
    unwrapped,
)
from realtime.protocol.values import NotJSON, encode, plain, type_name

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """Which form of a type a schema describes: the same value may look different in each direction."""

    suffix: str
    """Behind the names of types that contain themselves."""
    has_numbers: bool = False
    """Ids and decimals may be numbers, which become strings."""
    is_complete: bool = False
    """Python writes every object, so that the fields that have a default are there, too."""


ACCEPTED: Final = Form("Accepted", has_numbers=True)
"""What clients and backbones may send."""
DELIVERED: Final = Form("")
"""What clients get of an event: the sender may have left out a field that has a default."""
RETURNED: Final = Form("Returned", is_complete=True)
"""What clients get of what a handler returns."""

ID: Final[Schema] = {"title": "id", "type": "string", "pattern": ID_PATTERN}
GROUP: Final[Schema] = {"title": "group", "type": "string", "minLength": 1, "maxLength": MAX_LENGTH}
DECIMAL: Final[Schema] = {"title": "decimal", "type": "string", "format": "decimal"}
UUID_TEXT: Final[Schema] = {"title": "uuid", "type": "string", "format": "uuid"}
NULL: Final[Schema] = {"type": "null"}

_LEAVES: Final[Mapping[Any, Schema]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    types.NoneType: NULL,
    None: NULL,
    Any: {},
    object: {},
    msgspec.Raw: {},
    # Without a format: "date-time" and "time" require a time zone, "duration" knows neither fractions nor a sign.
    datetime: {"title": "datetime", "type": "string"},
    time: {"title": "time", "type": "string"},
    timedelta: {"title": "duration", "type": "string"},
    date: {"title": "date", "type": "string", "format": "date"},
    UUID: UUID_TEXT,
}
_ARRAYS: Final = frozenset(
    {list, set, frozenset, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Set, abc.MutableSet}
)
_MAPPINGS: Final = frozenset({dict, abc.Mapping, abc.MutableMapping})
_NOT_ASCII: Final = re.compile(r"\W", re.ASCII)
_LIKE: Final[Mapping[Any, Any]] = {
    "string": str,
    "integer": int,
    "number": float,
    "array": list,
    "object": dict,
}


def schema(kind: Any, form: Form) -> Schema:
    """The schema of a type, with the `definitions` of the types in it that contain themselves.

    Raises `NotJSON` for a type that has no form in JSON; the text says where in the type it is.
    """
    schemas = Schemas(form)
    found = schemas.of(kind)
    return {**found, "definitions": schemas.definitions} if schemas.definitions else found


class Schemas:
    """The schemas of one document. Types that contain themselves are referred to by name, all others are written out.

    Args:
        form: The form in JSON that is described.
        root: What references start with.
        taken: The names in the document that another type has. Those that are given here are added.
    """

    def __init__(self, form: Form, root: str = "#/definitions/", taken: set[str] | None = None) -> None:
        self.definitions: dict[str, Schema] = {}
        self._form = form
        self._root = root
        self._taken = set() if taken is None else taken
        self._open: dict[Any, bool] = {}
        """The classes that are being described, and whether they have turned out to contain themselves."""
        self._names: dict[Any, str] = {}

    def of(self, kind: Any) -> Schema:
        """The schema of a type. Raises `NotJSON`."""
        kind, metas = unwrapped(kind)
        found = self._of_bare(kind)
        return {**_bounds(kind, found, metas), **found} if metas else found

    def _of_bare(self, kind: Any) -> Schema:
        origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
        found: Schema
        if origin in UNIONS:
            found = self._union(arguments)
        elif origin is Literal:
            # Python may return a Literal that it made before, with the same values in another order.
            found = {"enum": sorted(arguments, key=lambda value: (str(type(value)), value))}
        elif origin is tuple and arguments and arguments[1:] != (...,):
            found = _tuple([self.of(each) for each in arguments], len(arguments))
        elif origin in _ARRAYS or origin is tuple:
            found = {"type": "array", "items": self.of(arguments[0]) if arguments else {}}
        elif origin in _MAPPINGS:
            found = self._mapping(*(arguments or (str, Any)))
        elif isinstance(origin, type) and is_class(origin):
            found = self._of_class(kind, origin)
        else:
            found = self._leaf(kind)
        return found

    def _leaf(self, kind: Any) -> Schema:
        is_class = isinstance(kind, type)
        found: Schema
        if isinstance(kind, typing.TypeVar):
            found = self.of(kind.__bound__ or Any)
        elif kind is Decimal:
            found = self._or_number(DECIMAL, "number")
        elif is_class and issubclass(kind, Id):
            found = self._or_number(GROUP if issubclass(kind, PresenceGroup) else ID, "integer")
        elif is_class and issubclass(kind, Enum):
            is_flag = issubclass(kind, Flag)  # its values may be combined
            found = {"type": "integer"} if is_flag else {"enum": [plain(each.value) for each in kind]}
        elif isinstance(kind, abc.Hashable) and kind in _LEAVES:
            found = _LEAVES[kind]
        else:
            raise NotJSON(f"JSON has no form for {type_name(kind)}")
        return found

    def _or_number(self, text: Schema, number: str) -> Schema:
        return {"anyOf": [text, {"type": number}]} if self._form.has_numbers else text

    def _union(self, kinds: tuple[Any, ...]) -> Schema:
        parts = [kind for kind in kinds if msgspec.UnsetType not in alternatives(kind)]
        has_choice = sum(is_struct(kind) for part in parts for kind in alternatives(part)) > 1
        found = [self._part(part) if has_choice else self.of(part) for part in parts]
        return found[0] if len(found) == 1 else {"anyOf": found}

    def _part(self, kind: Any) -> Schema:
        """The schema of one of several types, where a struct is recognized by its tag."""
        bare, metas = unwrapped(kind)
        if not is_struct(bare):
            return self.of(kind)
        found = self._of_class(bare, typing.get_origin(bare) or bare, is_part=True)
        return {**_bounds(bare, found, metas), **found}

    def _mapping(self, key: Any, value: Any) -> Schema:
        found = {"type": "object", "additionalProperties": self.of(value)}
        names = self._names_of(key)
        return {**found, "propertyNames": names} if names else found

    def _names_of(self, key: Any) -> Schema:
        """What the keys of an object look like: they are strings, whatever they are in Python."""
        found = Schemas(DELIVERED).of(key)
        match found:
            case {"enum": values}:
                return {"enum": [str(value) for value in values]}
            case {"type": "integer"}:
                return {"pattern": "^-?[0-9]+$"}
            case {"type": "string"}:
                return {name: value for name, value in found.items() if name != "type"}
            case {}:
                if not found or "anyOf" in found:
                    return {}
        raise NotJSON(f"a key: expected a string or a whole number, got {type_name(key)}")

    # --- Classes with fields ---------------------------------------------------------------------------

    def _of_class(self, kind: Any, origin: type, *, is_part: bool = False) -> Schema:
        key = kind, is_part
        if key in self._open:
            self._open[key] = True
        if key not in self._open and self._names.get(key) not in self.definitions:
            self._open[key] = False
            found = self._described(kind, origin, is_part)
            if not self._open.pop(key):
                return found
            self.definitions[self._name_of(key, origin)] = found
        return {"$ref": self._root + self._name_of(key, origin)}

    def _name_of(self, key: Any, origin: type) -> str:
        if key not in self._names:
            name = _definition_name(origin) + self._form.suffix
            self._names[key] = next(found for found in _numbered(name) if found not in self._taken)
            self._taken.add(self._names[key])
        return self._names[key]

    def _described(self, kind: Any, origin: type, is_part: bool) -> Schema:
        members = [*tag_of(origin, is_required=is_part or self._form.is_complete), *members_of(kind, origin)]
        parts = {member.name: self._of_member(member) for member in members}
        required = [member.name for member in members if self._is_required(member)]
        if is_array(origin):
            least = len(parts if self._form.is_complete else required)
            return _tuple(list(parts.values()), least, is_closed=is_closed(origin))
        found: Schema = {"type": "object", "properties": parts, "required": required}
        return {**found, "additionalProperties": False} if is_closed(origin) else found

    def _is_required(self, member: Member) -> bool:
        return member.is_required or (self._form.is_complete and not member.is_left_out)

    def _of_member(self, member: Member) -> Schema:
        try:
            found = self.of(member.kind)
        except NotJSON as error:
            raise error.below(member.name) from None
        if member.default is None or member.default is msgspec.UNSET or self._form.is_complete:
            return found
        return {**found, "default": msgspec.json.decode(encode(member.default))}


def _bounds(kind: Any, found: Schema, metas: tuple[Any, ...]) -> Schema:
    """What the constraints say, as msgspec describes them."""
    if not metas:
        return {}
    like = kind if kind in {datetime, time} else _LIKE.get(found.get("type"), Any)
    try:
        return msgspec.json.schema(Annotated[(like, *metas)])
    except TypeError as error:
        raise NotJSON(str(error).partition(" - type")[0]) from error


def _tuple(parts: list[Schema], least: int, *, is_closed: bool = True) -> Schema:
    found: Schema = {"type": "array", "items": parts or {}, "minItems": least}
    return {**found, "maxItems": len(parts), "additionalItems": False} if is_closed else found


def _definition_name(origin: type) -> str:
    """The name of a class as every generator accepts it: in ASCII, and no keyword, as those are in lower case."""
    name = _NOT_ASCII.sub("_", origin.__name__)
    return name[:1].upper() + name[1:]


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}{number}"
        number += 1
