"""The catalogue as a page for people: docs/events.md is its output, and a test fails when it is stale."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from realtime.protocol.catalogue import Catalogue, ServerEvent, catalogue
from realtime.protocol.namespaces import namespaces
from realtime.protocol.payloads import Id, Payload, PresenceGroup

_INTRODUCTION = """\
# Events

Every event of the catalogue. This page is generated (`make docs`); the protocol around it is in
[protocol.md](protocol.md), and how to add one of your own in [adding-an-event.md](adding-an-event.md).

An *id* is a string of 1-64 characters out of `A-Z a-z 0-9 _ - . @ | + ~`; a whole number is accepted and becomes a
string. A *group* is the name of a presence group: an id that may also have spaces, and letters and digits of any script
(composed: Unicode's normalization form C).
A field with `?` may be left out. Of an event that a backbone publishes every other field of `data` passes through
untouched.
"""


def events_markdown() -> str:
    """The whole page."""
    events = catalogue()
    return "\n".join(
        (
            _INTRODUCTION,
            *_section("Client to server", _client_rows(events)),
            *_section("Server to client: published by the backbone", _server_rows(events, bus=True)),
            *_section("Server to client: sent by the server itself", _server_rows(events, bus=False)),
            *_section("Control: backbone to socket server, over the bus only", _control_rows(events)),
        )
    )


def _section(title: str, rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    header, *body = rows
    yield f"## {title}\n"
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in body:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _client_rows(events: Catalogue) -> Iterator[tuple[str, ...]]:
    yield "event", "namespaces", "data", "meaning"
    for name, event in sorted(events.client.items()):
        yield f"`{name}`", _names(event.namespaces), _fields(event.payload), summary(event.handler)


def _server_rows(events: Catalogue, *, bus: bool) -> Iterator[tuple[str, ...]]:
    names = sorted(namespaces())
    yield ("event", *names, *(("rooms (default)",) if bus else ()), "data", "meaning")
    for name, event in sorted(events.server.items()):
        if event.bus is not bus:
            continue
        marks = ("✓" if namespace in event.namespaces else "–" for namespace in names)
        where = (rooms(event),) if bus else ()
        yield f"`{name}`", *marks, *where, _fields(event.payload), summary(event.payload)


def _control_rows(events: Catalogue) -> Iterator[tuple[str, ...]]:
    yield "event", "data", "meaning"
    for name, event in sorted(events.control.items()):
        yield f"`{name}`", _fields(event.payload), summary(event.payload)


def rooms(event: ServerEvent) -> str:
    """The routing, told by routing a payload whose every field holds its own name."""
    if event.rooms is None:
        return "–"
    payload = event.payload(**{field.name: field.name for field in msgspec.structs.fields(event.payload)})
    found = []
    for route in event.rooms(payload):
        audience, room = (event.default_namespaces, route) if isinstance(route, str) else route
        kind, _, field = room.partition(":")
        where = "" if audience == event.namespaces else f" ({_names(audience)})"
        found.append(f"`{kind}:{{{field}}}`{where}")
    return ", ".join(found)


def _names(namespaces: frozenset[str]) -> str:
    return ", ".join(sorted(namespaces))


def _fields(payload: type[Payload]) -> str:
    return ", ".join(_field(field) for field in msgspec.structs.fields(payload)) or "–"


def _field(field: msgspec.structs.FieldInfo) -> str:
    default = "" if field.default in {msgspec.NODEFAULT, None} else f" = {str(field.default)!r}"
    return f"`{field.encode_name}{'' if field.required else '?'}` {_type(field.type)}{default}"


def _parts(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in {types.UnionType, typing.Union} else (kind,)


def _type(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _type(typing.get_args(kind)[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(kind))
    if (
        len(parts := [part for part in _parts(kind) if part is not types.NoneType]) != 1
        or parts[0] is not kind
    ):
        return " or ".join(map(_type, parts))
    if origin in {list, dict}:
        return "list" if origin is list else "object"
    known = {
        Id: "id",
        PresenceGroup: "group",
        str: "string",
        float: "number",
        int: "integer",
        bool: "boolean",
        msgspec.Raw: "any JSON",
    }
    return known.get(kind, "object")


def summary(documented: object) -> str:
    """What the docstring of a payload or a handler says, in one line."""
    return " ".join((inspect.getdoc(documented) or "").split())
